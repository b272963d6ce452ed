"""What events say is put into the graph in parts, each once, although the graph goes away between them."""

import pytest
from tests.support.facts import NOON, facts_of, flow

from aegisflux.domain.enriched import Context, Enriched, EnrichedBatch
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.graph import Upserts
from aegisflux.services.enrich import graphed
from aegisflux.services.enrich.graphed import Graphed


class Parting:
    """Adds up what it is given; goes away before the calls of these numbers."""

    def __init__(self, *away):
        self.away, self.calls, self.sizes, self.held = away, 0, [], Upserts()

    async def upsert(self, upserts):
        self.calls += 1
        if self.calls in self.away:
            raise Unavailable("the graph is away")
        self.sizes.append(len(upserts.nodes) + len(upserts.edges))
        for ref, properties in upserts.nodes.items():
            self.held.node(ref, **properties)
        for edge, properties in upserts.edges.items():
            assert {edge.start, edge.end} <= set(self.held.nodes), "both ends come before the edge"
            self.held.edge(edge, **properties)


def batch(*peers):
    events = tuple(
        Enriched(flow(number, peer=peer), Context(service_id=1, service="web"))
        for number, peer in enumerate(peers)
    )
    return [EnrichedBatch(host_id="h", boot_id="b", received_ns=NOON, events=events)]


PEERS = [f"192.0.2.{number}" for number in range(7)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(graphed, "AT_ONCE", 3)


@pytest.mark.parametrize("away", [(), (1,), (2,), (3,), (4,), (2, 3, 4, 5)])
async def test_each_is_put_in_once_wherever_the_graph_goes_away(away):
    graph = Parting(*away)
    told = Graphed(graph)
    told.see(batch(*PEERS))
    for _ in away:
        with pytest.raises(Unavailable):
            await told.flush()
        told.see(batch(PEERS[0]))
    await told.flush()
    expected = facts_of(batch(*PEERS))
    for _ in away:
        facts_of(batch(PEERS[0]), expected)
    assert graph.held == expected
    assert max(graph.sizes) <= 3
    await told.flush()
    assert graph.held == expected, "nothing is left to be put in twice"
