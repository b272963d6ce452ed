"""Long computations in processes of their own, which can be told to end at any moment."""

import asyncio
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from aegisflux.domain.errors import Refused, Unavailable

T = TypeVar("T")
_SPAWN = get_context("spawn")


async def computed(function: Callable[..., T], *values: object) -> T:
    """What a function of a module gives for these values, computed beside the event loop at low priority.

    Cancelling ends the process. Raises Refused with the words of one that the function raised, or Unavailable
    when the process ended by itself.
    """
    here, there = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_run, args=(there, function, values), daemon=True)
    await asyncio.to_thread(process.start)
    there.close()
    try:
        kind, answer = await asyncio.to_thread(_heard, here)
    finally:
        process.kill()
        await asyncio.to_thread(process.join)
    if kind == "done":
        found: T = answer
        return found
    raise (Refused if kind == "refused" else Unavailable)(answer)


def _heard(here: Connection) -> tuple[str, Any]:
    try:
        found: tuple[str, Any] = here.recv()
        return found
    except (EOFError, OSError):
        return "ended", "the computation: its process ended; was there memory enough?"


def _run(there: Connection, function: Callable[..., Any], values: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(5)
    try:
        there.send(("done", function(*values)))
    except Refused as error:
        there.send(("refused", str(error)))
