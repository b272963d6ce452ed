"""Which connections stay, who is served next, and who gives way: in turns, never by the clock."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.errors import Busy, Invalid
from aegisflux.runtime.admission import (
    LEAST_CONNECTIONS,
    OTHER_FILES,
    Limits,
    Pool,
    fitting,
    peer_of,
)
from aegisflux.runtime.lanes import Lane

PEERS = [
    ("192.0.2.1", "192.0.2.1"),
    ("::ffff:192.0.2.1", "192.0.2.1"),
    ("2001:db8::1", "2001:db8::/64"),
    ("2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
    ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
    ("fe80::1%eth0", "fe80::/64"),
    ("private", "private"),
]


@pytest.mark.parametrize(("address", "key"), PEERS)
def test_connections_are_counted_by_address_or_by_network(address, key):
    assert peer_of(address) == key


def test_the_oldest_of_a_crowded_address_goes_and_nobody_else():
    pool: Pool[str] = Pool(10, 2, 1000)
    assert [pool.admit("crowd", name) for name in ("a", "b")] == [(), ()]
    assert pool.admit("other", "x") == ()
    assert pool.admit("crowd", "c") == ("a",)
    assert "a" not in pool
    assert "x" in pool


def test_of_a_full_listener_the_oldest_of_the_most_crowded_address_goes():
    pool: Pool[int] = Pool(4, 3, 1000)
    for number, key in enumerate(("few", "crowd", "crowd", "crowd")):
        assert pool.admit(key, number) == ()
    assert pool.admit("new", 9) == (1,)


def test_a_request_that_is_answered_keeps_its_place_and_takes_none():
    pool: Pool[str] = Pool(10, 1, 1000)
    pool.admit("one", "a")
    pool.work("a")
    assert pool.admit("one", "b") == ()
    assert pool.wait("a") == ("b",)
    assert pool.admit("one", "c") == ("a",)


def test_who_holds_most_goes_when_memory_is_short():
    pool: Pool[str] = Pool(10, 5, 100)
    for key, name in (("few", "a"), ("crowd", "b"), ("crowd", "c")):
        pool.admit(key, name)
    assert pool.hold("a", 40) == ()
    assert pool.hold("b", 30) == ()
    assert pool.hold("c", 31) == ("b",)
    assert pool.held == 71


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("admit", "wait", "work", "hold", "remove")),
        st.integers(0, 11),
        st.sampled_from("abc"),
        st.integers(0, 60),
    ),
    max_size=120,
)


@given(STEPS)
def test_no_history_passes_a_bound_or_takes_the_place_of_one_that_works(steps):
    pool: Pool[int] = Pool(6, 3, 100)
    keys: dict[int, str] = {}
    working: set[int] = set()
    held: dict[int, int] = {}
    for what, member, key, size in steps:
        gone: tuple[int, ...] = ()
        if what == "admit" and member not in keys:
            keys[member], held[member] = key, 0
            gone = pool.admit(key, member)
        elif what == "wait" and member in keys:
            gone = pool.wait(member)
            working.discard(member)
        elif what == "work" and member in keys:
            pool.work(member)
            working.add(member)
        elif what == "hold" and member in keys:
            held[member] = size
            gone = pool.hold(member, size)
        elif what == "remove":
            pool.remove(member)
            gone = (member,) if member in keys else ()
            working.discard(member)
        assert not set(gone) & working
        for one in gone:
            del keys[one], held[one]
        waiting = [keys[one] for one in keys if one not in working]
        assert len(pool) == len(keys)
        assert pool.waiting == len(waiting) <= 6
        assert all(waiting.count(one) <= 3 for one in waiting)
        assert pool.held == sum(held.values())
        if any(held[one] for one in keys if one not in working):
            assert pool.held <= 100


def test_a_share_is_a_part_of_the_whole():
    with pytest.raises(Invalid, match="share"):
        Pool(3, 4, 1)


@pytest.mark.parametrize("files", [64, 700, 1024, 2048, 100_000])
def test_limits_leave_descriptors_for_store_and_bus(files):
    found = fitting(Limits(), files)
    assert found.of_peer <= found.anonymous
    assert found.of_token <= found.authenticated
    assert 2 * (found.anonymous + found.authenticated) <= max(files - OTHER_FILES, 4 * LEAST_CONNECTIONS)
    assert (found == Limits()) == (files > 4608)


async def turns(lane: Lane, wanted: list[tuple[str, int]]) -> tuple[list[str], list[asyncio.Task]]:
    """Ask for all; who had a turn, in order. Each leaves when its task is cancelled."""
    order: list[str] = []

    async def one(key: str, weight: int) -> None:
        await lane.enter(key, weight)
        order.append(key)
        try:
            await asyncio.Event().wait()
        finally:
            lane.leave(key, weight)

    tasks = [asyncio.create_task(one(key, weight)) for key, weight in wanted]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return order, tasks


async def done(tasks: list[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_who_asks_for_much_waits_for_itself_and_not_before_others():
    lane = Lane("lane", 3, 2, 100, 100)
    order, tasks = await turns(lane, [("crowd", 1)] * 20 + [("one", 1)])
    assert order == ["crowd", "crowd", "one"]
    await done(tasks[:1])
    assert order == ["crowd", "crowd", "one", "crowd"]
    await done(tasks)
    assert lane.waiting == 0
    assert not lane._used


async def test_keys_take_turns():
    lane = Lane("lane", 1, 1, 100, 100)
    order, tasks = await turns(lane, [("a", 1), ("a", 1), ("a", 1), ("b", 1), ("c", 1)])
    waiting = {"a": tasks[:3], "b": tasks[3:4], "c": tasks[4:]}
    for count in range(1, 5):
        await done([waiting[order[-1]].pop(0)])
        assert len(order) == count + 1
    assert order[:4] == ["a", "a", "b", "c"]
    await done(tasks)


@pytest.mark.parametrize(("queue", "of_key"), [(2, 100), (100, 2)])
async def test_a_queue_has_an_end(queue, of_key):
    lane = Lane("lane", 1, 1, queue, of_key)
    order, tasks = await turns(lane, [("a", 1)] * 3)
    with pytest.raises(Busy, match="lane"):
        await lane.enter("a")
    assert order == ["a"]
    await done(tasks)


async def test_who_gives_up_waits_no_more_and_holds_nothing():
    lane = Lane("lane", 2, 2, 100, 100)
    order, tasks = await turns(lane, [("a", 2), ("b", 2), ("c", 1)])
    await done([tasks[1]])
    assert lane.waiting == 1
    await done([tasks[0]])
    assert order == ["a", "c"]
    await done(tasks)
    assert not lane._used


async def test_what_weighs_more_than_a_share_counts_as_one_and_is_not_passed_over():
    lane = Lane("room", 4, 4, 100, 100)
    order, tasks = await turns(lane, [("a", 1), ("big", 99), ("b", 4)])
    assert order == ["a"]
    await done([tasks[0]])
    assert order == ["a", "big"]
    await done([tasks[1]])
    assert order == ["a", "big", "b"]
    await done(tasks)
