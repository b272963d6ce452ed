"""Work in threads that many tokens share: two at once, so that the event loop keeps its turns, and the tokens
in turns. What authentication needs has a thread of its own (`runtime/register.py`)."""

import asyncio
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from aegisflux.runtime.asking import asker
from aegisflux.runtime.lanes import Lane

AT_ONCE: Final = 2
IN_ALL: Final = 256  # wait
EACH: Final = 16  # of one token
_LANES: "WeakKeyDictionary[asyncio.AbstractEventLoop, Lane]" = WeakKeyDictionary()

P = ParamSpec("P")
T = TypeVar("T")


async def beside(function: Callable[P, T], *values: P.args, **named: P.kwargs) -> T:
    """What a function gives, in a thread; raises what it raises, or Busy where too much waits.

    Who waits no more for the answer lets the thread finish: its place is held until then.
    """
    loop, key = asyncio.get_running_loop(), asker()
    if (lane := _LANES.get(loop)) is None:
        lane = _LANES[loop] = Lane("work in threads", AT_ONCE, AT_ONCE, IN_ALL, EACH)
    await lane.enter(key)
    work = asyncio.ensure_future(asyncio.to_thread(function, *values, **named))

    def left(done: "asyncio.Future[T]") -> None:
        lane.leave(key)
        if not done.cancelled():
            done.exception()  # it is told to who waits, if anybody does

    work.add_done_callback(left)
    return await asyncio.shield(work)
