"""A host whose heartbeats and answers cannot be stored harms no other, on a real NATS and PostgreSQL."""

import msgspec
import pytest
import pytest_asyncio
from msgspec.structs import replace
from tests.support.control import WHO, body, running_plane
from tests.support.engines import eventually

from aegisflux.domain.errors import Refused
from aegisflux.domain.manifest import Ack, Heartbeat, Nack, ServiceReport
from aegisflux.domain.own_addresses import MOST_TOLD
from aegisflux.runtime import places
from aegisflux.wire import envelope, subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
DEAD = subjects.stream_of(subjects.dead("x")).name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("plane")) as plane:
        plane.good = await plane.agent("good")
        plane.bad = await plane.agent("bad")
        await plane.orchestrator.snapshots.post(body(101, 1), ["good", "bad"], "", WHO)
        await eventually(lambda: 101 in plane.good.in_force and 101 in plane.bad.in_force)
        yield plane


REPORT = ServiceReport(101, "in_force", 1)
BEAT = Heartbeat("bad", "boot", "0", (1,), (), 1, (REPORT,), 0.0, False, "simulated")


async def seen(plane, host):
    row = await plane.store.row("host", host)
    return row["seen_at"]


async def letters(plane):
    return [message.headers["Aegisflux-Reason"] for message in await plane.bus.read(DEAD, 0, 1000)]


def raw_beat(**fields):
    return msgspec.msgpack.encode(msgspec.to_builtins(BEAT) | fields)


BEATS = {
    "a NUL in a cgroup": replace(BEAT, services=(replace(REPORT, cgroups=("a\0b",)),)),
    "a NUL in the version": replace(BEAT, agent_version="\0"),
    "a NUL in a counter's name": replace(BEAT, loss={"\0": 1}),
    "a serial of 70 bits": replace(BEAT, serial=(1 << 64) - 1),
    "a version out of range": replace(BEAT, services=(replace(REPORT, version=(1 << 64) - 1),)),
    "an interval that is no number": replace(BEAT, interval=float("nan")),
    "a clock that is no number": replace(BEAT, clock=float("inf")),
    "a name that is no text": raw_beat(datapath=msgspec.Raw(b"\xa1\xff")),
    "very deep": raw_beat(loss=msgspec.Raw(b"\x91" * 4000 + b"\x01")),
    "another host": replace(BEAT, host_id="good"),
    "no heartbeat": b"\xc1",
}


@pytest.mark.parametrize("bad", BEATS)
async def test_a_heartbeat_that_cannot_be_stored_is_a_dead_letter_alone(plane, bad):
    before, dead = await seen(plane, "good"), len(await letters(plane))
    said, key = BEATS[bad], plane.bad.key
    payload = said if isinstance(said, bytes) else msgspec.msgpack.encode(said)
    sealed = envelope.seal(envelope.HEARTBEAT, payload, "bad", lambda data: key.sign(data).signature)
    await plane.bad.bus.publish(subjects.heartbeat("bad"), envelope.encode(sealed), msg_id=f"bad {bad}")
    await plane.good.beat()

    async def heard():
        return await seen(plane, "good") > before

    async def buried():
        return len(await letters(plane)) > dead

    await eventually(heard)
    await eventually(buried)
    assert {host.host_id for host in await plane.orchestrator.hosts.all()} >= {"good", "bad"}


async def test_a_cgroup_whose_name_holds_a_line_feed_is_one_cgroup(plane):
    services = (replace(REPORT, cgroups=("a\nsystem.slice/web.service", "c\x1b")),)
    await plane.bad.beat(services=services)

    async def stored():
        rows = await plane.store.rows("reports", 101)
        found = [row["cgroups"] for row in rows if row["host_id"] == "bad"]
        return found == [["a\\x0asystem.slice/web.service", "c\\x1b"]]

    await eventually(stored)


async def test_a_host_of_many_addresses_is_believed_as_many_as_an_agent_tells(plane):
    many = tuple(f"{9 + (n >> 14)}.{n >> 7 & 127}.{(n & 127) * 2}.4" for n in range(45_000))
    await plane.bad.beat(addresses=many)

    async def stored():
        rows = {row["host_id"]: row["addresses"] for row in await plane.store.rows("host_places")}
        return rows["bad"] == list(many[:MOST_TOLD])

    await eventually(stored)
    bad = await plane.orchestrator.hosts.one("bad")
    assert [text for text in bad.troubles if "45000 are reported, and 64 are believed" in text]
    row = await plane.store.row("host", "bad")
    assert len(row["heartbeat"]) < 4096, "no more of it is kept"
    await plane.bad.beat(addresses=("10.0.0.1",))

    async def well():
        return (await plane.orchestrator.hosts.one("bad")).troubles == ()

    await eventually(well)
    # a store that an earlier version filled
    await plane.store.run("store_heartbeats", ["bad"], [5.0], [b"\x80"], [1], ["\n".join(many)], 1.0, [None])
    assert len((await places.read(plane.store)).inventory.hosts["bad"].addresses) == MOST_TOLD


ANSWERS = {
    "a NUL in a detail": Nack("bad", "load_failed", "\0", 1, 101),
    "a serial of 64 bits": Nack("bad", "load_failed", "x", (1 << 64) - 1, 101),
    "a digest of NUL": Ack("bad", 1, 101, 1, "sha256:" + "0" * 64, "\0", 1, 1.0),
    "a time that is none": Ack("bad", 1, 101, 1, "sha256:" + "0" * 64, "x", 1, float("nan")),
}


@pytest.mark.parametrize("bad", ANSWERS)
async def test_an_answer_that_cannot_be_stored_is_a_dead_letter_alone(plane, bad):
    dead = len(await letters(plane))
    await plane.bad.send(ANSWERS[bad])
    await plane.good.send(Nack("good", "load_failed", bad, plane.good.serial, 101))

    async def stored():
        status = await plane.orchestrator.views.status(101)
        (host,) = (one for one in status.hosts if one.host_id == "good")
        return host.last_nack is not None and host.last_nack.detail == bad

    async def buried():
        return len(await letters(plane)) > dead

    await eventually(stored)
    await eventually(buried)


async def test_a_stored_heartbeat_of_another_version_leaves_the_list_of_hosts(plane):
    await plane.good.beat()

    async def versions():
        return {host.host_id: host.agent_version for host in await plane.orchestrator.hosts.all()}

    async def heard():
        return (await versions())["good"]

    await eventually(heard)
    await plane.store.run("store_heartbeats", ["bad"], [5.0], [b"\xc1"], [1], [""], 1.0, [None])
    found = await versions()
    assert found["bad"] is None
    assert found["good"] == "0"
    await plane.orchestrator.answers.confirm({"bad", "good"})


@pytest.mark.parametrize("value", ["a\0b", "\ud800", 1 << 70])
async def test_what_the_store_cannot_hold_is_a_refusal(plane, value):
    name, ttl = (value, 60) if isinstance(value, str) else ("x", value)
    with pytest.raises(Refused):
        await plane.store.run("add_audit", 1, 1, name, "", "", "", "", "", "", "", ttl, b"")
