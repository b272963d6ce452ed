"""Tasks end although a cancellation is lost, as `asyncio.wait_for` of Python 3.11 loses some."""

import asyncio

import pytest

from aegisflux.runtime import ending
from aegisflux.runtime.ending import end
from aegisflux.runtime.tasks import Tasks


def losing(times):
    """A loop that loses its first cancellations."""

    async def forever():
        nonlocal times
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if times == 0:
                    raise
                times -= 1

    return forever


@pytest.mark.parametrize("times", [0, 1, 3])
async def test_a_task_that_loses_cancellations_ends(times):
    task = asyncio.create_task(losing(times)())
    await asyncio.sleep(0)
    await asyncio.wait([asyncio.create_task(end(task, again=0.001))], timeout=5)
    assert task.cancelled()


async def test_loops_of_a_service_end(monkeypatch):
    monkeypatch.setattr(ending.end, "__kwdefaults__", {"again": 0.001})
    tasks = Tasks()
    tasks.loop("loses", losing(2))
    tasks.loop("ends", losing(0))
    await asyncio.sleep(0)
    closing = asyncio.create_task(tasks.close())
    done, _ = await asyncio.wait([closing], timeout=5)
    assert done == {closing}


async def test_what_failed_or_has_ended_is_no_trouble():
    async def fails():
        raise ValueError("x")

    async def ends():
        pass

    tasks = [asyncio.create_task(one()) for one in (fails, ends, losing(0))]
    await asyncio.sleep(0)
    await end(*tasks)
    await end()
    assert [task.done() for task in tasks] == [True] * 3
