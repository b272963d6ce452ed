"""Long computations in processes of their own, which can be told to end at any moment."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
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
    started = asyncio.ensure_future(asyncio.to_thread(process.start))
    try:
        await asyncio.shield(started)  # it lasts until the process has read what it was given
        there.close()
        kind, answer = await asyncio.to_thread(_heard, here)
    finally:
        await asyncio.shield(_ended(started, process))
    if kind == "done":
        found: T = answer
        return found
    raise (Refused if kind == "refused" else Unavailable)(answer)


async def _ended(started: "asyncio.Future[None]", process: BaseProcess) -> None:
    """Kill it, and if need be wait until it can be."""
    with suppress(OSError):
        await started
    if process.pid is not None:
        process.kill()
        await asyncio.to_thread(process.join)


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
