"""Waking up when there is something to do, instead of looking whether there is."""

import asyncio
import os
from collections.abc import Callable


class Watch:
    """Calls once when a descriptor becomes readable, until it is armed again.

    A duplicate is watched: whoever owns the descriptor may close it at any time, on any thread, and its
    number may become another file's.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._of, self._fd = -1, -1
        self._armed = False

    def arm(self, fd: int | None, *, anew: bool = False) -> None:
        """Watch the descriptor; None watches nothing. `anew`: its number may mean another file by now."""
        if anew or fd != self._of:
            self.close()
        if fd is None:
            return
        if self._fd < 0:
            try:
                self._of, self._fd = fd, os.dup(fd)
            except OSError:  # closed meanwhile; whoever waits looks now and then by itself
                return
        if not self._armed:
            asyncio.get_running_loop().add_reader(self._fd, self._readable)
            self._armed = True

    def rest(self) -> None:
        """Do not call until it is armed again."""
        if self._armed:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._armed = False

    def close(self) -> None:
        """Watch nothing, and let go."""
        self.rest()
        if self._fd >= 0:
            os.close(self._fd)
        self._of, self._fd = -1, -1

    def _readable(self) -> None:
        self.rest()
        self._call()


class Bell:
    """Rung by anybody on the loop, heard by one task; what was rung before counts."""

    def __init__(self) -> None:
        self._rung = False
        self._waiting: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake the task that waits, or the next one that will."""
        self._rung = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def heard(self, seconds: float | None = None) -> bool:
        """Wait for so many seconds at most; whether it was rung. Makes no task, as `wait_for` does."""
        if not self._rung:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = None if seconds is None else loop.call_later(max(0.0, seconds), _ended, self._waiting)
            try:
                await self._waiting
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        rung, self._rung = self._rung, False
        return rung


def _ended(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
