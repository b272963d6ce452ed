"""What a host, an operator or bad luck could do to rollouts, and does not."""

import asyncio

import msgspec
import pytest
import pytest_asyncio
from tests.support.control import WHO, body
from tests.support.engines import eventually
from tests.support.rollouts import GATE, modes, running_fleet, running_world

from aegisflux.domain import renewal
from aegisflux.domain.errors import Conflict
from aegisflux.domain.manifest import CandidateRef, ServiceReport
from aegisflux.services.orchestrator.panic import PanicRequest
from aegisflux.services.orchestrator.rollouts import Move

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
NUMBERS = iter(range(1201, 2000))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    async with running_world(tmp_path_factory.mktemp("hostile")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(world):
    async with running_fleet(world, next(NUMBERS)) as fleet:
        yield fleet


async def test_an_event_without_a_real_peer_spoils_nothing(fleet):
    rollout = await fleet.begun(5432)
    await fleet.denied(fleet.hosts[0], rollout.parts[0].digest, 1, candidate=True, peer="zzz")
    await fleet.goes_on(rollout.id, "canary")
    (way,) = (await fleet.rollouts.one(rollout.id)).rollout.looked.ways
    assert (way.server, way.legitimate) == ("?", False)


async def test_a_picture_that_cannot_be_read_is_left_out_and_the_rollout_goes_on(fleet):
    rollout = await fleet.begun(5432)
    broken = {"ways": [{"host": None}]}
    run = msgspec.to_builtins((await fleet.rollouts.one(rollout.id)).rollout.run)
    await fleet.plane.store.run("looked", rollout.id, run, run, broken, 0.0)
    await fleet.goes_on(rollout.id, "canary")


async def test_a_service_that_a_rollout_is_carrying_is_not_deleted(fleet):
    rollout = await fleet.begun(5432)
    with pytest.raises(Conflict, match=f"aegisflux rollout abort {rollout.id}"):
        await fleet.plane.orchestrator.registry.delete(fleet.service, WHO)


async def test_a_host_without_the_labels_of_a_service_is_not_believed_to_run_it(fleet):
    agent = await fleet.plane.agent(
        f"liar-{fleet.service}", {"role": "other"}, addresses=("10.66.0.1", "zzz")
    )
    agent.beside = {fleet.service: CandidateRef(1, "sha256:" + "0" * 64)}
    await agent.beat(cgroups=("made-up",))

    async def told():
        row = await fleet.plane.store.row("host", agent.host)
        return row["heartbeat"] is not None

    await eventually(told)
    inventory = await fleet.segmenter.plans.inventory()
    assert inventory.services[f"s{fleet.service}"].hosts == tuple(fleet.hosts)
    assert inventory.hosts[agent.host].addresses == ("10.66.0.1",)
    await fleet.plane.orchestrator.hosts.release(agent.host, WHO)


async def test_panic_also_ends_what_only_observes_and_what_was_posted_by_hand(fleet):
    await fleet.promoted(5432)
    post = fleet.plane.orchestrator.snapshots.post
    await post(body(fleet.service, 2), [fleet.hosts[0]], "", WHO)
    await eventually(lambda: fleet.versions() == [2, 1, 1, 1])
    panic = fleet.plane.orchestrator.panic
    (done,) = (await panic.observe(PanicRequest(service_id=fleet.service), WHO)).services
    assert done.version == 3

    async def observes():
        return await modes(fleet) == ["observe"] * 4

    await eventually(observes)
    rollout = await fleet.begun(5432, 443)
    told = await panic.observe(PanicRequest(fleet=True), WHO)
    assert rollout.id in told.aborted
    assert (await fleet.rollouts.one(rollout.id)).rollout.run.stage == "aborted"


async def test_a_host_in_panic_is_not_enforced_upon_by_a_later_wave(fleet):
    await fleet.promoted(5432)
    rollout = await fleet.begun(5432, 443)
    await fleet.goes_on(rollout.id, "canary")
    last = fleet.hosts[3]
    await fleet.plane.orchestrator.panic.observe(PanicRequest(host_id=last), WHO)
    told = await fleet.at(rollout.id, "rolled_back")
    assert told.rollout.run.reason.startswith(f"s{fleet.service} was changed meanwhile: version 3 was stored")

    async def there():
        return await modes(fleet) == ["enforce", "enforce", "enforce", "observe"]

    await eventually(there)


async def test_hosts_that_had_nothing_get_nothing_back(fleet):
    """Something was posted by hand on one host; the rollout's failure gives it to no other."""
    post = fleet.plane.orchestrator.snapshots.post
    await post(body(fleet.service, 1), [fleet.hosts[0]], "", WHO)
    await eventually(lambda: fleet.versions() == [1, None, None, None])
    both = {"canary_hosts": tuple(fleet.hosts[:2])}
    rollout = await fleet.begun(5432, **both)
    await fleet.move(rollout, "promote")
    await eventually(lambda: fleet.versions()[:2] == [2, 2])
    await fleet.move((await fleet.rollouts.one(rollout.id)).rollout, "abort")
    await eventually(lambda: fleet.versions() == [3, None, None, None])


async def test_a_budget_of_more_than_one_is_one(fleet):
    """Two were denied while observing, of many; the canary's first look is of few, and goes on."""
    await fleet.calls(port=6379, seconds_ago=3600)
    gate = msgspec.structs.replace(GATE, denied_budget=5, fine=0.001, bad=0.02)
    rollout = await fleet.begun(5432, gate=gate)
    await fleet.calls(count=100_000)
    await fleet.denied(fleet.hosts[0], rollout.parts[0].digest, 6379, candidate=True, count=2)
    await fleet.goes_on(rollout.id, "canary")
    await asyncio.sleep(1.2)
    assert (await fleet.rollouts.one(rollout.id)).rollout.run.stage in ("canary", "waves")


async def test_what_comes_back_asks_for_no_confirmation(fleet):
    """The control plane may be gone a moment later: the host keeps what came back."""
    await fleet.promoted(5432)
    rollout = await fleet.begun(5432, 443)
    await fleet.move(rollout, "promote")
    await eventually(lambda: fleet.versions()[0] == 2)
    assert fleet.agents[fleet.hosts[0]].in_force[fleet.service].confirm_seconds == 30
    await fleet.rollouts.move(rollout.id, "abort", Move(stage="canary"), WHO)
    await eventually(lambda: fleet.versions()[0] == 3)
    assert fleet.agents[fleet.hosts[0]].in_force[fleet.service].confirm_seconds == 0


async def test_an_accepted_caller_from_outside_is_accepted_from_any_address_of_its_class(fleet):
    from_outside = {"direction": "ingress", "port": 8022, "peer": "10.8.0.1"}
    await fleet.calls(seconds_ago=3600, **from_outside)
    rules = f"\n  - {{from: s{fleet.service}, to: 10.0.1.0/24, ports: [tcp/5432]}}"
    rollout = await fleet.begun(rules=rules, accept=True)
    said = {"candidate": True, "ingress": True, "peer": "10.8.0.77"}
    await fleet.denied(fleet.hosts[0], rollout.parts[0].digest, 8022, **said)
    await fleet.goes_on(rollout.id, "canary")


async def test_a_host_without_a_label_denies_nobody_and_stops_no_renewal(fleet, monkeypatch):
    """It reports the cgroup of a service that is denied, and more addresses than there is room for."""
    plane, other = fleet.plane, 900_000 + fleet.service
    orchestrator, scratch, caller = plane.orchestrator, f"scratch{fleet.service}", f"s{fleet.service}"
    await orchestrator.registry.put(other, scratch, ["unit:scratch.service"], {}, WHO)
    reported = ServiceReport(other, "pending", cgroups=("system.slice/scratch.service",))

    async def joins(host, labels, addresses, *services):
        agent = await plane.agent(f"{host}-{fleet.service}", labels, addresses=addresses)
        await agent.beat(services=services)

        async def known():
            rows = await plane.store.rows("host_places")
            return any(row["host_id"] == agent.host and row["addresses"] for row in rows)

        await eventually(known)

    await joins("scr", {"role": "scratch"}, ("10.0.2.1",), reported)
    rules = (
        f"\n  - {{from: {caller}, to: [10.0.1.0/24, 'label:role=db'], ports: [tcp/5432]}}"
        f"\n  - {{from: {caller}, to: {scratch}, ports: [tcp/1, tcp/2, tcp/3, tcp/5432], action: deny}}"
        f"\nservices: [{caller}]"
    )
    await joins("db1", {"role": "db"}, ("10.7.7.1",))
    told = await fleet.promoted(rules=rules)
    monkeypatch.setattr(renewal, "SETTLED_SECONDS", 0.0)
    claimed = ("10.0.1.1", *(f"{9 + (n >> 14)}.{n >> 7 & 127}.{(n & 127) * 2}.4" for n in range(45_000)))
    await joins("evil", {}, claimed, reported)
    await joins("db2", {"role": "db"}, ("10.7.7.3",))

    async def renewed():
        await orchestrator.renewals.look()
        return renewal.RENEWED in (await fleet.rollouts.one(told.rollout.id)).rollout.run.reason

    await eventually(renewed)
    first, second = [
        msgspec.json.decode((await orchestrator.views.one(fleet.service, n)).snapshot) for n in (1, 2)
    ]
    assert {e["cidr"] for e in first["deny"]} == {"10.0.2.1/32"}
    assert second["deny"] == first["deny"]
    assert {e["dst_cidr"] for e in second["edges"]} - {e["dst_cidr"] for e in first["edges"]} == {
        "10.7.7.3/32"
    }

    async def said():
        await orchestrator.renewals.look()
        reason = (await fleet.rollouts.one(told.rollout.id)).rollout.run.reason
        return f"host evil-{fleet.service} runs {scratch} by report alone and is not denied" in reason

    await eventually(said)
