"""The graph that is filled from the store is the one that the events made."""

import random
import time

import pytest
from tests.contract.test_facts import facts, server
from tests.support.facts import NOON, SECOND, enriched, execed, facts_of, flow, listen

from aegisflux.adapters.graph.ladybug import LadybugGraph
from aegisflux.domain.enriched import Context
from aegisflux.domain.event import VerdictSeen
from aegisflux.domain.graph import RELATIONS
from aegisflux.services.enrich.refill import refill

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
__all__ = ["facts", "server"]
SERVICES = ((101, "web"), (102, "db"), (None, ""))
PEERS = {"10.0.0.1": "own", "10.0.0.2": "private", "127.0.0.1": "loopback", "192.0.2.7": "public"}


def event(chance, seq, peer, service):
    """Anything that a host tells."""
    egress = chance.random() < 0.5
    direction, proto = "egress" if egress else "ingress", chance.choice((6, 17, 1))
    at = NOON + chance.randrange(1000) * SECOND
    verdict = chance.choice(("allowed", "allowed", "blocked", "would block"))
    kind = chance.randrange(8)
    if kind == 0:
        return execed(seq, at=at, path=f"/bin/{chance.randrange(3)}")
    if kind == 1:
        return listen(seq, at=at, port=service or 1, closed=chance.random() < 0.3)
    if kind == 2:
        return VerdictSeen(
            seq=seq, time_ns=at, service_id=101, direction=direction, proto=proto, peer=peer,
            verdict=verdict if verdict != "allowed" else "blocked", reason="no_match",
            peer_port=443 if egress else None, local_port=None if egress else 443,
        )  # fmt: skip
    return flow(
        seq, at=at, direction=direction, proto=proto, peer=peer, port=chance.choice((53, 443)),
        verdict=verdict, connections=chance.randrange(3), packets_in=chance.randrange(2),
    )  # fmt: skip


def context(chance, peer):
    """What a host's events are joined with."""
    (service, name), (peer_service, peer_name) = chance.choice(SERVICES), chance.choice(SERVICES)
    return Context(
        service_id=service, service=name, peer_service_id=peer_service, peer_service=peer_name,
        peer_host="" if peer_service is None and chance.random() < 0.5 else "db-1",
        peer_class=PEERS[peer],
    )  # fmt: skip


def batch_of(chance, first):
    """Some events of one service and one peer."""
    peer = chance.choice(list(PEERS))
    found = context(chance, peer)
    events = (event(chance, first + i, peer, found.service_id) for i in range(1, 8))
    return enriched(*events, context=found)


async def edges(graph):
    """All that is known, but times, as the store keeps microseconds, and listeners that ended."""
    found = []
    for relation in RELATIONS:
        for start, end in relation.ends:
            rows = await graph.rows(f"MATCH (a:{start})-[e:{relation.name}]->(b:{end}) RETURN a, e, b")
            for row in rows:
                ends = [{k: v for k, v in row[x].items() if not k.startswith("_")} for x in ("a", "b")]
                said = {k: v for k, v in row["e"].items() if k[0] != "_" and k != "last_ns" and v is not None}
                if not said.get("closed"):
                    found.append((relation.name, start, end, *map(str, (*ends, sorted(said.items())))))
    return sorted(found)


@pytest.mark.parametrize("seed", range(3))
async def test_a_filled_graph_is_the_one_that_events_made(facts, tmp_path, seed):
    chance, live, filled = random.Random(seed), LadybugGraph(tmp_path / "a"), LadybugGraph(tmp_path / "b")
    await facts._writer.execute(
        "truncate services cascade; insert into services (id, name, selectors, host_labels, created_at) "
        "values (101, 'web', '{}', '{}', 1), (102, 'db', '{}', '{}', 1)"
    )
    batches = [batch_of(chance, 10 * n) for n in range(80)]
    try:
        for graph in (live, filled):
            await graph.open()
        for batch in batches:
            (fresh,) = (await facts.commit([batch])).fresh
            await live.upsert(facts_of([fresh]))
        assert await refill(filled, facts, time.time() + 1e8) > 0
        wanted = await edges(live)
        assert len(wanted) > 30
        assert await edges(filled) == wanted
    finally:
        for graph in (live, filled):
            await graph.close()
