"""Enrich as a whole: what runs while it lives."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aegisflux.domain.joins import Joins
from aegisflux.domain.shares import Share
from aegisflux.ports.bus import Bus, Fair
from aegisflux.ports.clock import Clock
from aegisflux.ports.facts import Facts
from aegisflux.ports.graph import Graph
from aegisflux.ports.store import Queries
from aegisflux.runtime import logs
from aegisflux.runtime.access import Bearers
from aegisflux.runtime.register import Believer
from aegisflux.runtime.tasks import Tasks
from aegisflux.services.enrich.graph import Questions
from aegisflux.services.enrich.graphed import Graphed
from aegisflux.services.enrich.pipeline import Pipeline
from aegisflux.services.enrich.readers import Readers
from aegisflux.services.enrich.refill import refill
from aegisflux.wire import subjects

DURABLE: Final = "enrich"
PULL: Final = 64  # messages, of up to 1,600 events each
READERS: Final = 2  # while one waits for the store, the other decodes and joins
INVENTORIES_PULL: Final = 2 << 20  # they are compressed
# An agent sends one when its packages changed: once a minute is often, and the newest one is not lost.
INVENTORY_FAIR: Final = Fair(Share(rate=1 / 60, burst=2.0), beyond="newest")
UPKEEP_SECONDS: Final = 600.0
EVENTS_RAW = subjects.stream_of(subjects.RAW).name
INVENTORIES = subjects.stream_of(subjects.ALL_INVENTORIES).name
log = logs.get("enrich")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What it is made of. `keep_seconds` is the retention by table."""

    bus: Bus
    facts: Facts
    graph: Graph
    store: Queries
    clock: Clock
    believer: Believer
    keep_seconds: Mapping[str, int]
    timescale: str = "auto"


class Enrich:
    """`start` needs an opened bus (connected or not) and the store's schema; `close` leaves both open."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.graphed = Graphed(parts.graph)
        self.pipeline = Pipeline(parts.bus, parts.facts, Joins(), self.graphed)
        self.readers = Readers(parts.facts)
        self.graph = Questions(parts.graph, parts.facts)
        self.bearers = Bearers(parts.store, parts.clock, parts.believer)
        self._tasks = Tasks()
        self.started = False

    async def start(self) -> None:
        """Become the writer, then consume. Raises Unavailable or Conflict."""
        await self.pipeline.start()
        log.info("tables", kept=await self.parts.facts.shape(self.parts.timescale, self.parts.keep_seconds))
        await self._upkeep()
        await self.parts.graph.open()
        await refill(self.parts.graph, self.parts.facts, self.parts.clock.now())
        bus = self.parts.bus
        await bus.ensure_streams()
        for _ in range(READERS):
            await bus.consume(EVENTS_RAW, DURABLE, self.pipeline.on_raw, batch=PULL)
        await bus.consume(
            INVENTORIES,
            DURABLE,
            self.pipeline.on_inventories,
            max_bytes=INVENTORIES_PULL,
            fair=INVENTORY_FAIR,
        )
        self._tasks.loop("graph", self.graphed.step)
        self._tasks.loop("upkeep", self._kept)
        self.started = True

    async def close(self) -> None:
        """End all loops; what was gathered for the graph is put in."""
        await self._tasks.close()
        if self.started:
            await self.graphed.flush()
        await self.parts.graph.close()

    async def _kept(self) -> None:
        await asyncio.sleep(UPKEEP_SECONDS)
        await self._upkeep()

    async def _upkeep(self) -> None:
        for what in await self.parts.facts.upkeep(self.parts.clock.now(), self.parts.keep_seconds):
            log.info("upkeep", what=what)
        if self.started:
            keep = self.parts.keep_seconds
            longest = max(keep["flows"], keep["events"])
            await self.parts.graph.forget_before(int((self.parts.clock.now() - longest) * 1e9))
