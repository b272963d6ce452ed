"""Which addresses are the host's own: read again as soon as the kernel tells that they changed, and now and
then all the same. Where addresses change all the time, one reading takes all that were told meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aegisflux.agent.parts import Parts

GAP_SECONDS, LONGEST_GAP_SECONDS = 0.1, 0.5
AGAIN_SECONDS: Final = 1.0
MOST_NAMED: Final = 16
QUIET_SECONDS: Final = 600.0


class OwnAddresses:
    """`guarded` runs a step so that its failure is said and ends nothing."""

    def __init__(
        self, parts: Parts, guarded: Callable[[Callable[[], Awaitable[None]]], Awaitable[bool]]
    ) -> None:
        self._parts, self._guarded = parts, guarded
        self._there: frozenset[str] = frozenset()
        self._said: dict[str, float] = {}
        self._again = asyncio.Event()

    async def refresh(self) -> None:
        """Look for network namespaces, and read what is to be read."""
        self._say(await self._parts.blocking(self._parts.datapath.refresh_addresses))

    async def heed(self) -> None:
        """Read what changed."""
        self._say(await self._parts.blocking(self._parts.datapath.heed_addresses))

    async def listen(self) -> None:
        """Heed what the kernel tells, for ever; also while nothing is enforced, so that nothing piles up."""
        fd = await self._parts.blocking(self._parts.datapath.watch_addresses)
        if fd is None:
            await asyncio.Event().wait()
            return
        while True:
            await readable(fd)
            began = time.monotonic()
            await self._guarded(self.heed)
            took = time.monotonic() - began
            await asyncio.sleep(min(max(GAP_SECONDS, took), LONGEST_GAP_SECONDS))

    def changed(self) -> None:
        """Another cgroup is governed: its first process, and so its namespace, may come a moment later."""
        self._again.set()

    async def look_again(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take the step a moment after each such change, once for all that come together; for ever."""
        while True:
            await self._again.wait()
            await asyncio.sleep(AGAIN_SECONDS)
            self._again.clear()
            await self._guarded(step)

    def _say(self, troubles: list[str]) -> None:
        """Log what is new. What comes and goes is said every ten minutes: users can make it come and go."""
        now, found = time.monotonic(), frozenset(troubles)
        self._said = {text: at for text, at in self._said.items() if now - at < QUIET_SECONDS}
        new = sorted(found - self._there - self._said.keys())
        self._there = found
        for text in new[:MOST_NAMED]:
            self._said[text] = now
            self._parts.log(text)
        if len(new) > MOST_NAMED:
            self._parts.log(f"own addresses: {len(new) - MOST_NAMED} more of these")


async def readable(fd: int) -> None:
    """Wait until something can be read; listen only as long as somebody waits."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
