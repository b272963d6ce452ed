"""Fill an empty graph from the store: after it was deleted, torn by a crash, or made by another schema."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.graph import Sight, Upserts, host_of, peer_of, software_of
from aegisflux.ports.facts import Facts
from aegisflux.ports.graph import Graph
from aegisflux.runtime import logs, metrics
from aegisflux.services.enrich.graphed import put_in

PART = 20_000
MOST = 500_000  # as in the queries
log = logs.get("enrich")


async def refill(graph: Graph, facts: Facts, now: float) -> int:
    """Put in all that was stored before `now` (seconds), if nothing is there; how many edges and nodes."""
    (row,) = await graph.rows("MATCH (n) RETURN count(n) AS nodes")
    if row["nodes"]:
        return 0
    before, count = datetime.fromtimestamp(now, UTC), 0
    known = await facts.known()
    labels = {host.host_id: host.labels for host in known.hosts}
    for query, put in (
        ("graph_listeners", _listener),
        ("graph_flows", _flow),
        ("graph_refusals", _flow),
        ("graph_programs", _program),
    ):
        rows = await facts.rows(query, *(() if query == "graph_listeners" else (before,)))
        if len(rows) >= MOST:
            log.warning("the graph is filled in part", of=query, rows=MOST)
        for at in range(0, len(rows), PART):
            count += await put_in(graph, _sights(rows[at : at + PART], put, labels))
    for inventory in known.inventories:
        try:
            count += await put_in(graph, software_of(inventory))
        except Unavailable:
            raise
        except Exception:  # the software of one host leaves that of the others
            log.exception("an inventory is left out of the graph", host_id=inventory.host_id)
    if count:
        log.info("the graph was empty and is filled from the store", entries=count)
    return count


def _sights(rows: Sequence[Mapping[str, Any]], put: Any, labels: Mapping[str, Mapping[str, str]]) -> Upserts:
    """Rows host by host."""
    hosts: dict[str, Sight] = defaultdict(Sight)
    for row in rows:
        sight = hosts[row["host_id"]]
        try:
            service = row["service_id"]
            if service is not None:
                service = sight.runs_on(service, row["service"], row["last_ns"])
            put(sight, row, service)
        except (TypeError, ValueError, LookupError) as error:  # one row leaves the others
            metrics.graph_dropped.inc()
            log.warning("a row is left out of the graph", host_id=row["host_id"], error=str(error))
    found = Upserts()
    for host, sight in hosts.items():
        sight.put(found, host_of(found, host, labels.get(host, {})))
    return found


def _flow(sight: Sight, row: Mapping[str, Any], service: int | None) -> None:
    peer = peer_of(
        row["peer_service_id"], row["peer_service"], row["peer_host"], row["peer"], row["peer_class"]
    )
    key = (service, *peer, row["direction"] == "egress", row["proto"], row["port"])
    sight.flow(key, row["allowed"], row["blocked"], row["bytes"], row["last_ns"])


def _program(sight: Sight, row: Mapping[str, Any], service: int | None) -> None:
    sight.run(service, row["path"], row["runs"], row["last_ns"])


def _listener(sight: Sight, row: Mapping[str, Any], service: int | None) -> None:
    sight.listen((service, row["address"], row["proto"], row["port"]), False, row["last_ns"])
