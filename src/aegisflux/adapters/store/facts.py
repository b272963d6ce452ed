"""Facts on PostgreSQL: one transaction for rows, roll-ups, listeners and marks.

One connection writes, guarded by an advisory lock; a pool reads. What was seen of each source is remembered
here and moved in the store by a guarded update, so that neither a repeated batch nor a second writer doubles.
"""

import asyncio
import json
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec
import zstandard
from msgspec.structs import replace

from aegisflux.adapters.store import partitions, timescale
from aegisflux.adapters.store.postgres import AWAY, CONTENDED, UNHELD, away, named_queries, pool_of
from aegisflux.adapters.store.rows import Rows, copied
from aegisflux.domain.decoding import in_words
from aegisflux.domain.enriched import Enriched, EnrichedBatch
from aegisflux.domain.errors import BROKEN, Conflict, Refused, Unavailable
from aegisflux.domain.event import Listen
from aegisflux.domain.inventory import PackageDelta, PackageInventory, delta
from aegisflux.domain.known import Known, KnownHost, KnownListener, KnownService
from aegisflux.domain.marks import Range, Seen, ranges_of, text_of
from aegisflux.domain.rollup import Key, Sums, rolled_up
from aegisflux.ports.facts import Row, Stored
from aegisflux.runtime import logs, metrics

CHANNEL: Final = "aegisflux_known"
READERS: Final = 4
COMMAND_SECONDS: Final = 60.0
LOCK_SECONDS: Final = 2
MAX_SOURCES: Final = 8  # of a host that are remembered: its boot, and some requests of third parties
REFUSED: Final = (  # by the server, and by what makes rows
    asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError,
    struct.error, OverflowError, UnicodeError,
)  # fmt: skip
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INVENTORY: Final = msgspec.msgpack.Decoder(PackageInventory)
log = logs.get("facts")
Changed = Callable[[str], Awaitable[None]]


class _Source:
    """A source as the writer knows it; id 0: not in the store yet."""

    def __init__(self, number: int, seen: Seen) -> None:
        self.number, self.seen = number, seen


