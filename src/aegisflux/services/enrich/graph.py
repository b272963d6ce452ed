"""Questions to the graph: who reaches a service, and what a compromise of a host exposes."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from aegisflux.domain.errors import NotFound
from aegisflux.domain.net import PROTOCOL_NAMES
from aegisflux.domain.reach import Hop, Reached, exposed, reaching
from aegisflux.ports.graph import Graph

MAX_EDGES: Final = 200_000
ACTORS: Final = {"Service": "name", "Host": "id", "Endpoint": "address"}


class Way(Struct, frozen=True):
    """An actor, how many steps away it is, and a step of a shortest way. `actor` is service:, host: or
    endpoint: and a name.
    """

    actor: str
    hops: int
    by: str
    last_ns: int


class Reach(Struct, frozen=True):
    """Who reaches a service."""

    service: str
    hosts: tuple[str, ...]
    reached_by: tuple[Way, ...]
    refused: tuple[Way, ...]


class Software(Struct, frozen=True):
    """What lies on a host."""

    packages: int
    vulnerabilities: tuple[str, ...]


class BlastRadius(Struct, frozen=True):
    """What a compromise of a host exposes."""

    host: str
    services: tuple[str, ...]
    reaches: tuple[Way, ...]
    software: Software


class Questions:
    """Each answer is made of one look at the edges; raises NotFound or Unavailable."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    async def reach(self, service: str) -> Reach:
        """Who reaches the service of that name, and who was refused there."""
        rows = await self._graph.rows(
            "MATCH (s:Service {name: $name}) OPTIONAL MATCH (h:Host)-[:RUNS]->(s) RETURN h.id AS host",
            {"name": service},
        )
        if not rows:
            raise NotFound(f"no service {service} was seen; services appear with their first event")
        target, edges = f"service:{service}", await self._edges()
        allowed, blocked = [e for e, seen, _ in edges if seen], [e for e, _, refused in edges if refused]
        return Reach(
            service,
            tuple(sorted(row["host"] for row in rows if row["host"])),
            tuple(map(_way, reaching(target, allowed))),
            tuple(_way(Reached(edge.start, 1, edge)) for edge in sorted(blocked) if edge.end == target),
        )

    async def blast_radius(self, host: str) -> BlastRadius:
        """What the host runs, and what these reach."""
        values = {"host": host}
        if not await self._graph.rows("MATCH (h:Host {id: $host}) RETURN h.id AS id", values):
            raise NotFound(f"no host {host} was seen; hosts appear with their first event")
        runs = await self._graph.rows(
            "MATCH (:Host {id: $host})-[:RUNS]->(s:Service) RETURN s.name AS name", values
        )
        services = sorted(row["name"] for row in runs)
        edges = [edge for edge, seen, _ in await self._edges() if seen]
        found = exposed([f"host:{host}", *(f"service:{name}" for name in services)], edges)
        return BlastRadius(host, tuple(services), tuple(map(_way, found)), await self._software(host))

    async def _software(self, host: str) -> Software:
        values = {"host": host}
        (count,) = await self._graph.rows(
            "MATCH (:Host {id: $host})-[:HAS]->(p:Package) RETURN count(p) AS n", values
        )
        open_ones = await self._graph.rows(
            "MATCH (:Host {id: $host})-[:HAS]->(:Package)-[:AFFECTED_BY]->(v:Vulnerability) "
            "RETURN DISTINCT v.id AS id ORDER BY id",
            values,
        )
        return Software(count["n"], tuple(row["id"] for row in open_ones))

    async def _edges(self) -> Sequence[tuple[Hop, int, int]]:
        """All traffic: the edge, how often it was allowed, how often refused."""
        found = []
        for start, start_name in ACTORS.items():
            for end, end_name in ACTORS.items():
                if start == end == "Endpoint":
                    continue
                query = (
                    f"MATCH (a:{start})-[e:COMMUNICATES]->(b:{end}) "
                    f"RETURN a.{start_name} AS a, b.{end_name} AS b, "
                    "e.proto AS proto, e.port AS port, e.allowed AS allowed, e.blocked AS blocked, "
                    f"e.last_ns AS last_ns LIMIT {MAX_EDGES}"
                )
                for row in await self._graph.rows(query):
                    hop = Hop(
                        f"{start.lower()}:{row['a']}", f"{end.lower()}:{row['b']}", row["proto"], row["port"],
                        True, row["last_ns"],
                    )  # fmt: skip
                    found.append((hop, row["allowed"], row["blocked"]))
        return found


def _way(reached: Reached) -> Way:
    hop = reached.by
    proto = PROTOCOL_NAMES.get(hop.proto, str(hop.proto))
    return Way(reached.actor, reached.hops, f"{hop.start} -> {hop.end} {proto}/{hop.port}", hop.last_ns)
