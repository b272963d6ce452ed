"""Doing a transaction again that lost against another one."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

from aegisflux.domain.errors import Contended
from aegisflux.runtime import logs

ATTEMPTS: Final = 5
FIRST_PAUSE: Final = 0.02
log = logs.get("again")

P = ParamSpec("P")
T = TypeVar("T")


def again(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return the function so that it is called again, up to `ATTEMPTS` times, when it raises Contended.

    Each function that makes a change of the store is decorated: it holds the whole transaction, and begins
    with what the store has then.
    """

    @functools.wraps(function)
    async def wrapped(*values: P.args, **named: P.kwargs) -> T:
        pause = FIRST_PAUSE
        for _ in range(ATTEMPTS - 1):
            try:
                return await function(*values, **named)
            except Contended as error:
                log.info("again", step=function.__qualname__, reason=str(error))
                await asyncio.sleep(pause)
                pause *= 2
        return await function(*values, **named)

    return wrapped
