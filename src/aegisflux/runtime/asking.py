"""For whom something is done, so that what many share is given out in turns.

Set once for each request, and read where work waits for a worker, however deep below: what it calls, and what
it begins beside itself, is for the same one.
"""

from contextvars import ContextVar
from typing import Final

OURSELVES: Final = ""
_ASKER: ContextVar[str] = ContextVar("asker", default=OURSELVES)


def asker() -> str:
    """The key of the token whose request this is, `OURSELVES` outside of one."""
    return _ASKER.get()


def begin(key: str) -> None:
    """All that this task does from now on is for this one."""
    _ASKER.set(key)
