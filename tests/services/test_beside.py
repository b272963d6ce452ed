"""Threads that many tokens share: tokens take turns, and what authentication needs waits for none of them."""

import asyncio
import threading

import pytest
from tests.support.engines import eventually

from aegisflux.domain.errors import Busy
from aegisflux.runtime import asking
from aegisflux.runtime.beside import AT_ONCE, EACH, beside


class Gate:
    """Work that lasts until `open`; which token's was done, in order."""

    def __init__(self) -> None:
        self.open, self.done = threading.Event(), []

    def work(self, token):
        assert self.open.wait(20)
        self.done.append(token)
        return token

    async def ask(self, token):
        asking.begin(token)
        return await beside(self.work, token)


async def test_tokens_take_turns_and_one_has_no_more_than_its_share_of_the_queue():
    gate = Gate()
    tasks = [asyncio.create_task(gate.ask("crowd")) for _ in range(AT_ONCE + EACH + 3)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(gate.ask("one")))
    await asyncio.sleep(0)
    gate.open.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert gate.done.index("one") <= AT_ONCE + 2
    assert sum(isinstance(each, Busy) for each in found) == 3


async def test_who_waits_no_more_leaves_a_thread_that_works():
    gate = Gate()
    tasks = [asyncio.create_task(gate.ask("a")) for _ in range(AT_ONCE)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    later = asyncio.create_task(gate.ask("b"))
    await asyncio.sleep(0)
    gate.open.set()
    assert await later == "b"
    await eventually(lambda: len(gate.done) == AT_ONCE + 1)  # the threads of "a" end when they end
    assert gate.done.count("b") == 1


async def test_an_error_is_raised_as_it_is_and_frees_the_place():
    def fails():
        raise ValueError("bug")

    for _ in range(AT_ONCE + 1):
        with pytest.raises(ValueError, match="bug"):
            await beside(fails)
    assert await beside(divmod, 7, 2) == (3, 1)
