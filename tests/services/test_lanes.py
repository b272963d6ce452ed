"""A room for a few at once: hosts enter in turn, and a flood of one waits behind one of another."""

import asyncio
import gc
import weakref
from contextlib import suppress

import pytest

from aegisflux.domain.errors import Busy
from aegisflux.runtime.lanes import Lane


async def test_a_flood_of_one_waits_behind_one_of_another():
    turns, order, gate = Lane("room", 1, 1, 100, 8), [], asyncio.Event()

    async def work(name):
        async with turns.of(name):
            await gate.wait()
            order.append(name)

    tasks = [asyncio.ensure_future(work("flooder")) for _ in range(50)]
    await asyncio.sleep(0)
    tasks.append(asyncio.ensure_future(work("honest")))
    await asyncio.sleep(0)
    gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert order[:3] == ["flooder", "flooder", "honest"] or order[:2] == ["flooder", "honest"]
    assert len(order) == 10
    assert sum(isinstance(one, Busy) for one in done) == 41


async def test_a_full_queue_has_room_for_who_has_less_there():
    turns, order, gate = Lane("room", 1, 1, 4, 8), [], asyncio.Event()

    async def work(name):
        async with turns.of(name):
            await gate.wait()
            order.append(name)

    tasks = [asyncio.ensure_future(work(name)) for name in (*"a" * 6, "b", "c", "b", "b")]
    await asyncio.sleep(0)
    gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(order) == ["a", "a", "a", "b", "c"] or sorted(order) == ["a", "a", "b", "b", "c"]
    assert sum(isinstance(one, Busy) for one in done) == 5
    assert turns.waiting == 0


async def test_who_gives_up_holds_no_place():
    turns, gate = Lane("room", 1, 1, 100, 8), asyncio.Event()

    async def work():
        async with turns.of("a"):
            await gate.wait()

    first, waiting = asyncio.ensure_future(work()), asyncio.ensure_future(work())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    gate.set()
    await first
    async with asyncio.timeout(1):
        async with turns.of("b"):
            pass
    assert (turns._total, turns._used, turns.waiting) == (0, {}, 0)


async def test_who_is_cancelled_as_it_is_let_in_gives_its_place_on():
    turns = Lane("room", 1, 1, 100, 8)
    inside = turns.of("a")
    await inside.__aenter__()

    async def work():
        async with turns.of("b"):
            pass

    waiting = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    await inside.__aexit__(None, None, None)  # it is let in, and has not run yet
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (turns._total, turns._used, turns.waiting) == (0, {}, 0)


async def test_a_failure_inside_frees_the_place():
    turns = Lane("room", 1, 1, 100, 8)
    with pytest.raises(ValueError, match="bug"):
        async with turns.of("a"):
            raise ValueError("bug")
    assert (turns._total, turns._used, turns.waiting) == (0, {}, 0)


class Body:
    """What a request holds; a weak reference tells when it is gone."""


async def test_who_is_refused_leaves_nothing_to_the_garbage_collector():
    turns, seen = Lane("room", 1, 1, 100, 1), []
    inside = turns.of("a")
    await inside.__aenter__()
    waiting = asyncio.ensure_future(turns.of("a").__aenter__())

    async def refused():
        body = Body()
        seen.append(weakref.ref(body))
        async with turns.of("a"):
            raise AssertionError(body)

    await asyncio.sleep(0)
    gc.disable()
    try:
        for _ in range(3):
            with suppress(Busy):
                await refused()
        assert [ref() for ref in seen] == [None] * 3
    finally:
        gc.enable()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await inside.__aexit__(None, None, None)
