"""An application of ours on its sockets: listener, front, application; and the life of its process."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from litestar import Litestar

from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.runtime import access, heap, http, logs
from aegisflux.runtime.admission import Limits, fitting
from aegisflux.runtime.front import Front
from aegisflux.runtime.listener import Bind, Listener, raise_files

T = TypeVar("T")
Step = Callable[[], Awaitable[None]]
URGENT: Final = "urgent"  # the paths of an application's state that wait in no lane
log = logs.get("serving")


def server(app: Litestar, binds: Sequence[Bind], limits: Limits | None = None) -> Listener:
    """A server in this event loop: `serve()` until `end()`."""
    bounds = fitting(limits or Limits(), raise_files())
    state, routes = app.state, http.table(app)
    front = Front(app, state.get(access.STATE), bounds, state.get(URGENT, ()), http.refuse, routes)
    return Listener(http.accounted(front, routes), binds, bounds)


def single(app: Litestar, address: str, port: int, tls: tuple[Path, Path] | None = None) -> Listener:
    """The same on one address."""
    return server(app, [Bind(address=address, port=port, tls=tls)])


async def lived(server: Listener, start: Step, close: Step, last: Sequence[Step]) -> None:
    """A service until SIGTERM or SIGINT: it answers at once, starts beside that, and lets go of its ports
    last. Raises why it could not start, or serve."""
    heap.settle(2, heap.SERVICE_LARGE)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    answering = asyncio.create_task(server.serve())
    starting = asyncio.ensure_future(start())
    starting.add_done_callback(lambda task: stop.set() if _error_of(task) else None)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, answering], return_when=asyncio.FIRST_COMPLETED)
    failed = _error_of(answering) or _error_of(starting)
    if failed is not None:
        log.error("cannot start", error=str(failed), exc_info=_unforeseen(failed))
    for task in (stopping, starting):
        task.cancel()
    server.end()
    await close()
    async with asyncio.timeout(5):
        await asyncio.gather(*(one() for one in last), return_exceptions=True)
    await asyncio.wait([answering], timeout=3)
    if failed is not None:
        raise failed


def _error_of(task: "asyncio.Future[None]") -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


def _unforeseen(error: BaseException) -> BaseException | None:
    """The error where its own words are not enough to find what is wrong."""
    return None if isinstance(error, AegisError) else error


async def until(what: str, call: Callable[[], Awaitable[T]]) -> T:
    """Call until it is not Unavailable any more; what cannot be used is in the log."""
    while True:
        try:
            return await call()
        except Unavailable as error:
            log.warning("waits", part=what, error=str(error))
            await asyncio.sleep(0.2)


def collect_rarely() -> None:
    """Events come and go by the thousand and hold no cycles: looking for some took a third of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
