"""Questions to the graph: who reaches a service, and what a compromise of a host exposes."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from aegisflux.domain.could import could_reach
from aegisflux.domain.errors import NotFound
from aegisflux.domain.net import PROTOCOL_NAMES
from aegisflux.domain.reach import Hop, Reached, exposed, reaching
from aegisflux.ports.facts import Facts
from aegisflux.ports.graph import Graph
from aegisflux.services.enrich.parties import Parties

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
    """Who reaches a service.

    reached_by: whose traffic was seen to get there, directly or over others
    could:      who was not seen, and no snapshot in force forbids it
    refused:    who was refused there
    open:       some host of it takes calls from anybody
    cut:        there were too many services, addresses or ports to judge all
    """

    service: str
    hosts: tuple[str, ...]
    reached_by: tuple[Way, ...]
    could: tuple[Way, ...]
    refused: tuple[Way, ...]
    open: bool
    cut: bool


class Software(Struct, frozen=True):
    """What lies on a host."""

    packages: int
    vulnerabilities: tuple[str, ...]


class BlastRadius(Struct, frozen=True):
    """What a compromise of a host exposes: what its services reach, and what they could, as in Reach."""

    host: str
    services: tuple[str, ...]
    reaches: tuple[Way, ...]
    could: tuple[Way, ...]
    software: Software
    cut: bool


class Questions:
    """Each answer is made of one look at edges and snapshots in force; raises NotFound or Unavailable."""

    def __init__(self, graph: Graph, facts: Facts) -> None:
        self._graph, self._parties = graph, Parties(facts)

    async def reach(self, service: str) -> Reach:
        """Who reaches the service of that name, who could, and who was refused there."""
        target, parties = f"service:{service}", await self._parties.all()
        ours = [party for party in parties if party.service == service]
        rows = await self._graph.rows(
            "MATCH (s:Service {name: $name}) OPTIONAL MATCH (h:Host)-[:RUNS]->(s) RETURN h.id AS host",
            {"name": service},
        )
        if not rows and not ours and not await self._parties.knows(service):
            raise NotFound(f"no service {service} is known")
        edges = await self._edges()
        allowed, blocked = [e for e, seen, _ in edges if seen], [e for e, _, refused in edges if refused]
        possible, cut = await asyncio.to_thread(could_reach, parties)
        seen = reaching(target, allowed)
        return Reach(
            service,
            tuple(sorted({row["host"] for row in rows if row["host"]})),
            tuple(map(_way, seen)),
            tuple(map(_way, _beyond(seen, reaching(target, [*allowed, *possible])))),
            tuple(_way(Reached(edge.start, 1, edge)) for edge in sorted(blocked) if edge.end == target),
            any(party.is_open for party in ours),
            cut,
        )

    async def blast_radius(self, host: str) -> BlastRadius:
        """What the host runs, what these reach, and what they could."""
        values = {"host": host}
        if not await self._graph.rows("MATCH (h:Host {id: $host}) RETURN h.id AS id", values):
            raise NotFound(f"no host {host} was seen; hosts appear with their first event")
        runs = await self._graph.rows(
            "MATCH (:Host {id: $host})-[:RUNS]->(s:Service) RETURN s.name AS name", values
        )
        services = sorted(row["name"] for row in runs)
        starts = [f"host:{host}", *(f"service:{name}" for name in services)]
        edges = [edge for edge, seen, _ in await self._edges() if seen]
        possible, cut = await asyncio.to_thread(could_reach, await self._parties.all())
        found = exposed(starts, edges)
        more = _beyond(found, exposed(starts, [*edges, *possible]))
        software = await self._software(host)
        return BlastRadius(
            host, tuple(services), tuple(map(_way, found)), tuple(map(_way, more)), software, cut
        )

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


def _beyond(seen: Iterable[Reached], all_: Iterable[Reached]) -> list[Reached]:
    known = {reached.actor for reached in seen}
    return [reached for reached in all_ if reached.actor not in known]


def _way(reached: Reached) -> Way:
    hop = reached.by
    proto = PROTOCOL_NAMES.get(hop.proto, str(hop.proto))
    return Way(reached.actor, reached.hops, f"{hop.start} -> {hop.end} {proto}/{hop.port}", hop.last_ns)