class PostgresFacts:
    """`Facts` on the database that the control plane's store has migrated."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._queries = named_queries("facts.sql")
        self._timescale = named_queries("timescale.sql")
        self._writer: Any = None
        self._readers: Any = None
        self._turn, self._packages = asyncio.Lock(), asyncio.Lock()
        self._sources: dict[str, OrderedDict[str, _Source]] = {}
        self._changed: Changed | None = None
        self._telling: set[asyncio.Task[None]] = set()

    # life

    async def open(self) -> None:
        """Connect for reading; raises Unavailable, or Refused where the database does not let us in."""
        if self._readers is None:
            async with _here():
                self._readers = await pool_of(self._dsn, 1, READERS)

    async def open_writer(self) -> None:
        """See `Facts.open_writer`."""
        await self.open()
        async with self._turn:
            await self._connected()

    async def close(self) -> None:
        """Let go of all connections."""
        for task in list(self._telling):
            task.cancel()
        if self._writer is not None:
            self._writer.terminate()
        if self._readers is not None:
            self._readers.terminate()
        self._writer = self._readers = None

    async def _connected(self) -> Any:
        """The writing connection; after a loss a new one, and nothing remembered of before."""
        if self._writer is not None and not self._writer.is_closed():
            return self._writer
        self._sources.clear()
        async with _here():
            connection = await asyncpg.connect(self._dsn, command_timeout=COMMAND_SECONDS, timeout=10)
            try:
                await _prepare(connection)
                await _only_writer(connection)
                await connection.add_listener(CHANNEL, self._heard)
            except BaseException:
                connection.terminate()
                raise
        first, self._writer = self._writer is None, connection
        if not first:
            for what in ("hosts", "services", "inventories"):
                self._tell(what)
        return connection

    # what is known

    async def known(self) -> Known:
        """See `Facts.known`."""
        hosts, services = await self.rows("known_hosts"), await self.rows("known_services")
        listeners, inventories = await self.rows("known_listeners"), await self.rows("known_inventories")
        return Known(
            hosts=tuple(KnownHost(r["host_id"], r["labels"], tuple(r["addresses"])) for r in hosts),
            services=tuple(
                KnownService(r["service_id"], r["name"], tuple(r["selectors"]), r["host_labels"])
                for r in services
            ),
            listeners=tuple(KnownListener(**dict(row)) for row in listeners),
            inventories=tuple(filter(None, map(_readable, inventories))),
        )

    async def watch(self, changed: Changed) -> None:
        """See `Facts.watch`."""
        self._changed = changed

    def _heard(self, _connection: object, _pid: int, _channel: str, what: str) -> None:
        self._tell(what)

    def _tell(self, what: str) -> None:
        if self._changed is not None:
            task = asyncio.ensure_future(self._changed(what))
            self._telling.add(task)
            task.add_done_callback(self._told)

    def _told(self, task: "asyncio.Task[None]") -> None:
        self._telling.discard(task)
        if not task.cancelled():
            task.exception()

    # writing

    async def commit(self, batches: Sequence[EnrichedBatch]) -> Stored:
        """See `Facts.commit`."""
        async with self._turn:
            connection = await self._connected()
            try:
                async with _here():
                    return await self._commit(connection, batches)
            except BaseException:
                self._sources.clear()  # whether it was committed is not known
                raise

    async def _commit(self, connection: Any, batches: Sequence[EnrichedBatch]) -> Stored:
        async with connection.transaction():
            plan = _Plan()
            for batch in batches:
                plan.add(await self._source(connection, batch), batch)
            if plan.new:
                await self._write(connection, plan)
        for source, seen in plan.marks.items():
            source.seen = seen
        for host in {batch.host_id for batch in batches}:
            sources = self._sources[host]
            while len(sources) > MAX_SOURCES:  # the store knows them
                sources.popitem(last=False)
        return Stored(plan.new, plan.known, tuple(plan.fresh))

    async def _source(self, connection: Any, batch: EnrichedBatch) -> _Source:
        name = (batch.host_id, batch.boot_id)
        sources = self._sources.setdefault(batch.host_id, OrderedDict())
        known = sources.get(batch.boot_id)
        if known is not None:
            sources.move_to_end(batch.boot_id)
            return known
        await connection.execute(self._queries["add_source"], *name)
        row = await connection.fetchrow(self._queries["source"], *name)
        found = sources[batch.boot_id] = _Source(row["id"], Seen(_ranges(row["seen"])))
        return found

    async def _write(self, connection: Any, plan: "_Plan") -> None:
        marks = [
            (source.number, text_of(plan.ranges[source]), plan.lost[source], plan.offsets[source])
            for source in plan.ranges
        ]
        moved = await connection.fetch(self._queries["mark"], *zip(*marks, strict=True))
        if len(moved) != len(marks):
            raise Unavailable("the marks of the store were moved by somebody else; they are read again")
        for table, rows in (("flows", plan.rows.flows), ("events", plan.rows.events)):
            if rows:
                await connection.copy_to_table(table, source=_Whole(copied(rows)), format="binary")
        if plan.sums:
            await connection.execute(self._queries["roll_up"], *_columns(plan.sums))
        await self._write_listeners(connection, plan.listens)

    async def _write_listeners(
        self, connection: Any, listens: "Mapping[_ListenKey, _Listening | None]"
    ) -> None:
        opened = [(*key, *value) for key, value in sorted(listens.items()) if value is not None]
        closed = [key for key, value in sorted(listens.items()) if value is None]
        if opened:
            await connection.execute(self._queries["listen"], *zip(*opened, strict=True))
        if closed:
            await connection.execute(self._queries["unlisten"], *zip(*closed, strict=True))

    async def own(self, listeners: Sequence[KnownListener]) -> None:
        """See `Facts.own`."""
        if not listeners:
            return
        rows = [(k.host_id, k.proto, _plain(k.address), k.port, k.service_id) for k in listeners]
        async with self._turn:
            connection = await self._connected()
            async with _here():
                await connection.execute(self._queries["own"], *zip(*rows, strict=True))

    async def keep_inventory(self, inventory: PackageInventory) -> PackageDelta | None:
        """See `Facts.keep_inventory`. Events are stored meanwhile: one inventory is as long as thousands."""
        async with self._turn:
            await self._connected()  # nobody else writes
        if self._readers is None:
            raise Unavailable("the store of facts: not connected yet")
        lines = self._readers.acquire(timeout=10)
        async with self._packages, _here(), lines as connection, connection.transaction():
            row = await connection.fetchrow(self._queries["inventory"], inventory.host_id)
            kept = await asyncio.to_thread(_kept, inventory, dict(row) if row else None)
            if kept is None:
                return None
            await self._keep(connection, inventory, kept)
            return kept.found

    async def _keep(self, connection: Any, inventory: PackageInventory, kept: "_Kept") -> None:
        host, taken = inventory.host_id, _time(inventory.taken_ns)
        await connection.execute(self._queries["keep_inventory"], host, inventory.digest, taken, kept.body)
        await connection.execute(self._queries["forget_packages"], host)
        if kept.packages:
            await connection.execute(self._queries["add_packages"], host, *kept.packages)
        if kept.changes:
            await connection.execute(self._queries["add_package_changes"], taken, host, *kept.changes)

    # reading and upkeep

    async def rows(self, query: str, *values: object) -> Sequence[Row]:
        """See `Facts.rows`."""
        if self._readers is None:
            raise Unavailable("the store of facts: not connected yet")
        async with _here():
            found: Sequence[Row] = await self._readers.fetch(self._queries[query], *values)
            return found

    async def shape(self, mode: str, keep_seconds: Mapping[str, int]) -> str:
        """See `Facts.shape`."""
        async with self._turn:
            connection = await self._connected()
            async with _here():
                if not await connection.fetchval(self._queries["owns"]):
                    return await timescale.found(connection, self._timescale, mode)
                found = await timescale.version(connection, self._timescale, mode)
                if found is None:
                    return "native partitions"
                done = await timescale.adopt(connection, self._timescale, keep_seconds)
                return "; ".join((f"TimescaleDB {found}", *done))

    async def upkeep(self, now: float, keep_seconds: Mapping[str, int]) -> Sequence[str]:
        """See `Facts.upkeep`."""
        async with self._turn:
            connection = await self._connected()
            async with _here():
                return await partitions.upkeep(connection, self._queries, now, keep_seconds)

    async def check(self) -> str:
        """See `Facts.check`."""
        (row,) = await self.rows("size")
        return f"{row['sources']} sources, {row['bytes'] >> 20} MiB"


async def shaped(dsn: str, mode: str, keep_seconds: Mapping[str, int]) -> str:
    """`Facts.shape` by the owner of the tables, for a writer that does not own them. Raises Conflict while a
    writer is at work, who has to be stopped first where tables are to change their kind."""
    facts = PostgresFacts(dsn)
    try:
        return await facts.shape(mode, keep_seconds)
    finally:
        await facts.close()


_ListenKey = tuple[str, int, str, int]
_Listening = tuple[int | None, str, str, datetime]


class _Plan:
    """What one commit writes: new sequences only, each once."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.sums: dict[Key, Sums] = {}
        self.listens: dict[_ListenKey, _Listening | None] = {}
        self.marks: dict[_Source, Seen] = {}
        self.ranges: dict[_Source, list[Range]] = {}
        self.lost: dict[_Source, dict[str, int]] = {}
        self.offsets: dict[_Source, int] = {}
        self.fresh: list[EnrichedBatch] = []
        self.new = self.known = 0

    def add(self, source: _Source, batch: EnrichedBatch) -> None:
        """Take the events of a batch that were not seen."""
        seen = self.marks.get(source)
        if seen is None:
            seen = source.seen.copy()
        fresh, ranges = _unseen(batch.events, seen)
        self.new += len(fresh)
        self.known += len(batch.events) - len(fresh)
        if not fresh:
            return
        for start, end in ranges:
            seen.add(start, end)
        closed = seen.close()
        metrics.gaps_closed.inc(len(closed))
        self.marks[source] = seen
        self.ranges.setdefault(source, []).extend((*ranges, *closed))
        self.lost[source] = {_plain(name): count for name, count in batch.lost.items()}
        self.offsets[source] = batch.offset_ns
        add, number = self.rows.add, source.number
        for enriched in fresh:
            add(number, enriched)
            if type(enriched.event) is Listen:
                self._listen(batch.host_id, enriched.event, enriched.context.service_id)
        rolled_up(batch.host_id, fresh, self.sums)
        whole = len(fresh) == len(batch.events)
        self.fresh.append(batch if whole else replace(batch, events=tuple(fresh)))

    def _listen(self, host: str, event: Listen, service: int | None) -> None:
        key = (host, event.proto, _plain(event.address), event.port)
        value = (service, _plain(event.cgroup), _plain(event.path), _time(event.time_ns))
        self.listens[key] = None if event.closed else value


