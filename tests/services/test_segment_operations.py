"""Long work can be told to end at any moment, also before it has begun."""

import asyncio
import time
from multiprocessing import active_children

import pytest

from aegisflux.domain.errors import OverLimit
from aegisflux.runtime.jobs import computed
from aegisflux.services.segmenter.operations import MOST_RUNNING, Operations


class Noon:
    def now(self):
        return 1.0


async def test_what_is_cancelled_before_it_began_gives_its_place_back():
    operations = Operations(Noon())

    async def work(told):
        raise AssertionError("it was cancelled")

    for _ in range(MOST_RUNNING + 1):
        begun = operations.begin("plan", work)
        ended = await operations.cancel(begun.id)
        assert (ended.state, ended.ended_at) == ("cancelled", 1.0)


async def test_no_more_run_than_may():
    operations, never = Operations(Noon()), asyncio.Event()

    async def work(told):
        await never.wait()

    for _ in range(MOST_RUNNING):
        operations.begin("plan", work)
    with pytest.raises(OverLimit, match="cancel one, or wait for it"):
        operations.begin("plan", work)
    await operations.close()


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
