"""What events and inventories say of the graph, gathered and put in every few seconds.

The graph is a cache: what a killed process had gathered and not put in is missing from its sums, never from
the store. More than `MAX_EDGES` gathered (the graph is away) are dropped and counted.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from aegisflux.domain.enriched import EnrichedBatch
from aegisflux.domain.graph import Sights, Upserts, software_of
from aegisflux.domain.graph_share import Told, forget_earlier
from aegisflux.domain.inventory import PackageInventory
from aegisflux.ports.graph import Graph
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.over_share import Refusals

MAX_EDGES: Final = 200_000
AT_ONCE: Final = 10_000  # entries of a transaction, which the embedded graph holds in its memory
FLUSH_SECONDS: Final = 2.0
log = logs.get("enrich")


class Graphed:
    """`see` is cheap and never waits; `flush` puts in what was seen."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._told: dict[str, Told] = {}
        self._folded = Refusals("graph", log.warning, metrics.count_over_share)
        self._sights = Sights(self._told)
        self._failed = Upserts()
        self._inventories: dict[str, PackageInventory] = {}

    def see(self, batches: Sequence[EnrichedBatch]) -> None:
        """Stored events, each once."""
        self._sights.see(batches)
        self._tell(batch.host_id for batch in batches)
        if self._sights.edges + len(self._failed.edges) > MAX_EDGES:
            metrics.graph_dropped.inc(self._sights.edges + len(self._failed.edges))
            self._sights, self._failed = Sights(self._told), Upserts()

    def _tell(self, hosts: Iterable[str]) -> None:
        """Count what had no place of its own."""
        for host in set(hosts):
            told = self._told[host]
            if told.folded:
                self._folded.note(host, told.folded)
                told.folded = 0

    def see_inventory(self, inventory: PackageInventory) -> None:
        """A host's software, instead of what it had."""
        self._inventories[inventory.host_id] = inventory

    async def step(self) -> None:
        """Wait a moment, then put in what was seen."""
        await asyncio.sleep(FLUSH_SECONDS)
        await self.flush()

    async def flush(self) -> None:
        """Put in what was seen; on a failure it stays seen."""
        waiting = deque((await self._taken()).parts(AT_ONCE))
        try:
            await _put_all(self._graph, waiting)
        except Exception:
            for part in waiting:
                _merge(self._failed, part)
            raise
        await self._put_software()

    async def _taken(self) -> Upserts:
        """What was seen until now, host by host: the loop is not held for the whole fleet."""
        forget_earlier(self._told)
        seen, self._failed = self._failed, Upserts()
        sights, self._sights = self._sights, Sights(self._told)
        for _ in sights.put(seen):
            await asyncio.sleep(0)
        return seen

    async def _put_software(self) -> None:
        """The software of each host; one that fails stays, and leaves the others. Raises the last failure."""
        failed: Exception | None = None
        for host, inventory in list(self._inventories.items()):
            try:
                await self._graph.forget_software(host)
                await put_in(self._graph, software_of(inventory))
            except Exception as error:  # noqa: BLE001 - raised below
                failed = error
                continue
            if self._inventories.get(host) is inventory:
                del self._inventories[host]
        if failed is not None:
            raise failed


async def put_in(graph: Graph, upserts: Upserts) -> int:
    """All of it, by parts that a transaction can hold; how many edges and nodes. Raises Unavailable."""
    await _put_all(graph, deque(upserts.parts(AT_ONCE)))
    return len(upserts.edges) + len(upserts.nodes)


async def _put_all(graph: Graph, waiting: deque[Upserts]) -> None:
    """Put in one part after the other; what is left when this raises was not put in.

    A part that fails although the graph answers holds something that it cannot take: it is looked for by
    halves, logged, counted and left out.
    """
    while waiting:
        part = waiting[0]
        try:
            await graph.upsert(part)
            waiting.popleft()
        except Exception as error:
            if not await _answers(graph):
                raise
            waiting.popleft()
            size = len(part.nodes) + len(part.edges)
            if size > 1:
                waiting.extendleft(reversed(list(part.parts((size + 1) // 2))))
                continue
            metrics.graph_dropped.inc()
            log.warning(
                "the graph cannot hold it", entry=str([*part.nodes, *part.edges])[:300], error=str(error)
            )


async def _answers(graph: Graph) -> bool:
    try:
        await graph.check()
    except Exception:  # noqa: BLE001 - whatever it is, it is no answer
        return False
    return True


def _merge(into: Upserts, later: Upserts) -> None:
    for ref, properties in later.nodes.items():
        into.node(ref, **properties)
    for edge, given in later.edges.items():
        into.edge(edge, **given)
