"""What a host may say of itself in a heartbeat, and what it holds up with it: nothing."""

import math
import time

import msgspec
import pytest
import pytest_asyncio
from tests.support.control import WHO, running_plane
from tests.support.engines import eventually

from aegisflux.domain.errors import Conflict, Invalid
from aegisflux.domain.manifest import Heartbeat
from aegisflux.runtime import places
from aegisflux.services.orchestrator.rotation import RotateRequest
from aegisflux.wire import envelope, subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("plane")) as plane:
        plane.bad, plane.good = await plane.agent("bad"), await plane.agent("good")
        yield plane


async def sent(agent, **fields) -> None:
    """A heartbeat of any fields, signed with the host's own key."""
    beat = Heartbeat(agent.host, "boot", "0", (1,), (), 1, (), 1.7e9, False, "simulated")
    body = msgspec.msgpack.encode(msgspec.to_builtins(beat) | fields)
    sealed = envelope.seal(envelope.HEARTBEAT, body, agent.host, lambda data: agent.key.sign(data).signature)
    where = subjects.heartbeat(agent.host)
    await agent.bus.publish(where, envelope.encode(sealed), msg_id=f"{agent.host}-{time.time_ns()}")


async def letters(plane):
    return await plane.bus.read(subjects.stream_of(subjects.dead("x")).name, 0, 1000)


REPORT = {"service_id": 1, "state": "in_force"}
NUMBERS = {
    "an interval of NaN": {"interval": math.nan},
    "an interval without end": {"interval": math.inf},
    "an interval of years": {"interval": 1e9},
    "a negative interval": {"interval": -1.0},
    "a clock of NaN": {"clock": math.nan},
    "a clock beyond all time": {"clock": 1e300},
    "a serial of 64 bits": {"serial": (1 << 64) - 1},
    "a negative serial": {"serial": -1},
    "a version of 500 KB": {"agent_version": "9" * 500_000},
    "a boot id of a line feed": {"boot_id": "a\nb"},
    "a version of 64 bits in a report": {"services": [REPORT | {"version": (1 << 64) - 1}]},
    "a deadline of 64 bits": {"services": [REPORT | {"deadline": 1 << 63}]},
    "a service of 64 bits": {"services": [REPORT | {"service_id": 1 << 63}]},
    "a count of 64 bits": {"loss": {"x": (1 << 64) - 1}},
}  # fmt: skip


@pytest.mark.parametrize("what", NUMBERS)
async def test_a_heartbeat_out_of_range_is_one_dead_letter(plane, what):
    before = len(await letters(plane))
    row = await plane.store.row("host", "bad")
    await sent(plane.bad, **NUMBERS[what])

    async def buried():
        return len(await letters(plane)) == before + 1

    await eventually(buried)
    assert (await plane.store.row("host", "bad"))["seen_at"] == row["seen_at"]


async def test_a_host_that_is_behind_holds_up_no_rotation(plane):
    """An old serial and an interval of NaN: it was waited for, and never offline."""
    await plane.good.beat()
    await plane.bad.beat()
    rotation = plane.orchestrator.rotation
    with pytest.raises(Invalid, match="without: expected hosts that are enrolled"):
        await rotation.rotate(RotateRequest(["nobody"]), WHO)
    tried = await rotation.rotate(RotateRequest(["bad"]), WHO, dry_run=True)
    assert (tried.dry_run, tried.phase, tried.without) == (True, "none", ("bad",))

    async def both_are_named():
        await plane.good.beat()
        await sent(plane.bad, serial=0)
        tried = await rotation.rotate(RotateRequest(["bad"]), WHO, dry_run=True)
        all_of_them = await rotation.rotate(RotateRequest(wait_seconds=60), WHO, dry_run=True)
        return (tried.waiting_for, tried.waiting, all_of_them.waiting_for, all_of_them.waiting) == (
            ("good",), 1, ("bad", "good"), 2
        )  # fmt: skip

    await eventually(both_are_named)
    all_of_them = await rotation.rotate(RotateRequest(wait_seconds=60), WHO, dry_run=True)
    assert 0 < all_of_them.waits_until - plane.orchestrator.core.now() <= 60
    assert (await rotation.state()).phase == "none"
    begun = await rotation.rotate(RotateRequest(wait_seconds=3600), WHO)
    assert begun.waits_until is not None

    async def only_bad():
        await plane.good.beat()
        await sent(plane.bad, serial=0)
        state = await rotation.state()
        return state.waiting_for == ("bad",) and state.waiting == 1

    await eventually(only_bad)
    with pytest.raises(Conflict, match="name hosts"):
        await rotation.rotate(RotateRequest(), WHO)
    for asked in (RotateRequest(["bad"], wait_seconds=60), RotateRequest(wait_seconds=60)):
        for dry_run in (True, False):
            with pytest.raises(Conflict, match="under way"):
                await rotation.rotate(asked, WHO, dry_run)
    tried = await rotation.rotate(RotateRequest(["bad"]), WHO, dry_run=True)
    assert (tried.waiting_for, tried.waiting, tried.dry_run) == ((), 0, True)
    assert (await rotation.state()).waiting_for == ("bad",), "nothing was changed"
    await rotation.rotate(RotateRequest(["bad"]), WHO)

    async def over():
        await plane.good.beat()
        await sent(plane.bad, serial=0)
        return (await rotation.state()).phase == "none"

    await eventually(over, 20)
    lines = await plane.store.rows("audit_lines", -1, None)
    said = {line["action"]: line for line in lines}
    assert said["keys.without"]["after"] == "without bad"
    assert (said["keys.switch"]["reason"], said["keys.remove"]["reason"]) == ("without bad", "without bad")


