"""A disk that takes nothing: what is in force stays renewed, what is new waits, all of it is reported."""

import errno
import os

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.manifest import CandidateRef, ServiceState
from aegisflux.wire import subjects
from support.agents import AgentLab, body

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def lab():
    return await AgentLab().begin()


def broken(lab, monkeypatch, number=errno.ENOSPC):
    """Let every write fail from now on; the context ends it."""

    def refuse(name, *_):
        cause = OSError(number, os.strerror(number))
        raise Unavailable(f"/state/{name}: {cause.strerror}") from cause

    for method in ("write", "delete", "keep_content"):
        monkeypatch.setattr(lab.store, method, refuse)


def deadline(lab):
    (held,) = lab.kernel.held()
    return held.deadline_ns


@pytest.mark.parametrize(
    ("number", "word", "reason"),
    [
        (errno.ENOSPC, "disk full", "disk_full"),
        (errno.EDQUOT, "disk full", "disk_full"),
        (errno.EROFS, "disk read-only", "not_durable"),
        (errno.EIO, "disk failed", "not_durable"),
    ],
)
async def test_a_renewal_moves_the_deadline_and_what_is_new_waits(lab, monkeypatch, number, word, reason):
    one, two = lab.one_edge(), lab.one_edge(2)
    await lab.desire(lab.plane.service(one))
    lab.answers()
    before, known = deadline(lab), dict(lab.store.blobs)
    lab.clocks.advance(60)
    with monkeypatch.context() as disk:
        broken(lab, disk, number)
        await lab.desire(lab.plane.service(one))
        assert deadline(lab) == before + 60 * 10**9, "a renewal needs no disk"
        assert lab.said() == ["ack 101 v1"]
        assert any(text.startswith(word) for text in lab.heartbeat().troubles)
        newer = lab.plane.desired(lab.plane.service(two))
        for _ in range(2):
            await lab.give(newer)
        assert (lab.held(), lab.said()) == (["active 101 v1"], [f"nack {reason} 101 vNone"])
        assert os.strerror(number) in lab.runner.applier.failures[101][1]
        await lab.desire()
        assert lab.held() == ["active 101 v1"], "nor is anything taken away that a replay would bring back"
        lab.answers()
        assert lab.store.blobs == known
    await lab.desire(lab.plane.service(two))
    assert (lab.held(), lab.said()) == (["active 101 v2"], ["ack 101 v2"])
    await lab.runner._persist_clock()
    assert lab.heartbeat().troubles == ()


async def test_a_restart_on_a_full_disk_goes_on_with_what_the_kernel_holds(lab, monkeypatch):
    one = lab.one_edge()
    await lab.desire(lab.plane.service(one))
    lab.clocks.advance(60)
    broken(lab, monkeypatch)
    renewal = lab.plane.desired(lab.plane.service(one))
    await lab.give(renewal)
    until = deadline(lab)
    await lab.restart()
    assert (lab.held(), deadline(lab)) == (["active 101 v1"], until)
    await lab.runner.drift()
    assert deadline(lab) == until
    lab.answers()
    await lab.give(renewal)
    assert "nack" not in " ".join(lab.said())


async def test_what_was_not_written_is_written_once_there_is_room(lab, monkeypatch):
    one = lab.one_edge()
    await lab.desire(lab.plane.service(one))
    lab.clocks.advance(60)
    with monkeypatch.context() as disk:
        broken(lab, disk)
        await lab.desire(lab.plane.service(one))
    await lab.runner._persist_clock()
    assert lab.heartbeat().troubles == ()
    serial = lab.runner.accepted.trusted.serial
    assert lab.agent().accepted.trusted.serial == serial


async def test_a_content_that_cannot_be_kept_is_in_force_and_kept_later(lab, monkeypatch):
    made = lab.one_edge()
    with monkeypatch.context() as disk:

        def refuse(digest, _):
            cause = OSError(errno.ENOSPC, "No space left on device")
            raise Unavailable(f"/state/contents/{digest}: {cause.strerror}") from cause

        disk.setattr(lab.store, "keep_content", refuse)
        await lab.desire(lab.plane.service(made))
        assert lab.held() == ["active 101 v1"]
        assert any(text.startswith("disk full: /state/contents") for text in lab.heartbeat().troubles)
    await lab.runner._persist_clock()
    assert made.digest in lab.store.contents
    assert lab.heartbeat().troubles == ()


