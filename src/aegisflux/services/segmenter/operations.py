"""Long work that a request began: how far it is, what came of it, and how to end it.

Operations live as long as the process; what they made lies in the store.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain.errors import AegisError, Busy, Conflict, NotFound
from aegisflux.ports.clock import Clock
from aegisflux.runtime import logs
from aegisflux.runtime.ending import end

MOST_RUNNING: Final = 4
MOST_RUNNING_EACH: Final = 2  # of one token, so that another one has as many
MOST_KEPT: Final = 256
MOST_KEPT_EACH: Final = 64
State = Literal["running", "done", "failed", "cancelled"]
log = logs.get("segmenter")


class Operation(Struct, frozen=True, kw_only=True):
    """`step` says what is being done, `share` how much of it is (0 to 1), `result` where the answer lies."""

    id: str
    kind: str
    state: State = "running"
    step: str = ""
    share: float = 0.0
    result: str = ""
    error: str = ""
    started_at: float
    ended_at: float | None = None


Told = Callable[[str, float], None]
Work = Callable[[Told], Awaitable[str]]


class Operations:
    """All operations of this process; a token has a share of what runs and of what is remembered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, Operation] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._of: dict[str, str] = {}

    def begin(self, kind: str, work: Work, token: str) -> Operation:
        """Begin for this token; raises Busy while too many run, of all or of its own."""
        running = Counter(self._of[number] for number in self._tasks)
        if running[token] >= MOST_RUNNING_EACH:
            raise Busy(
                f"operations: {running[token]} of yours run, of at most {MOST_RUNNING_EACH}: "
                "wait until one has ended, or cancel one (DELETE /segment/operations/<id>)"
            )
        if running.total() >= MOST_RUNNING:
            raise Busy(
                f"operations: {running.total()} run, of at most {MOST_RUNNING}, {running[token]} of yours: "
                "try again in a second"
            )
        begun = Operation(id=secrets.token_hex(8), kind=kind, started_at=self._clock.now())
        self._known[begun.id], self._of[begun.id] = begun, token
        self._forget(token)
        self._tasks[begun.id] = asyncio.create_task(self._run(begun.id, work), name=f"{kind} {begun.id}")
        return begun

    def _forget(self, token: str) -> None:
        """The oldest of this token when it has more than its share; of all too many, that of who has most."""
        kept = Counter(self._of.values())
        if kept[token] > MOST_KEPT_EACH:
            self._forget_one(token)
        elif kept.total() > MOST_KEPT:
            self._forget_one(kept.most_common(1)[0][0])

    def _forget_one(self, token: str) -> None:
        """Its oldest that runs no more, which there is: fewer run than are kept."""
        ended = (number for number, of in self._of.items() if of == token and number not in self._tasks)
        if (number := next(ended, None)) is not None:
            del self._known[number], self._of[number]

    def one(self, number: str) -> Operation:
        """How far it is; raises NotFound."""
        if number not in self._known:
            raise NotFound(
                f"operation {number}: this segmenter did not begin it; it may have been started anew"
            )
        return self._known[number]

    async def cancel(self, number: str) -> Operation:
        """End it; raises NotFound, or Conflict when it has ended."""
        task = self._tasks.get(number)
        if self.one(number).state != "running" or task is None:
            raise Conflict(f"operation {number} has ended already: {self.one(number).state}")
        await end(task)
        if self._tasks.pop(number, None) is not None:  # it had not begun
            self._change(number, state="cancelled", ended_at=self._clock.now())
        return self.one(number)

    async def close(self) -> None:
        """End all."""
        await end(*self._tasks.values())

    async def _run(self, number: str, work: Work) -> None:
        def told(step: str, share: float) -> None:
            self._change(number, step=step, share=round(share, 3))

        try:
            self._change(number, result=await work(told), state="done", step="done", share=1.0)
        except asyncio.CancelledError:
            self._change(number, state="cancelled")
            raise
        except AegisError as error:
            self._change(number, state="failed", error=str(error))
        except Exception as error:
            log.exception("failed", operation=number)
            self._change(number, state="failed", error=f"{type(error).__name__}: see the segmenter's log")
        finally:
            self._change(number, ended_at=self._clock.now())
            self._tasks.pop(number, None)

    def _change(self, number: str, **values: object) -> None:
        if number in self._known:
            self._known[number] = replace(self._known[number], **values)
