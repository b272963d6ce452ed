"""Shares of hosts: who is within its share never waits, whatever the others do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain import shares
from aegisflux.domain.shares import FairQueue, Share, Shares, Talkers

SHARE = Share(rate=10.0, burst=100.0)
NAMES = st.sampled_from(["a", "b", "c", "d"])


def test_a_name_has_its_burst_at_once_and_its_rate_for_ever():
    found = Shares(SHARE)
    assert sum(found.take("a", 1.0, 0.0) for _ in range(1000)) == 100
    assert not found.take("a", 1.0, 0.0)
    assert sum(found.take("a", 1.0, 10.0) for _ in range(1000)) == 100
    assert sum(found.take("a", 1.0, 10.0 + n / 100) for n in range(1000)) == pytest.approx(100, abs=2)


def test_a_large_use_is_possible_and_is_paid_for_afterwards():
    found = Shares(SHARE)
    assert found.take("a", 1000.0, 0.0)
    assert found.wait("a", 0.0) == pytest.approx(90.0)
    assert found.wait("a", 50.0) == pytest.approx(40.0)
    assert found.wait("a", 90.1) == 0.0


def test_a_name_that_need_not_wait_may_use_something_and_the_other_way_round():
    found = Shares(SHARE)
    for amount in (50.0, 50.0, 0.5):
        assert (found.wait("a", 0.0) == 0.0) == found.take("a", amount, 0.0)
    assert found.wait("a", 0.0) > 0
    assert found.take("a", 1.0, found.wait("a", 0.0))


@given(st.lists(st.tuples(NAMES, st.floats(0.0, 5.0), st.floats(0.0, 200.0)), max_size=60))
def test_what_others_use_takes_nothing_from_a_name(uses):
    alone, together, now = Shares(SHARE), Shares(SHARE), 0.0
    for name, later, amount in uses:
        now += later
        if name == "a":
            assert alone.take(name, amount, now) == together.take(name, amount, now)
        else:
            together.take(name, amount, now)
        assert alone.wait("a", now) == together.wait("a", now)


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 20.0)), min_size=1, max_size=60))
def test_nobody_has_more_than_burst_and_rate_and_one_last_use(uses):
    found, now, used = Shares(SHARE), 0.0, 0.0
    for later, amount in uses:
        now += later
        if found.take("a", amount, now):
            used += amount
    assert used <= SHARE.burst + SHARE.rate * now + 20.0 + 1e-6


def test_names_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(shares, "MAX_NAMES", 10)
    found = Shares(SHARE)
    for n in range(1000):
        found.use(f"h{n}", 1000.0, 0.0)
    assert len(found._used) == 10
    assert found.wait("h999", 0.0) > 0


@given(st.lists(st.tuples(NAMES, st.integers()), max_size=60))
def test_names_come_in_turn_and_items_in_order(puts):
    queue = FairQueue[tuple[int, int]](5, 12)
    kept = {name: [] for name in "abcd"}
    for number, (name, value) in enumerate(puts):
        lost = queue.put(name, (number, value))
        if lost is None or lost[1] != (number, value):
            kept[name].append((number, value))
        if lost is not None and lost[1] != (number, value):
            assert kept[lost[0]].pop() == lost[1], "the newest of another name"
    assert len(queue) == sum(map(len, kept.values())) <= 12
    assert all(len(items) <= 5 for items in kept.values())
    out = {name: [] for name in "abcd"}
    order = []
    while (found := queue.get()) is not None:
        out[found[0]].append(found[1])
        order.append(found[0])
    assert out == kept
    for n, name in enumerate(order):  # between two of one name, each other name that waits has one
        between = order[n + 1 : order.index(name, n + 1)] if name in order[n + 1 :] else []
        assert len(between) == len(set(between))


def test_a_flooder_waits_behind_one_request_of_another():
    queue = FairQueue[int](16, 100)
    refused = sum(queue.put("flooder", n) is not None for n in range(57_600))
    queue.put("honest", 1)
    assert refused == 57_600 - 16
    assert [queue.get()[0] for _ in range(3)] == ["flooder", "honest", "flooder"]


def test_of_a_full_queue_the_newest_of_the_longest_goes():
    queue = FairQueue[int](8, 10)
    for n in range(8):
        queue.put("flooder", n)
    for name in ("x", "y"):
        queue.put(name, 0)
    assert queue.put("z", 0) == ("flooder", 7)
    assert len(queue) == 10
    small = FairQueue[int](8, 2)
    small.put("x", 0), small.put("y", 0)
    assert small.put("z", 9) == ("z", 9), "nobody has more than it would have"


def test_who_used_up_its_share_is_passed_over_and_says_until_when():
    queue = FairQueue[int](8, 10)
    queue.put("a", 1), queue.put("b", 2), queue.put("b", 3)
    waits = {"a": 3.0, "b": 0.0}
    assert queue.get(waits.get) == ("b", 2)
    waits["b"] = 1.5
    assert queue.get(waits.get) == 1.5
    waits["a"] = 0.0
    assert queue.get(waits.get) == ("a", 1)


@given(st.lists(st.integers(0, 40), max_size=300))
def test_who_was_refused_most_is_named(names):
    found = Talkers()
    for n in names:
        found.note(f"h{n}")
    assert found.total == len(names)
    assert all(names.count(int(name[1:])) == count for name, count in found.most(100))


def test_the_names_that_are_counted_are_bounded():
    found = Talkers()
    for n in range(20_000):
        found.note(f"h{n}")
        found.note("flooder", 5)
    assert len(found._counts) <= shares.MAX_TALKERS
    assert found.most(1)[0][0] == "flooder"
    assert str(found).startswith("flooder ")
