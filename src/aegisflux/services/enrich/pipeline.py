"""From raw events to stored and enriched ones: decode, join, commit, publish, in this order.

A batch that was published twice, or comes again after a crash at any point, adds no row: the store knows the
sequences it has. What is published again has the same id.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

from aegisflux.domain.enriched import EnrichedBatch
from aegisflux.domain.errors import Invalid
from aegisflux.domain.joins import Joins
from aegisflux.ports.bus import Bus, Message
from aegisflux.ports.facts import Facts
from aegisflux.runtime import logs, metrics
from aegisflux.services.enrich.graphed import Graphed
from aegisflux.wire import events, subjects
from aegisflux.wire.inventory import decode_inventory

PUBLISHES_AT_ONCE = 16
BUNDLE_BYTES = 400 << 10
log = logs.get("enrich")


class Pipeline:
    """One writer: `start` before anything else. `graphed` hears of every event once, when it is stored."""

    def __init__(self, bus: Bus, facts: Facts, joins: Joins, graphed: Graphed) -> None:
        self._bus, self._facts, self._joins, self._graphed = bus, facts, joins, graphed
        self._misses: dict[str, int] = {}
        self._slots = asyncio.Semaphore(PUBLISHES_AT_ONCE)

    async def start(self) -> None:
        """Become the writer, and learn what is known. Raises Unavailable or Conflict."""
        await self._facts.open_writer()
        self._joins.learn(await self._facts.known())
        await self._facts.watch(self.changed)

    async def changed(self, what: str) -> None:
        """Something of the registry changed: it holds for the next event."""
        known = await self._facts.known()
        if what == "services":
            self._joins.learn_services(known.services)
        elif what == "hosts":
            self._joins.learn_hosts(known.hosts)

    async def on_raw(self, messages: Sequence[Message]) -> None:
        """Messages of `events.raw`; done when all is stored and published."""
        started = time.monotonic()
        joined = [
            self._joins.enrich(taken.batch, taken.received_ns, taken.offset_ns)
            for message in messages
            for taken in events.decode_taken(message.payload)
        ]
        stored = await self._facts.commit(joined)
        self._graphed.see(stored.fresh)
        await asyncio.gather(*(self._publish(bundle) for bundle in bundled(joined)))
        metrics.events_stored.inc(stored.new)
        metrics.events_repeated.inc(stored.known)
        metrics.enrich_seconds.observe(time.monotonic() - started)
        self._count_misses()

    async def on_inventories(self, messages: Sequence[Message]) -> None:
        """Messages of `inventory.packages.<host>`."""
        for message in messages:
            inventory = decode_inventory(message.payload)
            if inventory.host_id != subjects.host_of(message.subject):
                raise Invalid("host_id", subjects.host_of(message.subject), inventory.host_id)
            delta = await self._facts.keep_inventory(inventory)
            self._joins.learn_inventory(inventory)
            self._graphed.see_inventory(inventory)
            if delta is not None:
                log.info(
                    "inventory", host_id=inventory.host_id, added=len(delta.added), removed=len(delta.removed)
                )

    async def _publish(self, bundle: dict[str, bytes]) -> None:
        msg_id = sha256("\n".join(bundle).encode()).hexdigest()
        async with self._slots:
            await self._bus.publish(subjects.ENRICHED, events.joined(bundle.values()), msg_id=msg_id)

    def _count_misses(self) -> None:
        for join, count in self._joins.misses.items():
            metrics.join_misses.labels(join).inc(count - self._misses.get(join, 0))
        self._misses = dict(self._joins.misses)


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
