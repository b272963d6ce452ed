"""A room for a few at once, which hosts enter in turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aegisflux.domain.errors import Busy
from aegisflux.domain.shares import FairQueue


class Turns:
    """`at_once` are inside. Of each name `each` wait at most, of all names `in_all`."""

    def __init__(self, at_once: int, each: int, in_all: int) -> None:
        self._free, self._each = at_once, each
        self._waiting: FairQueue[asyncio.Future[bool]] = FairQueue(each, in_all)

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Inside. Raises Busy where too many of this name, or of all, wait."""
        await self._enter(name)
        try:
            yield
        finally:
            self._free += 1
            self._let_in()

    async def _enter(self, name: str) -> None:
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if lost := self._waiting.put(name, turn):
            lost[1].set_result(False)
        self._let_in()
        try:
            is_in = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self._free += 1  # it was let in at the same moment
                self._let_in()
            raise
        if not is_in:  # not as an exception of the future, which this frame and so its request would keep
            raise Busy(f"{name}: {self._each} requests wait already: try again in some seconds")

    def _let_in(self) -> None:
        while self._free and isinstance(found := self._waiting.get(), tuple):
            if not found[1].done():  # one that was given up is passed over
                self._free -= 1
                found[1].set_result(True)
