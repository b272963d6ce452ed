"""The end of tasks."""

import asyncio
from typing import Any, Final

AGAIN_SECONDS: Final = 1.0


async def end(*tasks: "asyncio.Task[Any]", again: float = AGAIN_SECONDS) -> None:
    """Cancel tasks until they have ended, again after so many seconds.

    `asyncio.wait_for` of Python 3.11, which libraries use, loses a cancellation that comes together with what
    it waits for, and then a loop would go on for ever (https://github.com/python/cpython/issues/81839).
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=again)
    for task in tasks:
        if not task.cancelled():
            task.exception()
