"""Undoing on a running control plane: whoever asks, and whatever was stored, it leads back only."""

from dataclasses import replace

import pytest
import pytest_asyncio
from msgspec import structs
from tests.support.control import WHO, body
from tests.support.engines import eventually
from tests.support.rollouts import running_fleet, running_world

from aegisflux.domain.errors import Conflict, Forbidden
from aegisflux.domain.guardrails import OPEN
from aegisflux.domain.manifest import ServiceReport
from aegisflux.domain.roles import Principal
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.panic import PanicRequest

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
OPERATOR = Who(Principal("olga", "operator"), "test", "req-3")
NUMBERS = iter(range(501, 1000))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    async with running_world(tmp_path_factory.mktemp("undo")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(world):
    async with running_fleet(world, next(NUMBERS)) as fleet:
        yield fleet


async def post(fleet, version, hosts=None, who=WHO, **more):
    answer = await fleet.plane.orchestrator.snapshots.post(
        body(fleet.service, version, **more), hosts, "", who
    )
    return answer.digest


async def back(fleet, version=None, who=OPERATOR):
    return await fleet.plane.orchestrator.changes.rollback(fleet.service, version, who)


async def promote(fleet, who=WHO):
    await fleet.plane.orchestrator.changes.promote(fleet.service, None, who)


@pytest_asyncio.fixture(loop_scope="module")
async def half(fleet):
    """Version 1 is promoted; version 2 of an operator, which nobody approved, is on the first host."""
    await post(fleet, 1)
    await promote(fleet)
    await post(fleet, 2, [fleet.hosts[0]], OPERATOR, edges=[])
    await eventually(lambda: fleet.versions() == [2, 1, 1, 1])
    return fleet


async def test_an_operators_own_version_reaches_no_further_host(half):
    with pytest.raises(Forbidden, match="another approver promotes it"):
        await half.plane.orchestrator.changes.promote(half.service, 2, replace(OPERATOR))
    tried = await half.plane.orchestrator.changes.try_rollback(half.service, 2)
    done = await back(half, 2)
    assert structs.replace(tried, timestamp=done.timestamp, dry_run=False) == done
    assert done.changed_hosts == (half.hosts[0],)
    assert done.unchanged_hosts == tuple(half.hosts[1:])
    assert "version 2 was neither promoted nor given to it before" in done.warnings[0]
    await eventually(lambda: half.versions() == [3, 1, 1, 1])
    maps = await half.plane.orchestrator.views.one(half.service)
    assert maps.stable.version == 1


async def test_nor_by_the_way_of_a_withdrawal(half):
    await half.plane.orchestrator.changes.withdraw(half.service, [half.hosts[0]], OPERATOR)
    await eventually(lambda: half.versions()[0] is None)
    why = "version 2 was neither promoted nor given to it before"
    named = f"{half.hosts[1]}, {half.hosts[2]}, {half.hosts[3]}: {why}"
    with pytest.raises(Conflict, match=rf"led back to version 2 \({named}\); post it again"):
        await back(half, 2)


async def test_nor_by_the_way_of_a_panic(half):
    panic = half.plane.orchestrator.panic
    await panic.observe(PanicRequest(service_id=half.service), OPERATOR)
    await eventually(lambda: half.versions() == [3] * 4)
    done = await back(half)
    assert done.from_version == 1
    await eventually(lambda: half.versions() == [4] * 4)
    again = await half.plane.orchestrator.views.one(half.service, 4)
    assert again.stable.copy_of == 1


async def test_what_nobody_may_be_led_back_to_is_refused_with_what_to_do(fleet):
    await post(fleet, 1, [fleet.hosts[0]], mode="observe")
    await fleet.plane.orchestrator.snapshots.post(
        body(fleet.service, 2), [fleet.hosts[1]], "", OPERATOR, True
    )
    with pytest.raises(Conflict, match=r"no host may be led back to version 2 .*post it again .* promoted"):
        await back(fleet, 2)


async def test_a_marked_host_is_led_back_to_nothing_that_blocks(half):
    core, marked = half.plane.orchestrator.core, half.hosts[1]
    labels = {"role": f"s{half.service}", "spared": "yes"}
    await half.plane.orchestrator.hosts.relabel(marked, labels, WHO)
    free = core.options
    core.options = replace(free, limits=structs.replace(OPEN, never_block={"spared": "yes"}))
    try:
        done = await back(half)
        assert marked in done.changed_hosts
        await eventually(lambda: half.versions() == [3, None, 3, 3])
    finally:
        core.options = free


async def test_a_rollout_gives_each_host_back_what_that_host_had(fleet):
    """Nothing was promoted: what is on one host is not what was in force on the others."""
    await post(fleet, 1, [fleet.hosts[0]], OPERATOR)
    await post(fleet, 2, [fleet.hosts[1]], OPERATOR, mode="observe")
    await eventually(lambda: fleet.versions() == [1, 2, None, None])
    told = await fleet.promoted(5432)
    await eventually(lambda: fleet.versions() == [3] * 4)
    done = await fleet.move(told.rollout, "roll_back")
    assert done.did == (
        f"s{fleet.service}: version 1 again, as version 4",
        f"s{fleet.service}: version 2 again, as version 5",
        f"s{fleet.service}: version 3 withdrawn where nothing was in force before",
    )
    await eventually(lambda: fleet.versions() == [4, 5, None, None])
    assert (await fleet.plane.orchestrator.views.one(fleet.service)).stable is None


async def test_who_is_released_and_enrolled_again_had_nothing(half):
    orchestrator, host = half.plane.orchestrator, f"gone-{half.service}"
    await half.plane.agent(host, {"role": f"s{half.service}"})

    async def had():
        return {row["host_id"] for row in await half.plane.store.rows("had", half.service)}

    await post(half, 3, [host])
    assert host in await had()
    await orchestrator.hosts.release(host, WHO)
    assert await had() == set(half.hosts)


async def test_what_was_withdrawn_from_a_host_does_not_come_back_by_its_report(half):
    orchestrator, host = half.plane.orchestrator, half.hosts[0]
    half.beating.pop(host).cancel()
    await orchestrator.changes.withdraw(half.service, [host], OPERATOR)
    await eventually(lambda: half.versions()[0] is None)
    report = ServiceReport(half.service, "pending", cgroups=("/system.slice/x.service",))
    await half.agents[host].beat(services=(report,))

    async def known():
        return any(row["host_id"] == host for row in await half.plane.store.rows("running", half.service))

    await eventually(known)
    await orchestrator.upkeep.join()
    assert host not in {row["host_id"] for row in await half.plane.store.rows("assignments", half.service)}


async def test_a_rollback_does_not_bring_back_what_was_withdrawn_from_a_host(fleet):
    await post(fleet, 1)
    await promote(fleet)
    gone = fleet.hosts[1]
    await fleet.plane.orchestrator.changes.withdraw(fleet.service, [gone], OPERATOR)
    await eventually(lambda: fleet.versions()[1] is None)
    done = await back(fleet, 1)
    assert gone not in done.changed_hosts
    panic = PanicRequest(service_id=fleet.service)
    (observing,) = (await fleet.plane.orchestrator.panic.observe(panic, OPERATOR)).services
    assert gone not in observing.hosts
    await eventually(lambda: fleet.versions() == [3, None, 3, 3])
    await post(fleet, 4)
    await eventually(lambda: fleet.versions() == [4] * 4)


JOINED = {
    "posted to all": ("post",),
    "promoted": ("post", "promote"),
    "posted, and no host is left": ("post", "gone"),
    "promoted, and no host is left": ("post", "promote", "gone"),
    "promoted, and each host panicked by itself": ("post", "promote", "panics"),
}


@pytest.mark.parametrize("asked", ["service", "fleet"])
@pytest.mark.parametrize("before", JOINED)
async def test_who_joins_after_a_panic_enforces_nothing(fleet, before, asked):
    plane, registry = fleet.plane.orchestrator, fleet.plane.orchestrator.registry
    for step in JOINED[before]:
        if step == "post":
            await post(fleet, 1)
        elif step == "promote":
            await promote(fleet)
        elif step == "gone":
            for host in fleet.hosts:
                await plane.changes.withdraw(fleet.service, [host], OPERATOR)
        else:
            for host in fleet.hosts:
                await plane.panic.observe(PanicRequest(host_id=host), OPERATOR)
    wanted = PanicRequest(fleet=True) if asked == "fleet" else PanicRequest(service_id=fleet.service)
    done = await plane.panic.observe(wanted, OPERATOR)
    assert fleet.service in {one.service_id for one in done.services}
    labels = (await registry.one(fleet.service)).host_labels
    joined = await fleet.plane.agent(f"joined-{fleet.service}", labels)
    await eventually(lambda: joined.in_force.get(fleet.service))
    version = joined.in_force[fleet.service].version
    row = await fleet.plane.store.row("content", fleet.service, version)
    assert row["mode"] == "observe"


@pytest.mark.parametrize("undone", ["rollback", "panic"])
async def test_who_brings_content_back_does_not_become_its_author(fleet, undone):
    changes = fleet.plane.orchestrator.changes
    mallory = Who(Principal("mallory", "approver", id="m1"), "test", "req-4")
    await post(fleet, 1)
    await promote(fleet)
    await post(fleet, 2, [fleet.hosts[0]], mallory, edges=[])
    if undone == "rollback":
        await post(fleet, 3, [fleet.hosts[0]], mallory)
        version = (await back(fleet, 2)).version
    else:
        panic = PanicRequest(host_id=fleet.hosts[0])
        version = (await fleet.plane.orchestrator.panic.observe(panic, OPERATOR)).services[0].version
    with pytest.raises(Forbidden, match="was posted by mallory"):
        await changes.promote(fleet.service, version, mallory)
