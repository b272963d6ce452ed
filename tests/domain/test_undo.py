"""Undoing leads back, and never to something new: transcripts, and random histories against an oracle."""

import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain import rollout as rollouts
from aegisflux.domain import undo
from aegisflux.domain.errors import Conflict
from aegisflux.domain.rollout import Rollout
from aegisflux.domain.undo import Content, Past
from tests.domain.test_rollout import LEASE, NOW, told
from tests.support import histories

RUNNING = ["a", "b", "c"]


class Told:
    """Runs a transcript; a version is written with a `~` behind it where its content only observes."""

    def __init__(self):
        self.rollout, self.contents, self.had, self.marked = Rollout(7), {}, defaultdict(tuple), set()

    def past(self):
        promoted = frozenset(self.contents[version].rules for version in self.rollout.promotions)
        return Past(self.contents, promoted, self.had, frozenset(self.marked))

    def give(self, step, version):
        for host in step.changed:
            self.had[host] = undo.remembered(self.had[host], version)
        return step

    def post(self, word, targets=""):
        version, observes = int(word.rstrip("~")), word.endswith("~")
        self.contents[version] = Content(word, not observes)
        hosts = targets.split(",") if targets else None
        return self.give(rollouts.post(self.rollout, version, LEASE, hosts, RUNNING), version)

    def promote(self, word=""):
        version = rollouts.promotable(self.rollout, int(word) if word else None)
        spared = self.marked if self.contents[version].enforces else ()
        step = rollouts.promote(self.rollout, version, LEASE, set(RUNNING) - self.marked, spared)
        return self.give(step, version)

    def join(self, hosts):
        return self.give(rollouts.joined(self.rollout, hosts.split(","), NOW, 600), self.rollout.stable)

    def withdraw(self, hosts=""):
        return rollouts.withdraw(self.rollout, hosts.split(",") if hosts else None)

    def mark(self, host):
        self.marked.add(host)
        return rollouts.Step(self.rollout, ())

    def rollback(self, word=""):
        source = rollouts.rollback_target(self.rollout, int(word) if word else None)
        version = self.rollout.latest + 1
        self.contents[version] = self.contents[source]
        self.undone = undo.roll_back(self.rollout, self.past(), source, version, LEASE, RUNNING)
        return self.undone.step

    def panic(self, host=None):
        version = self.rollout.latest + 1
        self.contents[version] = Content(f"{version}~", False)
        return undo.observe(self.rollout, version, LEASE, RUNNING, host)

    def takeback(self, word, source=""):
        version, wanted = int(word), int(source) if source else None
        back = undo.returns(self.past(), self.rollout.on(version), wanted, frozenset({version}))
        sources = sorted({one for one in back.values() if one})
        copies = {one: self.rollout.latest + 1 + n for n, one in enumerate(sources)}
        self.contents |= {copy: self.contents[one] for one, copy in copies.items()}
        stable = self.rollout.stable == version
        return undo.take_back(self.rollout, self.past(), back, copies, LEASE, wanted, stable)


def play(lines: str) -> Told:
    told_by = Told()
    for line in filter(None, map(str.strip, lines.splitlines())):
        event, _, expected = (part.strip() for part in line.partition("->"))
        verb, *words = event.split()
        step = getattr(told_by, verb)(*words)
        told_by.rollout = step.rollout
        got = f"{told(step.rollout) or 'nothing'}; changed {','.join(step.changed) or 'none'}"
        assert got == expected, f"{event}: expected {expected!r}, got {got!r}"
    return told_by


def test_a_canary_goes_back_to_the_stable_content_under_a_new_version():
    play("""
        post 1 -> a1 b1 c1; changed a,b,c
        promote -> a1* b1* c1*; changed a,b,c
        post 2 a -> a2 b1* c1*; changed a
        rollback -> a3* b3* c3*; changed a,b,c
    """)


def test_what_was_never_promoted_comes_back_only_where_it_was_until_its_lease_ends():
    found = play("""
        post 1 -> a1 b1 c1; changed a,b,c
        promote -> a1* b1* c1*; changed a,b,c
        post 2 a -> a2 b1* c1*; changed a
        post 3 a -> a3 b1* c1*; changed a
        rollback 2 -> a4 b1* c1*; changed a
    """)
    assert found.undone.kept == dict.fromkeys(
        ("b", "c"), "version 2 was neither promoted nor given to it before"
    )
    assert found.rollout.stable == 1


