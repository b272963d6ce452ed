"""Tasks that live as long as their service."""

import asyncio
from collections.abc import Awaitable, Callable

from aegisflux.domain.errors import AegisError
from aegisflux.runtime import logs
from aegisflux.runtime.ending import end

FIRST_PAUSE, LAST_PAUSE = 0.05, 2.0
log = logs.get("tasks")


class Tasks:
    """Named loops; one that fails is logged and goes on after a pause."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def loop(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """Call `step` again and again until `close`; the step itself waits for what it works on."""
        self._tasks.append(asyncio.create_task(_looped(name, step), name=name))

    async def close(self) -> None:
        """End all and wait for them."""
        await end(*self._tasks)
        self._tasks.clear()


async def _looped(name: str, step: Callable[[], Awaitable[None]]) -> None:
    pause = FIRST_PAUSE
    while True:
        try:
            await step()
            pause = FIRST_PAUSE
        except AegisError as error:
            log.warning("comes again", task=name, error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)
        except Exception:
            log.exception("failed", task=name)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)


async def woken(event: asyncio.Event, timeout: float) -> None:
    """Until the event is set or the time (seconds) is over; the event is cleared."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()
