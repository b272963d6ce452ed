"""Questions to the graph: who reaches a service, and what a compromise of a host exposes."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from aegisflux.domain.could import Party, could_reach
from aegisflux.domain.errors import NotFound
from aegisflux.domain.net import PROTOCOL_NAMES
from aegisflux.domain.reach import Hop, Reached, exposed, reaching
from aegisflux.ports.facts import Facts
from aegisflux.ports.graph import Graph
from aegisflux.runtime.beside import beside
from aegisflux.services.enrich.parties import Parties

MAX_EDGES: Final = 200_000
ANSWERS_AT_ONCE: Final = 2
ACTORS: Final = {"Service": "name", "Host": "id", "Endpoint": "address"}

Traffic = tuple[Hop, int, int]
"""An edge, how often it was allowed, how often refused."""


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
    """Each answer is made of one look at edges and snapshots in force; raises NotFound or Unavailable.

    A look is all edges of the fleet: who asks while one is under way shares it, and two answers are made at
    once, in threads.
    """

    def __init__(self, graph: Graph, facts: Facts) -> None:
        self._graph, self._parties = graph, Parties(facts)
        self._turn = asyncio.Semaphore(ANSWERS_AT_ONCE)
        self._look: asyncio.Task[list[Traffic]] | None = None

    async def reach(self, service: str) -> Reach:
        """Who reaches the service of that name, who could, and who was refused there."""
        parties = await self._parties.all()
        rows = await self._graph.rows(
            "MATCH (s:Service {name: $name}) OPTIONAL MATCH (h:Host)-[:RUNS]->(s) RETURN h.id AS host",
            {"name": service},
        )
        hosts = tuple(sorted({row["host"] for row in rows if row["host"]}))
        ours = any(party.service == service for party in parties)
        if not rows and not ours and not await self._parties.knows(service):
            raise NotFound(f"no service {service} is known")
        async with self._turn:
            edges = await self._edges()
            return await beside(_reach, service, hosts, edges, parties)

    async def blast_radius(self, host: str) -> BlastRadius:
        """What the host runs, what these reach, and what they could."""
        values = {"host": host}
        if not await self._graph.rows("MATCH (h:Host {id: $host}) RETURN h.id AS id", values):
            raise NotFound(f"no host {host} was seen; hosts appear with their first event")
        runs = await self._graph.rows(
            "MATCH (:Host {id: $host})-[:RUNS]->(s:Service) RETURN s.name AS name", values
        )
        services = sorted(row["name"] for row in runs)
        software, parties = await self._software(host), await self._parties.all()
        async with self._turn:
            edges = await self._edges()
            return await beside(_radius, host, services, software, edges, parties)

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

    async def _edges(self) -> list[Traffic]:
        """All traffic, as a look that began just now or is under way has it."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._looked())
        return await asyncio.shield(self._look)

    async def _looked(self) -> list[Traffic]:
        found: list[Traffic] = []
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
                rows = await self._graph.rows(query)
                found += await beside(_traffic, start.lower(), end.lower(), rows)
        return found


def _traffic(start: str, end: str, rows: Sequence[Mapping[str, Any]]) -> list[Traffic]:
    return [
        (
            Hop(f"{start}:{row['a']}", f"{end}:{row['b']}", row["proto"], row["port"], True, row["last_ns"]),
            row["allowed"],
            row["blocked"],
        )
        for row in rows
    ]


def _reach(service: str, hosts: tuple[str, ...], edges: Sequence[Traffic], parties: Sequence[Party]) -> Reach:
    target = f"service:{service}"
    allowed, blocked = [e for e, seen, _ in edges if seen], [e for e, _, refused in edges if refused]
    possible, cut = could_reach(parties)
    seen = reaching(target, allowed)
    return Reach(
        service,
        hosts,
        tuple(map(_way, seen)),
        tuple(map(_way, _beyond(seen, reaching(target, [*allowed, *possible])))),
        tuple(_way(Reached(edge.start, 1, edge)) for edge in sorted(blocked) if edge.end == target),
        any(party.is_open for party in parties if party.service == service),
        cut,
    )


def _radius(
    host: str,
    services: Sequence[str],
    software: Software,
    edges: Sequence[Traffic],
    parties: Sequence[Party],
) -> BlastRadius:
    starts = [f"host:{host}", *(f"service:{name}" for name in services)]
    allowed = [edge for edge, seen, _ in edges if seen]
    possible, cut = could_reach(parties)
    found = exposed(starts, allowed)
    more = _beyond(found, exposed(starts, [*allowed, *possible]))
    return BlastRadius(host, tuple(services), tuple(map(_way, found)), tuple(map(_way, more)), software, cut)


def _beyond(seen: Iterable[Reached], all_: Iterable[Reached]) -> list[Reached]:
    known = {reached.actor for reached in seen}
    return [reached for reached in all_ if reached.actor not in known]


def _way(reached: Reached) -> Way:
    hop = reached.by
    proto = PROTOCOL_NAMES.get(hop.proto, str(hop.proto))
    return Way(reached.actor, reached.hops, f"{hop.start} -> {hop.end} {proto}/{hop.port}", hop.last_ns)