async def test_a_rotation_goes_on_at_its_deadline_and_says_without_whom(plane):
    rotation = plane.orchestrator.rotation
    await rotation.begin(WHO, wait=2)

    async def over():
        await plane.good.beat()
        await sent(plane.bad, serial=0)
        return (await rotation.state()).phase == "none"

    await eventually(over, 30)
    lines = await plane.store.rows("audit_lines", -1, None)
    removed = [line for line in lines if line["action"] == "keys.remove"]
    assert [line["reason"] for line in removed] == ["without bad"] * 2


async def inventory(plane):
    return (await places.read(plane.store)).inventory.hosts


async def test_an_address_that_two_hosts_report_is_used_for_neither(plane):
    await plane.good.beat(addresses=("10.1.0.1", "10.1.0.2"))

    async def known():
        return (await inventory(plane))["good"].addresses == ("10.1.0.1", "10.1.0.2")

    await eventually(known)
    await plane.bad.beat(addresses=("10.1.0.9", "::ffff:10.1.0.1"))

    async def shared():
        hosts = await inventory(plane)
        return (hosts["good"].addresses, hosts["bad"].addresses) == (("10.1.0.2",), ("10.1.0.9",))

    await eventually(shared)
    for name, other in (("good", "bad"), ("bad", "good")):
        view = await plane.orchestrator.hosts.one(name)
        text = f"10.1.0.1 is also reported by {other}: it is used for none of them"
        assert view.address_conflicts == (text,)
    views = {view.host_id: view for view in await plane.orchestrator.hosts.all()}
    assert all(views[name].address_conflicts for name in ("good", "bad"))
    await plane.orchestrator.upkeep.count_shared_addresses()
    plane.orchestrator.upkeep._count_at = 0.0
    await plane.orchestrator.upkeep.count_shared_addresses()
    assert plane.orchestrator.core.shared_addresses == 1
    await plane.bad.beat(addresses=("10.1.0.9",))
    await eventually(known)
    assert (await plane.orchestrator.hosts.one("good")).address_conflicts == ()


async def test_addresses_of_no_host_are_left_out_and_named(plane):
    await plane.bad.beat(addresses=("0.0.0.0", "224.0.0.1", "10.1.0.9", "255.255.255.255", "127.0.0.1"))

    async def left_out():
        view = await plane.orchestrator.hosts.one("bad")
        return [text for text in view.troubles if "no host can be called by 0.0.0.0, 224.0.0.1" in text]

    await eventually(left_out)
    assert (await inventory(plane))["bad"].addresses == ("10.1.0.9",)


async def test_what_the_former_owner_of_a_name_said_is_forgotten(plane):
    former = await plane.agent("handed-on")
    await former.beat(addresses=("10.1.0.77",), serial=(1 << 63) - 1)

    async def known():
        return (await inventory(plane))["handed-on"].addresses == ("10.1.0.77",)

    await eventually(known)
    await plane.orchestrator.hosts.release("handed-on", WHO)
    await plane.enroll("handed-on")
    row = await plane.store.row("host", "handed-on")
    assert (await inventory(plane))["handed-on"].addresses == ()
    assert (row["seen_at"], row["heartbeat_serial"]) == (0, 0)
