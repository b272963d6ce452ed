"""Each step of a holding as a whole value: what it changes, and that it changes nothing else."""
# ruff: noqa: E501  (a case is one line)

from typing import Any

import pytest
from msgspec.structs import replace

from aegisflux.domain import converge
from aegisflux.domain.converge import (
    SECOND,
    Book,
    Clear,
    Holding,
    InForce,
    Load,
    LoadCandidate,
    Renew,
    Revert,
    Seen,
)
from aegisflux.domain.manifest import ActiveRef, CandidateRef, Confirm, HostManifest, ServiceState

A, B, C = ("sha256:" + c * 64 for c in "abc")
NOW = 10**18
WAITING = CandidateRef(5, C)


def in_force(digest: str = A, version: int = 1, **changes: Any) -> InForce:
    first = InForce(version, digest, "t" + digest, 7, 1000, 5_000, 60, "enforce", "open", "keep")
    return replace(first, **changes)


GOOD, NEWS = in_force(), in_force(B, 2, confirm_seconds=10)
OLD = CandidateRef(9, C)
HELD = Holding(101, 3, active=GOOD, good=GOOD, candidate=WAITING, refused=OLD)
ON_TRIAL = replace(HELD, active=NEWS, confirm_by_ns=NOW, intent=NEWS)
LATER = in_force(lease_until=2000, deadline_ns=9_000)