def held_deadlines(lab):
    return {held.service_id: held.deadline_ns for held in lab.kernel.held()}


CHANGES = {
    "only leases": lambda lab, one, two, new: (lab.plane.service(one), lab.plane.service(two)),
    "another service is registered": lambda lab, one, two, new: (
        lab.plane.service(one),
        lab.plane.service(two),
        ServiceState(103, "new", ("unit:new",)),
    ),
    "another service begins": lambda lab, one, two, new: (
        lab.plane.service(one),
        lab.plane.service(two),
        lab.plane.service(lab.plane.content(body(1, service_id=103, ttl_seconds=600))),
    ),
    "another service is promoted": lambda lab, one, two, new: (
        lab.plane.service(one),
        lab.plane.service(new),
    ),
    "another service is withdrawn": lambda lab, one, two, new: (
        lab.plane.service(one),
        ServiceState(102, "db", ("cgroup:db",)),
    ),
    "another service leaves": lambda lab, one, two, new: (lab.plane.service(one),),
    "another order": lambda lab, one, two, new: (lab.plane.service(two), lab.plane.service(one)),
    "it has a selector more": lambda lab, one, two, new: (
        lab.plane.service(one, selectors=("cgroup:web", "cgroup:web2")),
        lab.plane.service(two),
    ),
    "it is renamed": lambda lab, one, two, new: (lab.plane.service(one, name="www"), lab.plane.service(two)),
    "it has a candidate": lambda lab, one, two, new: (
        lab.plane.service(one, candidate=CandidateRef(2, "sha256:" + "1" * 64)),
        lab.plane.service(two),
    ),
    "it has a probe": lambda lab, one, two, new: (
        lab.plane.service(one, probes=("127.0.0.1:1",)),
        lab.plane.service(two),
    ),
    "it has a window to confirm": lambda lab, one, two, new: (
        lab.plane.service(one, confirm=30),
        lab.plane.service(two),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_no_change_ends_what_the_same_manifest_renews(lab, monkeypatch, what):
    """A change waits by itself; the leases beside it, and that of what is changed, are prolonged."""
    plane = lab.plane
    one, two = lab.one_edge(on_expiry="open"), plane.content(body(1, service_id=102, ttl_seconds=600))
    new = plane.content(body(2, service_id=102, ttl_seconds=600))
    await lab.desire(plane.service(one), plane.service(two, name="db", selectors=("cgroup:db",)))
    bound = lab.kernel.bindings()
    with monkeypatch.context() as disk:
        broken(lab, disk)
        for _ in range(20):
            lab.clocks.advance(60)
            await lab.desire(*CHANGES[what](lab, one, two, new))
        end = lab.clocks.boot_ns + 600 * 10**9
        assert held_deadlines(lab)[101] == end, "renewed each minute"
        if what not in (
            "another service is promoted",
            "another service is withdrawn",
            "another service leaves",
        ):
            assert held_deadlines(lab)[102] == end
        assert lab.held() == ["active 101 v1", "active 102 v1"]
        assert lab.kernel.bindings() == bound
        report = lab.heartbeat().services[0]
        assert (report.service_id, report.state) == (101, "in_force")
        await lab.restart()
        assert held_deadlines(lab)[101] == end, "a restarted agent goes on with it"
    await lab.give(plane.desired(*CHANGES[what](lab, one, two, new)))
    assert lab.runner.applier.failures.get(102, ("", ""))[0] != "disk_full", (
        "and what waited comes into force"
    )


async def test_a_lease_lasts_although_only_the_book_could_be_written(lab, monkeypatch):
    """The manifest is larger than the book: a disk may have room for one of them."""
    one = lab.one_edge()
    await lab.desire(lab.plane.service(one))
    write = lab.store.write

    def refuse(name, value):
        if name == "accepted":
            raise Unavailable(f"/state/{name}: full") from OSError(errno.ENOSPC, "full")
        write(name, value)

    monkeypatch.setattr(lab.store, "write", refuse)
    for _ in range(20):
        lab.clocks.advance(60)
        await lab.desire(lab.plane.service(one))
    until = deadline(lab)
    await lab.restart()
    assert deadline(lab) == until
    await lab.restart(reboot=True)
    assert deadline(lab) == lab.clocks.boot_ns + 600 * 10**9


async def test_what_waited_is_applied_as_soon_as_it_can_be_written(lab, monkeypatch):
    one, two = lab.one_edge(), lab.one_edge(2)
    await lab.desire(lab.plane.service(one))
    newer = lab.plane.desired(lab.plane.service(two))
    await lab.bus.publish(subjects.desired(lab.plane.host), newer, msg_id="1")
    with monkeypatch.context() as disk:
        broken(lab, disk)
        await lab.give(newer)
    await lab.runner._persist_clock()
    await lab.runner.converge()
    assert (lab.held(), lab.heartbeat().troubles) == (["active 101 v2"], ())


async def test_an_older_manifest_is_refused_also_after_one_that_waits(lab, monkeypatch):
    one, two = lab.one_edge(), lab.one_edge(2)
    await lab.desire(lab.plane.service(one))
    older = lab.plane.desired(lab.plane.service(two))
    broken(lab, monkeypatch)
    await lab.desire(lab.plane.service(one), ServiceState(103, "new", ("unit:new",)))
    lab.answers()
    monkeypatch.undo()
    await lab.give(older)
    assert (lab.held(), lab.said()) == (["active 101 v1"], ["nack stale_serial"])


async def test_nothing_is_applied_where_nothing_was_durable(lab, monkeypatch):
    broken(lab, monkeypatch)
    await lab.desire(lab.plane.service(lab.one_edge()))
    assert (lab.held(), lab.said()) == ([], ["nack disk_full"])


MANIFESTS = st.lists(
    st.tuples(
        st.tuples(
            *[st.sampled_from(["renew", "shorten", "select", "try", "promote", "withdraw", "leave"])] * 3
        ),
        st.booleans(),
        st.permutations(range(3)),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


def wanted(lab, now, number, what):
    """One service of a manifest: what is in force of it, changed."""
    plane, until = lab.plane, int(lab.clocks.wall) + 600
    plain = {"name": "s", "selectors": (f"cgroup:s{number}",)}
    match what:
        case "leave":
            return []
        case "withdraw":
            return [ServiceState(service_id=101 + number, **plain)]
        case "promote":
            return [plane.service(now[number][1], **plain)]
        case "shorten":
            return [plane.service(now[number][0], lease=until - 550, **plain)]
        case "select":
            plain["selectors"] = ("cgroup:other",)
        case "try":
            plain["candidate"] = CandidateRef(2, now[number][1].digest)
    return [plane.service(now[number][0], **plain)]


@settings(max_examples=40, deadline=None)
@given(MANIFESTS)
async def test_whatever_manifests_come_each_renewal_in_them_holds_and_nothing_else_changes(manifests):
    lab = await AgentLab().begin()
    lab.cgroups.tree = {f"s{n}": 20 + n for n in range(3)} | {"other": 30}
    made = [
        [lab.plane.content(body(v, service_id=101 + n, ttl_seconds=600)) for v in (1, 2)] for n in range(3)
    ]
    await lab.desire(*[one for n in range(3) for one in wanted(lab, made, n, "renew")])
    with pytest.MonkeyPatch.context() as disk:
        broken(lab, disk)
        expected, held, bound = held_deadlines(lab), lab.held(), lab.kernel.bindings()
        for changes, comes, order, restarts in manifests:
            lab.clocks.advance(10)
            services = [one for n in order for one in wanted(lab, made, n, changes[n])]
            if comes:
                services.append(ServiceState(109, "new", ("cgroup:other",)))
            await lab.desire(*services)
            for n, what in enumerate(changes):
                if what in ("renew", "select", "try"):
                    expected[101 + n] = lab.clocks.boot_ns + 600 * 10**9
            if restarts:
                await lab.restart()
            assert (held_deadlines(lab), lab.held(), lab.kernel.bindings()) == (expected, held, bound)
    await lab.give(lab.plane.desired(*services))
    changed = {i for i, (reason, _) in lab.runner.applier.failures.items() if reason == "disk_full"}
    assert not changed, "what waited is applied"
    assert lab.agent().accepted.manifest.services == tuple(services)