def test_nobody_is_led_to_what_nobody_had():
    with pytest.raises(Conflict, match=r"no host may be led back to version 2 \(b, c: .* have it promoted"):
        play("""
            post 1 -> a1 b1 c1; changed a,b,c
            promote -> a1* b1* c1*; changed a,b,c
            post 2 a -> a2 b1* c1*; changed a
            withdraw a -> b1* c1*; changed a
            rollback 2 -> x
        """)


def test_before_a_promotion_it_needs_a_version():
    play("""
        post 1 a -> a1; changed a
        post 2 a -> a2; changed a
        rollback 1 -> a3; changed a
    """)
    with pytest.raises(Conflict, match="name to_version"):
        play("post 1 a -> a1; changed a\nrollback -> x")


def test_who_never_enforced_does_not_begin_to_and_keeps_what_it_has():
    found = play("""
        post 1 -> a1 b1 c1; changed a,b,c
        promote -> a1* b1* c1*; changed a,b,c
        post 2~ -> a2 b2 c2; changed a,b,c
        promote -> a2* b2* c2*; changed a,b,c
        join d -> a2* b2* c2* d2*; changed d
        rollback -> a3* b3* c3* d2*; changed a,b,c
    """)
    assert found.undone.kept == {"d": "it did not enforce the service before"}


def test_where_nothing_is_ever_enforced_what_enforces_goes():
    play("""
        post 1 -> a1 b1 c1; changed a,b,c
        promote -> a1* b1* c1*; changed a,b,c
        post 2 -> a2 b2 c2; changed a,b,c
        mark a -> a2 b2 c2; changed none
        rollback 1 -> b3* c3*; changed a,b,c
    """)
    play("""
        post 1 -> a1 b1 c1; changed a,b,c
        promote -> a1* b1* c1*; changed a,b,c
        post 2~ a -> a2 b1* c1*; changed a
        mark a -> a2 b1* c1*; changed none
        rollback 1 -> a2 b3* c3*; changed b,c
    """)


def test_after_a_panic_each_host_gets_what_it_enforced():
    play("""
        post 1 a -> a1; changed a
        promote -> a1* b1* c1*; changed a,b,c
        panic -> a2* b2* c2*; changed a,b,c
        join d -> a2* b2* c2* d2*; changed d
        rollback -> a3* b3* c3* d2*; changed a,b,c
        panic a -> a4* b3* c3* d2*; changed a
        rollback 1 -> a5* b5* c5* d2*; changed a,b,c
    """)


def test_a_rollout_that_takes_itself_back_gives_each_host_what_it_had():
    play("""
        post 1 a -> a1; changed a
        post 2 a,b,c -> a2 b2 c2; changed a,b,c
        takeback 2 1 -> a3; changed a,b,c
    """)
    play("""
        post 1 -> a1 b1 c1; changed a,b,c
        promote -> a1* b1* c1*; changed a,b,c
        post 2 c -> a1* b1* c2; changed c
        post 3~ b -> a1* b3 c2; changed b
        post 4 -> a4 b4 c4; changed a,b,c
        takeback 4 1 -> a5* b5* c5*; changed a,b,c
    """)


def test_what_was_promoted_and_taken_back_leaves_nothing_stable_that_was_not():
    found = play("""
        post 1 a -> a1; changed a
        post 2 b -> a1 b2; changed b
        promote -> a2* b2* c2*; changed a,b,c
        takeback 2 1 -> a3; changed a,b,c
    """)
    assert (found.rollout.stable, found.rollout.latest) == (None, 3)


def test_what_a_host_had_is_bounded():
    had = ()
    for version in range(1, 100):
        had = undo.remembered(undo.remembered(had, version), 1)
    assert len(had) == undo.MAX_HAD
    assert had[-2:] == (99, 1)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_history_makes_a_host_enforce_what_was_not_approved_for_it(data):
    histories.play(lambda n: data.draw(st.integers(0, n - 1)), 10)


def test_nor_does_any_of_many_random_ones():
    for seed in range(3000):
        histories.play(random.Random(seed).randrange, 14)
