"""However many services are registered, each host's manifest is one that its agent believes, and a host whose
manifest cannot be made or sent holds up no other; on a real NATS and PostgreSQL.
"""

import time
from hashlib import sha256

import pytest
import pytest_asyncio
from tests.support.agents import verify
from tests.support.control import WHO, body, running_plane
from tests.support.engines import eventually

from aegisflux.domain.errors import OverLimit
from aegisflux.domain.manifest import MAX_SERVICES, KeySet, ServiceReport
from aegisflux.domain.trust import Trusted, accept_keys, accept_manifest
from aegisflux.services.orchestrator import relay
from aegisflux.wire import envelope, subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
FIRST = 1000
LONG = [f"cgroup:a{k}/{'b' * 150}/**/{'c' * 240}*/{'d' * 90}" for k in range(32)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("plane"), renew_every=3600.0) as plane:
        plane.web = await plane.agent("web", {"role": "web"})
        plane.db = await plane.agent("db", {"role": "db"})
        await plane.orchestrator.registry.put(101, "s101", ["unit:s101"], {}, WHO)
        await plane.orchestrator.snapshots.post(body(101, 1), ["web", "db"], "", WHO)
        await eventually(lambda: 101 in plane.web.in_force and 101 in plane.db.in_force)
        yield plane


@pytest_asyncio.fixture(loop_scope="module")
async def register(plane):
    """Registers services, and forgets them after the test."""
    registered = []

    async def put(count, selectors=None, labels=None, first=FIRST):
        for number in range(first, first + count):
            given = number, f"s{number}", selectors or [f"unit:s{number}"], labels or {}
            registered.append(number)
            if number < first + count - 1:  # as the last one is, without a round to all hosts for each
                await plane.store.run("put_service", *given, 0)
        return (await plane.orchestrator.registry.put(*given, WHO)).warning

    yield put
    for number in registered:
        await plane.store.run("delete_service", number)
        await plane.store.run("delete_service_row", number)
    await plane.store.run("bump_all")


async def believed(plane, agent, lease_of=101):
    """The services of the newest manifest on the bus, as an agent of ours believes it."""

    async def newest():
        row = await plane.store.row("host", agent.host)
        return row["serial"] == agent.serial

    await eventually(newest, 20)
    message = await plane.bus.last(subjects.desired(agent.host))
    sealed = envelope.decode_manifest_message(message.payload, 2 << 20)
    root = plane.orchestrator.core.keys.root_public
    trusted = Trusted(host_id=agent.host, root=root, keys=KeySet(0, ()))
    trusted = accept_keys(trusted, envelope.opened(sealed.keys, envelope.KEY_SET), verify)
    opened = envelope.opened(sealed.manifest, envelope.MANIFEST)
    digest = sha256(opened.payload).hexdigest()
    _, manifest = accept_manifest(trusted, opened, digest, time.time(), verify, None, pytest.fail)
    return {service.service_id: service for service in manifest.services}


async def troubles(plane, host):
    return " ".join((await plane.orchestrator.hosts.one(host)).troubles)


