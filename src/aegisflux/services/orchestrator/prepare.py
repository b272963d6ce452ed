"""Heavy work on snapshots, in processes of their own: reading, compiling, judging never run on the event
loop.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from typing import Final, TypeVar

import msgspec
import zstandard
from msgspec import Struct

from aegisflux.domain import embedded, local_denies
from aegisflux.domain import snapshot as snapshots
from aegisflux.domain.errors import Invalid, OverLimit, Refused, Unavailable
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.snapshot import MapSnapshot, Mode
from aegisflux.domain.verdict import Verdict, judge
from aegisflux.runtime import metrics
from aegisflux.runtime.asking import asker
from aegisflux.runtime.lanes import Lane
from aegisflux.wire.canonical import content_of, digest_of, packed, unpacked

IN_ALL: Final = 256  # wait for a worker
EACH: Final = 16  # of one token
T = TypeVar("T")


class Prepared(Struct, frozen=True):
    """A compiled snapshot: `payload` is what is signed, `snapshot` its canonical JSON, compressed."""

    service_id: int
    version: int
    digest: str
    rules_digest: str
    tables_digest: str
    tables_format: int
    entries: int
    ttl_seconds: int
    mode: Mode
    on_expiry: str
    established: str
    warnings: tuple[str, ...]
    snapshot: bytes
    payload: bytes


class Fault(Struct, frozen=True):
    """A refusal on its way out of a worker: exceptions of ours do not survive pickling."""

    path: str = ""
    expected: str = ""
    got: str = ""
    limit: str = ""
    maximum: int = 0
    count: int = 0
    what: str = ""


class Workshop:
    """Worker processes. What is posted and asked for takes turns, a token after the other. What undoes has a
    worker of its own, and so has panic: neither waits for the others, whatever they were given to do.
    """

    def __init__(self, workers: int) -> None:
        self._usual = _Crew("snapshots", workers, nice=5)
        self._undoing = _Crew("what undoes", 1, nice=0)
        self._panic = _Crew("panic", 1, nice=0)

    async def warm(self) -> None:
        """Start all workers before the first request needs one."""
        await asyncio.gather(*(crew.warm() for crew in self._crews()))

    def close(self) -> None:
        """End the workers."""
        for crew in self._crews():
            crew.close()

    async def prepare(self, body: bytes) -> Prepared:
        """Read and compile a posted body; raises Invalid or OverLimit, or Busy."""
        started = time.monotonic()
        answer = await self._usual.call(_prepared, body)
        metrics.compile_seconds.observe(time.monotonic() - started)
        return _raised(answer)

    async def copy(self, stored: bytes, digest: str, version: int) -> Prepared:
        """Compile a stored snapshot again under a new version: it comes back. Raises Refused when it is not
        the one of the digest: whoever writes the store does not choose what is signed."""
        return _raised(await self._undoing.call(_brought_back, stored, digest, version))

    async def observing(self, stored: bytes, version: int, dry_run: bool = False) -> Prepared:
        """The same, and it blocks nothing from then on. With `dry_run` nobody waits for it in need."""
        crew = self._undoing if dry_run else self._panic
        return _raised(await crew.call(_copied, stored, version, "observe"))

    async def judge(self, stored: bytes, flow: Flow, expired: bool, digest: str) -> Verdict:
        """The verdict of a flow by a stored snapshot, on a host with the default failsafe."""
        return await self._usual.call(_judged, stored, flow, expired, digest)

    def _crews(self) -> "tuple[_Crew, ...]":
        return self._usual, self._undoing, self._panic


class _Crew:
    """A pool of workers, made again when one of them was killed. No more is given to it than it can do at
    once, so that what waits waits in turns."""

    def __init__(self, name: str, workers: int, nice: int) -> None:
        self._workers, self._nice = workers, nice
        self._lane = Lane(f"workers for {name}", workers, workers, IN_ALL, EACH)
        self._pool: ProcessPoolExecutor | None = None

    async def warm(self) -> None:
        loop = asyncio.get_running_loop()
        pool = self._current()
        await asyncio.gather(*(loop.run_in_executor(pool, os.getpid) for _ in range(self._workers)))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def call(self, function: Callable[..., T], *values: object) -> T:
        """What a function gives; raises Busy where too much waits, Unavailable."""
        for _ in range(2):
            key = asker()
            await self._lane.enter(key)
            pool = self._current()
            try:
                return await self._given(pool, key, function, *values)
            except BrokenProcessPool:
                if self._pool is pool:
                    self._pool = None
        raise Unavailable("the compiler: its worker ended twice during this request")

    def _given(
        self, pool: ProcessPoolExecutor, key: str, function: Callable[..., T], *values: object
    ) -> "asyncio.Future[T]":
        """A place is held as long as the worker works, also where nobody waits for its answer any more."""
        loop = asyncio.get_running_loop()

        def left(_done: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._lane.leave, key)

        try:
            work = pool.submit(function, *values)
        except BaseException:
            self._lane.leave(key)
            raise
        work.add_done_callback(left)
        return asyncio.wrap_future(work)

    def _current(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._workers, context, initializer=_settled, initargs=(self._nice,)
            )
        return self._pool


def _settled(nice: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(nice)


def _raised(answer: "Prepared | Fault") -> Prepared:
    if isinstance(answer, Prepared):
        return answer
    if answer.limit:
        raise OverLimit(answer.limit, answer.maximum, answer.count, answer.what)
    if answer.what:
        raise Refused(answer.what)
    raise Invalid(answer.path, answer.expected, _Shown(answer.got))


class _Shown(int):
    """A picture of a value that was made in the worker."""

    def __new__(cls, text: str) -> "_Shown":
        made = super().__new__(cls, 0)
        made.text = text
        return made

    text: str

    def __str__(self) -> str:
        return self.text


def _prepared(body: bytes) -> Prepared | Fault:
    try:
        return _compiled(snapshots.decode(body))
    except Refused as error:
        return _fault(error)


def _copied(stored: bytes, version: int, mode: Mode | None) -> Prepared | Fault:
    try:
        found = _read(stored)
        return _compiled(msgspec.structs.replace(found, version=version, mode=mode or found.mode))
    except Refused as error:
        return _fault(error)


def _brought_back(stored: bytes, digest: str, version: int) -> Prepared | Fault:
    if digest_of(unpacked(stored)) != digest:
        return Fault(what=f"the snapshot in the store is not the one of {digest}: see aegisflux audit verify")
    return _copied(stored, version, None)


def _judged(stored: bytes, flow: Flow, expired: bool, digest: str) -> Verdict:
    return judge(snapshots.ruleset(_read(stored)), flow, Host(expired=expired), digest)


def _read(stored: bytes) -> MapSnapshot:
    return snapshots.decode(unpacked(stored))


def _compiled(snapshot: MapSnapshot) -> Prepared:
    content = content_of(snapshot)
    return Prepared(
        service_id=content.service_id,
        version=content.version,
        digest=content.digest,
        rules_digest=content.rules_digest,
        tables_digest=content.tables_digest,
        tables_format=content.tables_format,
        entries=content.entries,
        ttl_seconds=content.ttl_seconds,
        mode=content.mode,
        on_expiry=content.on_expiry,
        established=content.established,
        warnings=tuple(w for of in (snapshots, embedded, local_denies) for w in of.warnings_of(snapshot)),
        snapshot=zstandard.ZstdCompressor(level=3).compress(content.snapshot),
        payload=packed(content),
    )


def _fault(error: Refused) -> Fault:
    if isinstance(error, Invalid):
        from aegisflux.domain.errors import shown

        return Fault(path=error.path, expected=error.expected, got=shown(error.got))
    if isinstance(error, OverLimit):
        return Fault(limit=error.limit, maximum=error.maximum, count=error.got, what=str(error).split(":")[0])
    return Fault(what=str(error))