def _unseen(events: Sequence[Enriched], seen: Seen) -> tuple[Sequence[Enriched], list[Range]]:
    """The events that were not seen, each once, by sequence; and the ranges that they fill."""
    sequences = [enriched.event.seq for enriched in events]
    start, end = (sequences[0], sequences[0] + len(sequences)) if sequences else (0, 0)
    if start > seen.high and sequences == list(range(start, end)):  # as a host sends them
        return events, [Range(start, end)]
    unseen = {enriched.event.seq: enriched for enriched in events if enriched.event.seq not in seen}
    return [unseen[sequence] for sequence in sorted(unseen)], ranges_of(sorted(unseen))


async def _only_writer(connection: Any) -> None:
    """Take the lock; the server may need a moment to see that the one who held it is gone."""
    await connection.execute(f"set lock_timeout = '{LOCK_SECONDS}s'")
    try:
        await connection.execute("select facts_only_writer()")
    except asyncpg.LockNotAvailableError:
        raise Conflict("the store of facts has a writer already: only one enrich may run") from None
    await connection.execute("reset lock_timeout")


class _Whole:
    """One buffer as the source of a COPY."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data, self._data = self._data, None
        if data is None:
            raise StopAsyncIteration
        return data


def _columns(sums: Mapping[Key, Sums]) -> list[tuple[Any, ...]]:
    """Roll-ups by column, in one order, so that two writers could never wait for each other."""
    rows = [
        (
            _time(key.minute), *key[1:], s.flows, s.connections, s.packets_out, s.packets_in, s.bytes_out,
            s.bytes_in,
        )
        for key, s in sorted(sums.items(), key=lambda item: item[0])
    ]  # fmt: skip
    return list(zip(*rows, strict=True))


def _ranges(text: str) -> list[Range]:
    """An int8multirange as PostgreSQL prints it."""
    parts = text.strip("{}").replace("[", "").split("),")
    return [Range(*map(int, part.rstrip(")").split(","))) for part in parts if part]


def _time(time_ns: int) -> datetime:
    return EPOCH + timedelta(microseconds=time_ns // 1000)


def _plain(value: str) -> str:
    return value.replace("\0", "\\0")


class _Kept(NamedTuple):
    """An inventory as it is stored: its bytes, and the columns of its packages and of what changed."""

    found: PackageDelta
    body: bytes
    packages: tuple[tuple[str, ...], ...]
    changes: tuple[tuple[Any, ...], ...]


def _kept(inventory: PackageInventory, row: Mapping[str, Any] | None) -> _Kept | None:
    """What is to be written; None where the store has this inventory. For a thread: it takes long."""
    known = _readable(row) if row else None
    if row is not None and known is not None and row["digest"] == inventory.digest:
        return None
    found = delta(known.packages if known else (), inventory.packages)
    body = zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(inventory))
    packages = [
        tuple(map(_plain, (p.type, p.name, p.version, p.arch, p.source, p.source_version, p.where)))
        for p in inventory.packages
    ]
    changes = [
        (added, *map(_plain, (p.type, p.name, p.version, p.arch, p.where)))
        for added, some in ((False, found.removed), (True, found.added))
        for p in some
    ]
    return _Kept(found, body, tuple(zip(*packages, strict=True)), tuple(zip(*changes, strict=True)))


def _readable(row: Row) -> PackageInventory | None:
    """A stored inventory; None (logged) for one that cannot be read: the host sends it again."""
    try:
        return _unpacked(row["body"])
    except (zstandard.ZstdError, *BROKEN) as error:
        log.warning("a stored inventory cannot be read", error=in_words(error))
        return None


def _unpacked(body: bytes) -> PackageInventory:
    return _INVENTORY.decode(zstandard.ZstdDecompressor().decompress(body))


@asynccontextmanager
async def _here() -> AsyncIterator[None]:
    try:
        yield
    except (*AWAY, *CONTENDED) as error:
        raise Unavailable(f"the store of facts: {away(error)}") from error
    except REFUSED as error:
        detail = UNHELD if isinstance(error, asyncpg.DataError | UnicodeError) else str(error)
        raise Refused(f"the store of facts: {detail}") from error


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
