"""From raw events to stored and enriched ones: decode, join, commit, publish, in this order.

A batch that was published twice, or comes again after a crash at any point, adds no row: the store knows the
sequences it has. What is published again has the same id.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import TypeVar

from msgspec import Raw
from msgspec.structs import replace

from aegisflux.domain.enriched import EnrichedBatch
from aegisflux.domain.errors import Conflict, Invalid, Refused, Unavailable
from aegisflux.domain.event import EventBatch
from aegisflux.domain.joins import Joins
from aegisflux.ports.bus import Bus, Message
from aegisflux.ports.facts import Facts, Stored
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.letters import letter_room
from aegisflux.services.enrich.graphed import Graphed
from aegisflux.wire import events, subjects
from aegisflux.wire.events import Sealed
from aegisflux.wire.inventory import decode_inventory

PUBLISHES_AT_ONCE = 16
REASON_CHARS = 500
LEARN_SECONDS = 0.5
BUNDLE_BYTES = 400 << 10
T = TypeVar("T")
log = logs.get("enrich")


class Pipeline:
    """One writer: `start` before anything else. `graphed` hears of every event once, when it is stored."""

    def __init__(self, bus: Bus, facts: Facts, joins: Joins, graphed: Graphed) -> None:
        self._bus, self._facts, self._joins, self._graphed = bus, facts, joins, graphed
        self._misses: dict[str, int] = {}
        self._letters = letter_room("enrich")
        self._slots = asyncio.Semaphore(PUBLISHES_AT_ONCE)
        self._learning, self._owning = asyncio.Lock(), asyncio.Lock()
        self._told: set[str] = set()
        self._storing: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Become the writer, and learn what is known. Raises Unavailable or Conflict."""
        await self._facts.open_writer()
        await self._facts.watch(self.changed)  # before we ask: what changes meanwhile is told
        async with self._learning:
            self._joins.learn(await self._facts.known())
        await self._facts.own(self._joins.moved_listeners())

    async def changed(self, what: str) -> None:
        """Something of the registry changed: it holds for the next event. One after the other, so that what
        was read before never follows what was read after; and until the store answers.
        """
        if what in self._told:  # one that waits to read will read this too
            return
        self._told.add(what)
        async with self._learning:
            self._told.discard(what)
            known = await self._patiently(what, self._facts.known)
            if what == "services":
                self._joins.learn_services(known.services)
            elif what == "hosts":
                self._joins.learn_hosts(known.hosts)
        async with self._owning:
            if self._storing:
                await asyncio.wait(set(self._storing))  # what was joined before is stored before
            moved = self._joins.moved_listeners()
            await self._patiently(what, lambda: self._facts.own(moved))

    async def _patiently(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except Unavailable as error:
                log.warning("a change of the registry waits", what=what, error=str(error))
                await asyncio.sleep(LEARN_SECONDS)

    async def on_raw(self, messages: Sequence[Message]) -> None:
        """Messages of `events.raw`; done when all is stored and published."""
        started = time.monotonic()
        with self._until_stored():
            joined = [
                self._joins.enrich(taken.batch, taken.received_ns, taken.offset_ns)
                for message in messages
                for taken in events.decode_taken(message.payload)
            ]
            stored, joined = await self._commit(joined)
        self._graphed.see(stored.fresh)
        await asyncio.gather(*(self._publish(bundle) for bundle in bundled(joined)))
        metrics.events_stored.inc(stored.new)
        metrics.events_repeated.inc(stored.known)
        metrics.enrich_seconds.observe(time.monotonic() - started)
        self._count_misses()

    async def on_inventories(self, messages: Sequence[Message]) -> None:
        """Messages of `inventory.packages.<host>`."""
        for message in messages:
            inventory = await asyncio.to_thread(decode_inventory, message.payload)
            if inventory.host_id != subjects.host_of(message.subject):
                raise Invalid("host_id", subjects.host_of(message.subject), inventory.host_id)
            delta = await self._facts.keep_inventory(inventory)
            self._joins.learn_inventory(inventory)
            self._graphed.see_inventory(inventory)
            if delta is not None:
                log.info(
                    "inventory", host_id=inventory.host_id, added=len(delta.added), removed=len(delta.removed)
                )

    @contextmanager
    def _until_stored(self) -> Iterator[None]:
        done = asyncio.get_running_loop().create_future()
        self._storing.add(done)
        try:
            yield
        finally:
            self._storing.discard(done)
            done.set_result(None)

    async def _commit(self, joined: list[EnrichedBatch]) -> tuple[Stored, list[EnrichedBatch]]:
        """Store them; what the store refuses is looked for by halves, and becomes a dead letter alone."""
        try:
            return await self._facts.commit(joined), joined
        except Conflict:
            raise
        except Refused as error:
            halves = halved(joined)
            if not halves:
                await self._bury(joined[0], str(error))
                return Stored(0, 0), []
        (one, these), (two, those) = [await self._commit(half) for half in halves]
        return Stored(one.new + two.new, one.known + two.known, one.fresh + two.fresh), these + those

    async def _bury(self, batch: EnrichedBatch, reason: str) -> None:
        metrics.dead_letters.inc()
        event = batch.events[0].event
        alone = EventBatch(
            host_id=batch.host_id,
            boot_id=batch.boot_id,
            sent_ns=batch.received_ns - batch.offset_ns,
            events=(event,),
        )
        sealed = Sealed(batch.received_ns, batch.offset_ns, Raw(events.encode_batch(alone)))
        payload = events.encode_taken([sealed])
        if not self._letters.take(batch.host_id, len(payload)):
            return
        name = f"{batch.host_id}:{batch.boot_id}:{event.seq}"
        headers = {
            "Aegisflux-Reason": " ".join(reason.split())[:REASON_CHARS],
            "Aegisflux-Subject": subjects.RAW,
            "Aegisflux-Host": batch.host_id,
        }
        where = subjects.dead(subjects.stream_of(subjects.RAW).name)
        await self._bus.publish(where, payload, msg_id=f"dead:raw:{name}", headers=headers)
        log.warning("refused by the store", host_id=batch.host_id, seq=event.seq, reason=reason)

    async def _publish(self, bundle: dict[str, bytes]) -> None:
        payload = events.joined(
            bundle.values()
        )  # an id that is a digest can suppress nothing but the same bytes
        async with self._slots:
            await self._bus.publish(subjects.ENRICHED, payload, msg_id=sha256(payload).hexdigest())

    def _count_misses(self) -> None:
        for join, count in self._joins.misses.items():
            metrics.join_misses.labels(join).inc(count - self._misses.get(join, 0))
        self._misses = dict(self._joins.misses)


def halved(batches: list[EnrichedBatch]) -> list[list[EnrichedBatch]]:
    """The same events in two parts; none of a single event."""
    if len(batches) > 1:
        middle = len(batches) // 2
        return [batches[:middle], batches[middle:]]
    middle = len(batches[0].events) // 2
    parts = batches[0].events[:middle], batches[0].events[middle:]
    return [[replace(batches[0], events=part)] for part in parts] if middle else []


def bundled(batches: Iterable[EnrichedBatch]) -> Iterator[dict[str, bytes]]:
    """Encoded batches by their names, as many at a time as one message of the bus holds well."""
    found: dict[str, bytes] = {}
    size = 0
    for batch in batches:
        data = events.encode_enriched(batch)
        if found and size + len(data) > BUNDLE_BYTES:
            yield found
            found, size = {}, 0
        first, last = batch.events[0].event.seq, batch.events[-1].event.seq
        found[f"{batch.host_id}:{batch.boot_id}:{first}-{last}"] = data
        size += len(data)
    if found:
        yield found
