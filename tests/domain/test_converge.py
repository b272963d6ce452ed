"""The plan of a host, as a table: what it holds, what it wants, what it must do."""

import pytest
from msgspec.structs import replace

from aegisflux.domain import converge
from aegisflux.domain.converge import (
    Book,
    Clear,
    Holding,
    InForce,
    Load,
    LoadCandidate,
    Remove,
    Renew,
    Revert,
)
from aegisflux.domain.manifest import ActiveRef, CandidateRef, Confirm, HostManifest, ServiceState

A, B, C = ("sha256:" + c * 64 for c in "abc")
REF = ActiveRef(1, A, 1000)
NEXT = ActiveRef(2, B, 1000)


def in_force(digest=A, version=1, lease=1000, **changes) -> InForce:
    first = InForce(version, digest, "t" + digest, 7, lease, 5_000, 60, "enforce", "open", "keep")
    return replace(first, **changes)


def wanting(active=REF, candidate=None) -> HostManifest:
    return HostManifest("web1", 7, 0, 10, (ServiceState(101, "web", (), active, candidate),))


def holding(**changes) -> Book:
    return Book("boot", {101: Holding(101, 3, **changes)})


@pytest.mark.parametrize(
    ("manifest", "book", "steps"),
    [
        (wanting(), holding(), (Load(101, 3, REF),)),
        (wanting(), holding(active=in_force(), good=in_force()), ()),
        (wanting(NEXT), holding(active=in_force()), (Load(101, 3, NEXT),)),
        (wanting(ActiveRef(1, A, 2000)), holding(active=in_force()), (Renew(101, 3, 2000, 0),)),
        (wanting(None), holding(active=in_force()), (Clear(101, 3, "active"),)),
        (wanting(None), holding(), ()),
        (HostManifest("web1", 7, 0, 10, ()), holding(active=in_force()), (Remove(101, 3),)),
        (wanting(None, CandidateRef(2, B)), holding(), (LoadCandidate(101, 3, CandidateRef(2, B)),)),
        (wanting(None), holding(candidate=CandidateRef(2, B)), (Clear(101, 3, "candidate"),)),
        (
            wanting(NEXT),
            holding(active=in_force(B, 2), good=in_force(), confirm_by_ns=99),
            (Revert(101, 3, "no confirmation came within the window"),),
        ),
        (wanting(NEXT), holding(active=in_force(B, 2), good=in_force(), confirm_by_ns=101), ()),
        (wanting(NEXT), holding(active=in_force(), good=in_force(), refused=CandidateRef(2, B)), ()),
        (wanting(NEXT), holding(good=in_force(), refused=CandidateRef(2, B)), (Load(101, 3, REF),)),
        (wanting(NEXT), holding(refused=CandidateRef(2, B)), ()),
    ],
)
def test_the_plan(manifest, book, steps):
    assert converge.plan(manifest, book, boot_ns=100) == steps


def test_slots_are_kept_and_the_lowest_free_one_is_given():
    book = Book("boot", {5: Holding(5, 0), 6: Holding(6, 2)})
    services = tuple(ServiceState(i, "s", ()) for i in (6, 7, 8))
    found = converge.enter(book, HostManifest("web1", 1, 0, 1, services))
    assert {i: h.slot for i, h in found.services.items()} == {5: 0, 6: 2, 7: 1, 8: 3}


def test_slots_that_ran_out_are_given_after_the_removal():
    book = Book("boot", {i: Holding(i, i) for i in range(256)})
    manifest = HostManifest("web1", 1, 0, 1, (ServiceState(999, "s", ()),))
    assert 999 not in converge.enter(book, manifest).services
    assert len(converge.plan(manifest, converge.enter(book, manifest), 0)) == 256


@pytest.mark.parametrize(
    ("now", "until", "ttl", "left"),
    [(0, 100, 60, 60), (50, 100, 60, 50), (100, 100, 60, 0), (200, 100, 60, 0)],
)
def test_deadline(now, until, ttl, left):
    assert converge.deadline_of(7, now, until, ttl) == 7 + left * 10**9


def test_only_enforcing_news_is_on_trial():
    held = Holding(101, 3, active=in_force(), good=in_force())
    news = in_force(B, 2, confirm_seconds=10)
    assert converge.flipped(held, news, 5).confirm_by_ns == 5 + 10 * 10**9
    assert converge.flipped(held, replace(news, mode="observe"), 5).confirm_by_ns == 0
    assert converge.flipped(held, in_force(confirm_seconds=10), 5).confirm_by_ns == 0


@pytest.mark.parametrize(
    ("serial", "digest", "fits"), [(7, B, True), (8, B, True), (6, B, False), (7, A, False)]
)
def test_what_confirms(serial, digest, fits):
    held = Holding(101, 3, active=in_force(B, 2), confirm_by_ns=1)
    assert converge.confirms(held, Confirm("web1", serial, 101, 2, digest)) is fits


@pytest.mark.parametrize(
    ("seen", "active"),
    [(None, None), (A, A), (B, B), (C, None)],
    ids=["the kernel is empty", "the flip did not happen", "the flip happened", "somebody else's tables"],
)
def test_recovery_asks_the_kernel(seen, active):
    book = holding(active=in_force(), good=in_force(), intent=in_force(B, 2))
    kernel = [] if seen is None else [converge.Seen(3, "active", seen, "t" + seen, 6_000)]
    found, ended = converge.recovered(book, "boot", kernel, 0)
    held = found.services[101]
    assert (held.active and held.active.digest, held.intent, ended) == (active, None, [])
    assert held.active is None or held.active.deadline_ns == 6_000


def test_a_reboot_ends_a_trial_and_keeps_what_was_good():
    book = holding(active=in_force(B, 2), good=in_force(), confirm_by_ns=10**18)
    found, ended = converge.recovered(book, "another boot", [], 0)
    assert [h.active.digest for h in ended] == [B]
    assert found.services[101].refused == CandidateRef(2, B)
    assert converge.plan(wanting(NEXT), found, 0) == (Load(101, 3, REF),)
