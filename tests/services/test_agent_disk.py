"""A disk that takes nothing: what is in force stays renewed, what is new waits, all of it is reported."""

import errno
import os

import pytest
import pytest_asyncio
from msgspec.structs import replace

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.manifest import ActiveRef, CandidateRef, HostManifest, ServiceState
from aegisflux.domain.trust import only_renews
from support.agents import WALL, AgentLab

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
            with pytest.raises(Unavailable, match=os.strerror(number)):
                await lab.give(newer)
        assert (lab.held(), lab.said()) == (["active 101 v1"], [f"nack {reason}"])
        with pytest.raises(Unavailable):
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


REF = ActiveRef(1, "sha256:" + "0" * 64, WALL)
SERVICE = ServiceState(101, "web", ("cgroup:web",), REF)
MANIFEST = HostManifest("web1", 7, WALL, WALL + 9, (SERVICE,))


def with_service(**changes):
    return replace(MANIFEST, services=(replace(SERVICE, **changes),))


@pytest.mark.parametrize(
    ("after", "renews"),
    [
        (replace(MANIFEST, serial=8), True),
        (with_service(active=replace(REF, lease_until=WALL + 60)), True),
        (with_service(active=replace(REF, lease_until=WALL - 1)), False),
        (with_service(active=replace(REF, version=2)), False),
        (with_service(active=replace(REF, digest="sha256:" + "1" * 64)), False),
        (with_service(active=replace(REF, confirm_seconds=9)), False),
        (with_service(active=None), False),
        (with_service(candidate=CandidateRef(2, REF.digest)), False),
        (with_service(selectors=("cgroup:db",)), False),
        (with_service(probes=("127.0.0.1:1",)), False),
        (replace(MANIFEST, services=()), False),
        (replace(MANIFEST, services=(SERVICE, replace(SERVICE, service_id=102))), False),
    ],
)
async def test_what_a_renewal_is(after, renews):
    assert only_renews(MANIFEST, after) == renews
    assert not only_renews(None, after)