STEPS = {
    "an intent is written down": (converge.intended(HELD, NEWS), replace(HELD, intent=NEWS)),
    "what is new is on trial": (
        converge.flipped(replace(HELD, intent=NEWS), NEWS, 5),
        replace(HELD, active=NEWS, confirm_by_ns=5 + 10 * SECOND, refused=None),
    ),
    "without a window it is good at once": (
        converge.flipped(replace(ON_TRIAL, intent=NEWS), replace(NEWS, confirm_seconds=0), 5),
        Holding(101, 3, active=replace(NEWS, confirm_seconds=0), good=replace(NEWS, confirm_seconds=0), candidate=WAITING),
    ),
    "observing is good at once": (
        converge.flipped(ON_TRIAL, replace(NEWS, mode="observe"), 5),
        Holding(101, 3, active=replace(NEWS, mode="observe"), good=replace(NEWS, mode="observe"), candidate=WAITING),
    ),
    "the first of all is on trial": (
        converge.flipped(Holding(101, 3), NEWS, 5),
        Holding(101, 3, active=NEWS, confirm_by_ns=5 + 10 * SECOND),
    ),
    "what is good needs no trial, and pardons nothing": (
        converge.flipped(replace(ON_TRIAL, intent=LATER), replace(LATER, confirm_seconds=10), 5),
        replace(HELD, active=replace(LATER, confirm_seconds=10), good=replace(LATER, confirm_seconds=10)),
    ),
    "a trial ends well": (converge.confirmed(replace(ON_TRIAL, intent=None)), replace(HELD, active=NEWS, good=NEWS)),
    "a trial fails": (converge.reverted(ON_TRIAL), replace(HELD, refused=CandidateRef(2, B))),
    "nothing fails": (converge.reverted(Holding(101, 3, good=GOOD)), Holding(101, 3, active=GOOD, good=GOOD)),
    "what is good is renewed": (converge.renewed(HELD, 2000, 9_000), replace(HELD, active=LATER, good=LATER)),
    "what is on trial is renewed": (
        converge.renewed(ON_TRIAL, 2000, 9_000),
        replace(ON_TRIAL, active=replace(NEWS, lease_until=2000, deadline_ns=9_000)),
    ),
    "what has nothing before it is renewed": (
        converge.renewed(Holding(101, 3, active=NEWS), 2000, 9_000),
        Holding(101, 3, active=replace(NEWS, lease_until=2000, deadline_ns=9_000)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_changes_this_and_nothing_else(name: str) -> None:
    found, expected = STEPS[name]
    assert found == expected


def test_nothing_is_confirmed_where_nothing_is_on_trial() -> None:
    confirm = Confirm("web1", 7, 101, 1, A)
    assert not converge.confirms(HELD, confirm)
    assert not converge.confirms(Holding(101, 3, confirm_by_ns=NOW), confirm)
    assert converge.confirms(replace(HELD, confirm_by_ns=NOW), confirm)


def active(digest: str) -> Seen:
    return Seen(3, "active", digest, "t" + digest, 6_000)


def beside(digest: str) -> Seen:
    return Seen(3, "candidate", digest, "t" + digest, 0)


NO_INTENT = replace(ON_TRIAL, intent=None)
SEEN = replace(GOOD, deadline_ns=6_000)
ON, OFF = "boot", "another boot"
# holding, boot, what the kernel holds; what is known afterwards, and whether a trial ended
RECOVERIES = {
    "all as it was": (HELD, ON, (active(A), beside(C)), replace(HELD, active=SEEN), False),
    "another boot without a trial": (HELD, OFF, (active(A), beside(C)), replace(HELD, active=SEEN), False),
    "a trial goes on": (NO_INTENT, ON, (active(B), beside(C)), replace(NO_INTENT, active=replace(NEWS, deadline_ns=6_000)), False),
    "a trial ended with its boot": (NO_INTENT, OFF, (), Holding(101, 3, good=GOOD, refused=CandidateRef(2, B)), True),
    "a trial went back unheard": (NO_INTENT, ON, (active(A), beside(C)), replace(HELD, active=SEEN, refused=CandidateRef(2, B)), False),
    "a trial whose tables are gone": (NO_INTENT, ON, (), Holding(101, 3, good=GOOD, refused=OLD), False),
    "a trial of what nobody knows": (NO_INTENT, ON, (active(C), beside(C)), replace(HELD, active=None), False),
    "the first trial": (Holding(101, 3, active=NEWS, confirm_by_ns=NOW), ON, (active(B),), Holding(101, 3, active=replace(NEWS, deadline_ns=6_000), confirm_by_ns=NOW), False),
    "the candidate is gone": (HELD, ON, (active(A),), replace(HELD, active=SEEN, candidate=None), False),
    "the candidate is another": (HELD, ON, (active(A), beside(B)), replace(HELD, active=SEEN, candidate=None), False),
    "a candidate that nobody knows": (replace(HELD, candidate=None), ON, (active(A), beside(C)), replace(HELD, active=SEEN, candidate=None), False),
    "a flip that happened": (replace(HELD, intent=NEWS), ON, (active(B), beside(C)), replace(HELD, active=replace(NEWS, deadline_ns=6_000), confirm_by_ns=5 + 10 * SECOND, refused=None), False),
    "a flip that did not": (replace(HELD, intent=NEWS), ON, (active(A), beside(C)), replace(HELD, active=SEEN), False),
    "tables of the same digest are others": (HELD, ON, (Seen(3, "active", A, "t" + B, 6_000), beside(C)), replace(HELD, active=None), False),
    "nothing was held": (Holding(101, 3), ON, (active(A),), Holding(101, 3), False),
}  # fmt: skip


@pytest.mark.parametrize("name", RECOVERIES)
def test_a_recovery_knows_what_the_kernel_says(name: str) -> None:
    held, boot, kernel, expected, trial_ended = RECOVERIES[name]
    book, ended = converge.recovered(Book("boot", {101: held}), boot, kernel, 5)
    assert book == Book(boot, {101: expected})
    assert ended == ([held] if trial_ended else [])


REF, NEXT = ActiveRef(1, A, 1000), ActiveRef(2, B, 1000)
# active and candidate that are wanted, what is held; the steps at boot clock 100
PLANS = {
    "a trial ends with the last of its window": (
        NEXT, None, Holding(101, 3, active=NEWS, good=GOOD, confirm_by_ns=100),
        (Revert(101, 3, "no confirmation came within the window"),),
    ),
    "what is good alone is cleared": (None, None, Holding(101, 3, good=GOOD), (Clear(101, 3, "active"),)),
    "what was refused is left for what is good": (
        NEXT, None, Holding(101, 3, active=in_force(C, 3), good=GOOD, refused=CandidateRef(2, B)), (Load(101, 3, REF),),
    ),
    "what only moves comes before what is loaded": (
        ActiveRef(1, A, 2000), CandidateRef(2, B), Holding(101, 3, active=GOOD, good=GOOD),
        (Renew(101, 3, 2000, 0), LoadCandidate(101, 3, CandidateRef(2, B))),
    ),
    "what ends comes before what is loaded": (
        NEXT, None, Holding(101, 3, active=GOOD, candidate=WAITING), (Clear(101, 3, "candidate"), Load(101, 3, NEXT)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_in_its_order(name: str) -> None:
    ref, candidate, held, steps = PLANS[name]
    manifest = HostManifest("web1", 7, 0, 10, (ServiceState(101, "web", (), ref, candidate),))
    assert converge.plan(manifest, Book("boot", {101: held}), 100) == steps


def test_of_several_services_all_that_moves_comes_before_all_that_is_loaded() -> None:
    services = (
        ServiceState(101, "web", (), NEXT),
        ServiceState(102, "db", (), ActiveRef(1, A, 2000)),
    )
    held = Book("boot", {101: Holding(101, 3, active=GOOD), 102: Holding(102, 4, active=GOOD)})
    steps = converge.plan(HostManifest("web1", 7, 0, 10, services), held, 0)
    assert steps == (Renew(102, 4, 2000, 0), Load(101, 3, NEXT))