KINDS = {  # how many, selectors, labels: whether something is left out, and what is said
    "as many as there is room for": (255, None, {}, False, ""),
    "one more": (256, None, {}, True, "offered 257 services; a manifest has room for 256"),
    "many more": (400, None, {}, True, "offered 401 services; a manifest has room for 256"),
    "in bytes": (80, LONG, {}, True, "a manifest has room for 256 and 983040 bytes"),
    "of one label": (300, None, {"role": "web"}, True, "host web would be offered 301 services"),
    "of labels that no host has": (300, None, {"role": "cache"}, False, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_assigned_is_renewed_however_many_are_registered(plane, register, kind):
    count, selectors, labels, left_out, said = KINDS[kind]
    warning = await register(count, selectors, labels)
    assert (said in warning, bool(warning)) == (True, bool(said))
    await plane.store.run("bump", ["web", "db"])  # as a renewal does
    plane.orchestrator.core.wake()
    for agent in (plane.web, plane.db):
        found = await believed(plane, agent)
        assert found[101].active is not None
        concerned = not labels or labels["role"] == agent.host
        assert len(found) <= MAX_SERVICES
        assert (len(found) < 1 + count) == (left_out or not concerned)
        trouble = await troubles(plane, agent.host)
        assert ("are left out of this host's manifest: s1" in trouble) == (left_out and concerned)
        (host,) = [h for h in (await plane.orchestrator.views.status(101)).hosts if h.host_id == agent.host]
        assert " ".join(host.troubles) == trouble


async def test_500_services_with_labels_reach_the_hosts_that_are_named(plane, register):
    assert await register(250, None, {"role": "web"}) == ""
    assert await register(250, None, {"role": "db"}, FIRST + 250) == ""
    web, db = await believed(plane, plane.web), await believed(plane, plane.db)
    assert set(web) == {101, *range(FIRST, FIRST + 250)}
    assert set(db) == {101, *range(FIRST + 250, FIRST + 500)}


async def test_what_is_named_by_labels_comes_before_what_is_offered_to_all(plane, register):
    await register(300)
    await register(20, None, {"role": "web"}, FIRST + 300)
    assert set(await believed(plane, plane.web)) >= {101, *range(FIRST + 300, FIRST + 320)}


def cannot_be_made(plane, monkeypatch):
    made = relay.fitted
    monkeypatch.setattr(relay, "fitted", lambda host, *more: 1 / 0 if host[0] == "a" else made(host, *more))
    return "it gets no newer manifest: division by zero"


def too_long(plane, monkeypatch):
    made = relay.fitted

    def fitted(host, *more):
        if host[0] == "a":
            raise OverLimit("services_per_host", 256, 300, f"the snapshots of host {host}")
        return made(host, *more)

    monkeypatch.setattr(relay, "fitted", fitted)
    return "host a0: over the limit services_per_host: at most 256, got 300"


def cannot_be_sent(plane, monkeypatch):
    core = plane.orchestrator.core
    publish = core.bus.publish

    async def refusing(subject, payload, **more):
        if subject.startswith(subjects.desired("a")):
            raise OverLimit("message", 1, 2, subject)
        return await publish(subject, payload, **more)

    monkeypatch.setattr(core.bus, "publish", refusing)
    return "over the limit message: at most 1, got 2"


@pytest.mark.parametrize("way", [cannot_be_made, too_long, cannot_be_sent])
async def test_a_host_without_a_manifest_holds_up_no_other(plane, monkeypatch, way):
    monkeypatch.setattr(relay, "BATCH", 4)
    said = way(plane, monkeypatch)
    names = [f"a{n}" for n in range(9)]  # before the others by name, and more than two batches
    for n, name in enumerate(names):
        await plane.store.run("put_host", name, n.to_bytes(32, "big"), {}, 0)
    before = {agent.host: agent.serial for agent in (plane.web, plane.db)}
    await plane.store.run("bump_all")
    plane.orchestrator.core.wake()
    await eventually(lambda: all(a.serial > before[a.host] for a in (plane.web, plane.db)), 10)
    assert said in await troubles(plane, "a0")
    assert await troubles(plane, "web") == ""
    monkeypatch.undo()
    await plane.store.run("bump_all")
    plane.orchestrator.core.wake()

    async def all_sent():
        return (await plane.store.row("dirty_count"))["dirty"] == 0

    await eventually(all_sent, 10)
    assert await troubles(plane, "a0") == ""
    for name in names:
        await plane.orchestrator.hosts.release(name, WHO)


async def test_what_an_older_version_stored_and_could_never_send_is_made_again(plane):
    row = await plane.store.row("host", "web")
    await plane.store.run("bump", ["web"])
    long = ["web"], [row["serial"] + 1], [b"x" * (2 << 20)], 0, [""], [""]
    assert await plane.store.rows("store_built", *long)
    plane.orchestrator.core.wake()
    await eventually(lambda: plane.web.serial > row["serial"] + 1, 10)
    assert 101 in await believed(plane, plane.web)


async def test_more_snapshots_than_a_manifest_has_room_for_are_refused(plane, register):
    await register(62, LONG[:31])
    orchestrator, given = plane.orchestrator, []
    with pytest.raises(OverLimit, match="snapshots of host web: over the limit manifest_bytes"):
        for number in range(FIRST, FIRST + 62):
            await orchestrator.snapshots.post(body(number, 1), ["web"], "", WHO)
            given.append(number)
    assert len(given) > 55
    await orchestrator.snapshots.post(body(101, 2), ["web", "db"], "", WHO)  # needs no more room
    found = await believed(plane, plane.web)
    assert {number for number, service in found.items() if service.active} == {101, *given}
    longer = [*(f"unit:{'x' * 200}{k}" for k in range(31)), "unit:y"]
    with pytest.raises(OverLimit, match="snapshots of host web: over the limit manifest_bytes"):
        for number in given:
            await orchestrator.registry.put(number, f"s{number}", [*LONG[:31], LONG[31]], {}, WHO)
    await orchestrator.registry.put(given[0], f"s{given[0]}", longer, {}, WHO)
    for number in given:
        await orchestrator.changes.withdraw(number, None, WHO)


async def test_a_host_that_reports_every_service_stops_no_snapshot(plane, register, monkeypatch):
    liar = await plane.agent("liar")
    await register(6)
    monkeypatch.setattr("aegisflux.services.orchestrator.state.MAX_SERVICES", 5)
    monkeypatch.setattr("aegisflux.domain.manifest_room.MAX_SERVICES", 5)
    services = tuple(
        ServiceReport(number, "pending", cgroups=("x",)) for number in (101, *range(FIRST, FIRST + 6))
    )
    await liar.beat(services=services)

    async def reported():
        return sum(row["host_id"] == "liar" for row in await plane.store.rows("all_running")) == 7

    await eventually(reported)
    for number in range(FIRST, FIRST + 6):
        await plane.orchestrator.snapshots.post(body(number, 1), None, "", WHO)
        await plane.orchestrator.changes.promote(number, None, WHO)
    given = await plane.store.rows("assignments_of_host", "liar")
    assert len(given) == 5
    await plane.orchestrator.hosts.release("liar", WHO)
    for number in range(FIRST, FIRST + 6):
        await plane.orchestrator.changes.withdraw(number, None, WHO)
