"""Transcripts of rollouts: each line is an event and what the hosts then have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain import rollout as rollouts
from aegisflux.domain.errors import Conflict, NotFound
from aegisflux.domain.rollout import Rollout, StaleVersion

RUNNING = {"a", "b", "c"}
NOW, LEASE = 1000, 1600


def told(rollout: Rollout) -> str:
    """Hosts as `a1* b2`: version, a star where the lease is renewed."""
    return " ".join(f"{h}{g.version}{'*' if g.renewed else ''}" for h, g in sorted(rollout.hosts.items()))


def play(lines: str) -> list[str]:
    """Run a transcript; gives what each line left behind."""
    rollout, found = Rollout(7), []
    for line in filter(None, map(str.strip, lines.splitlines())):
        event, _, expected = (part.strip() for part in line.partition("->"))
        verb, *words = event.split()
        if verb == "post":
            targets = words[1].split(",") if len(words) > 1 else None
            step = rollouts.post(rollout, int(words[0]), LEASE, targets, RUNNING)
        elif verb == "promote":
            version = rollouts.promotable(rollout, int(words[0]) if words else None)
            step = rollouts.promote(rollout, version, LEASE, RUNNING)
        elif verb == "withdraw":
            step = rollouts.withdraw(rollout, words[0].split(",") if words else None)
        else:
            step = rollouts.joined(rollout, words[0].split(","), NOW, 600)
        rollout = step.rollout
        changed = ",".join(step.changed) or "none"
        got = f"{told(rollout) or 'nothing'}; changed {changed}"
        assert got == expected, f"{event}: expected {expected!r}, got {got!r}"
        found.append(got)
    return found


def test_canary_then_promote():
    play("""
        post 1 a -> a1; changed a
        post 1 a -> a1; changed none
        post 1 b -> a1 b1; changed b
        promote  -> a1* b1* c1*; changed a,b,c
        promote  -> a1* b1* c1*; changed none
        post 2 c -> a1* b1* c2; changed c
        promote 2 -> a2* b2* c2*; changed a,b,c
    """)


def test_withdraw_and_join():
    play("""
        post 1 -> a1 b1 c1; changed a,b,c
        join d -> a1 b1 c1 d1; changed d
        withdraw a -> b1 c1 d1; changed a
        withdraw -> nothing; changed b,c,d
        join e -> nothing; changed none
    """)


def test_a_late_host_gets_only_what_is_left_of_an_open_lease():
    step = rollouts.post(Rollout(7), 1, LEASE, None, set())
    assert rollouts.joined(step.rollout, ["d"], NOW, 0).rollout.hosts["d"].lease_until == LEASE
    assert rollouts.joined(step.rollout, ["d"], LEASE, 0).changed == ()


@pytest.mark.parametrize(
    ("version", "digest", "new"), [(8, "x", True), (7, "same", False), (7, "other", None), (6, "same", None)]
)
def test_versions_rise(version, digest, new):
    if new is None:
        with pytest.raises(StaleVersion) as error:
            rollouts.check_version(Rollout(1, latest=7), version, digest, "same")
        assert (error.value.current, error.value.following) == (7, 8)
    else:
        assert rollouts.check_version(Rollout(1, latest=7), version, digest, "same") is new


def test_promoting_what_is_older_than_a_host_has_is_refused():
    rollout = rollouts.post(rollouts.post(Rollout(1), 1, 9, ["a"], ()).rollout, 2, 9, ["b"], ()).rollout
    with pytest.raises(Conflict, match="roll back instead"):
        rollouts.promotable(rollout, 1)
    with pytest.raises(NotFound):
        rollouts.promotable(rollout, 3)
    with pytest.raises(NotFound):
        rollouts.promotable(Rollout(1), None)


@pytest.mark.parametrize(
    ("wanted", "labels", "runs"),
    [({}, {"a": "1"}, False), ({"a": "1"}, {"a": "1", "b": "2"}, True), ({"a": "1"}, {"a": "2"}, False)],
)
def test_labels(wanted, labels, runs):
    assert rollouts.runs(wanted, labels) is runs


def test_the_same_post_again_moves_no_lease():
    first = rollouts.post(Rollout(7), 1, LEASE, None, RUNNING).rollout
    again = rollouts.post(first, 1, LEASE + 500, None, RUNNING)
    assert (again.rollout, again.changed) == (first, ())
    some = rollouts.post(Rollout(7), 1, LEASE, ["a"], RUNNING).rollout
    assert (some.open_version, some.open_until) == (None, 0)


def test_what_was_promoted_before_comes_back():
    held = Rollout(7)
    for version in (1, 2, 3):
        held = rollouts.promote(held, version, LEASE, RUNNING).rollout
    assert rollouts.rollback_target(held, None) == 2
    with pytest.raises(Conflict):
        rollouts.rollback_target(rollouts.promote(Rollout(7), 1, LEASE, RUNNING).rollout, None)


def test_withdrawn_from_some_hosts_it_stays_promoted():
    held = rollouts.promote(Rollout(7), 1, LEASE, RUNNING).rollout
    step = rollouts.withdraw(held, ["a"])
    assert (step.changed, step.rollout.stable, set(step.rollout.hosts)) == (("a",), 1, {"b", "c"})
    assert rollouts.withdraw(held, None).rollout.stable is None


def test_a_host_that_has_a_version_keeps_it_when_it_joins_again():
    held = rollouts.post(
        rollouts.promote(Rollout(7), 1, LEASE, RUNNING).rollout, 2, LEASE, ["a"], RUNNING
    ).rollout
    assert rollouts.joined(held, ["a"], NOW, 600) == rollouts.Step(held, ())


LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"))


@given(st.dictionaries(st.text(max_size=2), LABELS), LABELS)
def test_hosts_are_found_by_labels_as_each_of_them_alone(hosts, wanted):
    one_by_one = {host for host, labels in hosts.items() if rollouts.runs(wanted, labels)}
    assert rollouts.Labelled(hosts).running(wanted) == one_by_one
