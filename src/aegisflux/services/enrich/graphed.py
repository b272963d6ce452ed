"""What events and inventories say of the graph, gathered and put in every few seconds.

The graph is a cache: what a killed process had gathered and not put in is missing from its sums, never from
the store. More than `MAX_EDGES` gathered (the graph is away) are dropped and counted.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from aegisflux.domain.enriched import EnrichedBatch
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.graph import Upserts, facts_of, software_of
from aegisflux.domain.inventory import PackageInventory
from aegisflux.ports.graph import Graph
from aegisflux.runtime import metrics

MAX_EDGES: Final = 200_000
AT_ONCE: Final = 10_000  # entries of a transaction, which the embedded graph holds in its memory
FLUSH_SECONDS: Final = 2.0


class Graphed:
    """`see` is cheap and never waits; `flush` puts in what was seen."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._seen = Upserts()
        self._inventories: dict[str, PackageInventory] = {}

    def see(self, batches: Sequence[EnrichedBatch]) -> None:
        """Stored events, each once."""
        facts_of(batches, self._seen)
        if len(self._seen.edges) > MAX_EDGES:
            metrics.graph_dropped.inc(len(self._seen.edges))
            self._seen = Upserts()

    def see_inventory(self, inventory: PackageInventory) -> None:
        """A host's software, instead of what it had."""
        self._inventories[inventory.host_id] = inventory

    async def step(self) -> None:
        """Wait a moment, then put in what was seen."""
        await asyncio.sleep(FLUSH_SECONDS)
        await self.flush()

    async def flush(self) -> None:
        """Put in what was seen; on Unavailable it stays seen."""
        waiting = deque(self._seen.parts(AT_ONCE))
        self._seen = Upserts()
        try:
            while waiting:
                await self._graph.upsert(waiting[0])
                waiting.popleft()
        except Unavailable:
            waiting.append(self._seen)
            self._seen = Upserts()
            for part in waiting:
                _merge(self._seen, part)
            raise
        for host in list(self._inventories):
            inventory = self._inventories[host]
            await self._graph.forget_software(host)
            await put_in(self._graph, software_of(inventory))
            if self._inventories.get(host) is inventory:
                del self._inventories[host]


async def put_in(graph: Graph, upserts: Upserts) -> int:
    """All of it, by parts that a transaction can hold; how many edges and nodes. Raises Unavailable."""
    for part in upserts.parts(AT_ONCE):
        await graph.upsert(part)
    return len(upserts.edges) + len(upserts.nodes)


def _merge(into: Upserts, later: Upserts) -> None:
    for ref, properties in later.nodes.items():
        into.node(ref, **properties)
    for edge, given in later.edges.items():
        into.edge(edge, **given)
