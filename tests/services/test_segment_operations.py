"""Long work can be told to end at any moment, also before it has begun."""

import asyncio
import time
from multiprocessing import active_children

import pytest

from aegisflux.domain.errors import Busy, NotFound
from aegisflux.runtime.jobs import computed
from aegisflux.services.segmenter.operations import (
    MOST_KEPT,
    MOST_KEPT_EACH,
    MOST_RUNNING,
    MOST_RUNNING_EACH,
    Operations,
)


class Noon:
    def now(self):
        return 1.0


async def test_what_is_cancelled_before_it_began_gives_its_place_back():
    operations = Operations(Noon())

    async def work(told):
        raise AssertionError("it was cancelled")

    for _ in range(MOST_RUNNING + 1):
        begun = operations.begin("plan", work, "a")
        ended = await operations.cancel(begun.id)
        assert (ended.state, ended.ended_at) == ("cancelled", 1.0)


FULL = {  # whose operations run; who asks; what is said of it, empty: it begins
    "its share": ("aa", "a", "2 of yours run, of at most 2: wait until one has ended, or cancel one"),
    "its share, and others'": ("aab", "a", "2 of yours run"),
    "another one's share": ("aa", "b", ""),
    "another one's share, and one of its own": ("aab", "b", ""),
    "all that may run, one of them its own": ("aabc", "b", "4 run, of at most 4, 1 of yours: try again"),
    "all that may run": ("aabb", "c", "4 run, of at most 4, 0 of yours: try again"),
    "nothing": ("", "a", ""),
}


@pytest.mark.parametrize("what", FULL)
async def test_a_token_runs_its_share_and_others_the_rest(what):
    running, asks, refused = FULL[what]
    assert MOST_RUNNING_EACH < MOST_RUNNING
    operations, never = Operations(Noon()), asyncio.Event()

    async def work(told):
        await never.wait()

    for token in running:
        operations.begin("plan", work, token)
    try:
        if refused:
            with pytest.raises(Busy, match=refused):
                operations.begin("plan", work, asks)
        else:
            assert operations.begin("plan", work, asks).state == "running"
    finally:
        await operations.close()


KEPT = {  # how many of whom end in turn after those of "one"; how many of "one" are remembered then
    "a crowd of one token": ({"crowd": 4 * MOST_KEPT}, 3),
    "many crowds": ({f"crowd {n}": MOST_KEPT_EACH for n in range(8)}, 3),
    "its own": ({"one": MOST_KEPT}, 0),
}


@pytest.mark.parametrize("what", KEPT)
async def test_operations_of_a_token_are_forgotten_for_its_own(what):
    crowds, left = KEPT[what]
    operations = Operations(Noon())

    async def work(told):
        return ""

    async def ended(token):
        begun = operations.begin("plan", work, token)
        await asyncio.sleep(0)
        return begun.id

    mine = [await ended("one") for _ in range(3)]
    for token, count in crowds.items():
        for _ in range(count):
            await ended(token)
    assert sum(_is_known(operations, number) for number in mine) == left
    assert len(operations._known) == len(operations._of) <= MOST_KEPT


def _is_known(operations, number):
    try:
        return operations.one(number).state == "done"
    except NotFound:
        return False


async def test_what_runs_is_not_forgotten():
    operations, never = Operations(Noon()), asyncio.Event()

    async def for_ever(told):
        await never.wait()

    async def work(told):
        return ""

    begun = operations.begin("plan", for_ever, "a")
    for _ in range(2 * MOST_KEPT):
        operations.begin("plan", work, "a")
        await asyncio.sleep(0)
    assert (await operations.cancel(begun.id)).state == "cancelled"


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_a_computation_that_is_cancelled_while_it_starts_is_not_left_behind(turns):
    """A process starts for as long as it takes to read what it is given."""
    task = asyncio.create_task(computed(time.sleep, 3600, b"x" * 30_000_000))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert active_children() == []


async def test_a_computation_gives_its_answer():
    assert await computed(divmod, 7, 2) == (3, 1)
