"""The graph of the fleet: one schema for every Cypher engine, and what a batch of events adds to it.

Nodes and relations are described once (`NODES`, `RELATIONS`); adapters compile constraints and upserts of it.
`facts_of` turns enriched events into upserts, added up: a thousand flows between two services are one.
The graph is a cache of the store: it holds sums and last sightings, no single events.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from aegisflux.domain.enriched import Enriched, EnrichedBatch
from aegisflux.domain.event import Exec, FlowSeen, Listen
from aegisflux.domain.inventory import PackageInventory

Kind = Literal["text", "int", "bool"]
Label = Literal["Host", "Service", "Binary", "Package", "Vulnerability", "Endpoint"]
RelationName = Literal["RUNS", "COMMUNICATES", "HAS", "AFFECTED_BY", "LISTENS", "EXECUTES"]
Value = str | int | bool


@dataclass(frozen=True, slots=True)
class Property:
    """A property; `adds` properties are added up, the others are replaced by what was said last."""

    name: str
    kind: Kind
    adds: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A kind of node; `key` tells two of them apart."""

    label: Label
    key: Property
    properties: tuple[Property, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of relation between `ends`; `keys` tell two of them between the same nodes apart."""

    name: RelationName
    ends: tuple[tuple[Label, Label], ...]
    keys: tuple[Property, ...]
    properties: tuple[Property, ...]


LAST: Final = Property("last_ns", "int")
_ACTORS: Final[tuple[Label, ...]] = ("Service", "Host", "Endpoint")

NODES: Final[tuple[Node, ...]] = (
    Node("Host", Property("id", "text"), (Property("labels", "text"),)),
    Node("Service", Property("id", "int"), (Property("name", "text"),)),
    Node("Binary", Property("path", "text"), ()),
    Node(
        "Package",
        Property("id", "text"),
        (Property("type", "text"), Property("name", "text"), Property("version", "text")),
    ),
    Node(
        "Vulnerability",
        Property("id", "text"),
        (Property("severity", "text"), Property("kev", "bool")),
    ),
    Node("Endpoint", Property("address", "text"), (Property("class", "text"),)),
)
RELATIONS: Final[tuple[Relation, ...]] = (
    Relation("RUNS", (("Host", "Service"),), (), (LAST,)),
    Relation(
        "COMMUNICATES",
        tuple((a, b) for a in _ACTORS for b in _ACTORS if (a, b) != ("Endpoint", "Endpoint")),
        (Property("proto", "int"), Property("port", "int")),
        (
            Property("allowed", "int", adds=True),
            Property("blocked", "int", adds=True),
            Property("bytes", "int", adds=True),
            LAST,
        ),
    ),
    Relation("HAS", (("Host", "Package"),), (), ()),
    Relation("AFFECTED_BY", (("Package", "Vulnerability"),), (), ()),
    Relation(
        "LISTENS",
        (("Host", "Endpoint"), ("Service", "Endpoint")),
        (Property("proto", "int"), Property("port", "int")),
        (Property("closed", "bool"), LAST),
    ),
    Relation(
        "EXECUTES",
        (("Host", "Binary"), ("Service", "Binary")),
        (),
        (Property("runs", "int", adds=True), LAST),
    ),
)
NODE: Final = {node.label: node for node in NODES}
RELATION: Final = {relation.name: relation for relation in RELATIONS}


class Ref(NamedTuple):
    """A node, by its key."""

    label: Label
    key: Value


class Edge(NamedTuple):
    """A relation, by its ends and the values of its keys."""

    name: RelationName
    start: Ref
    end: Ref
    keys: tuple[Value, ...] = ()


@dataclass(slots=True)
class Upserts:
    """Nodes and edges to be made or changed; one entry for each, however often it was seen."""

    nodes: dict[Ref, dict[str, Value]] = field(default_factory=dict)
    edges: dict[Edge, dict[str, Value]] = field(default_factory=dict)

    def node(self, ref: Ref, **properties: Value) -> Ref:
        """See a node."""
        self.nodes.setdefault(ref, {}).update(properties)
        return ref

    def edge(self, edge: Edge, **properties: Value) -> None:
        """See an edge once more; its ends are to be seen by `node`."""
        known = self.edges.setdefault(edge, {})
        adding = _ADDING[edge.name]
        for name, value in properties.items():
            known[name] = known.get(name, 0) + value if name in adding else value  # type: ignore[operator]

    def __bool__(self) -> bool:
        return bool(self.nodes or self.edges)


_ADDING: Final = {r.name: frozenset(p.name for p in r.properties if p.adds) for r in RELATIONS}


def facts_of(batches: Iterable[EnrichedBatch], into: Upserts | None = None) -> Upserts:
    """What events say of the graph, added to `into`."""
    found = into if into is not None else Upserts()
    for batch in batches:
        host = found.node(Ref("Host", batch.host_id), labels=_text(batch.labels))
        for enriched in batch.events:
            _see(found, host, enriched)
    return found


def _see(found: Upserts, host: Ref, enriched: Enriched) -> None:
    event = enriched.event
    if isinstance(event, FlowSeen):
        _flow(found, host, enriched, event)
    elif isinstance(event, Exec):
        actor = _local(found, host, enriched, event.time_ns)
        binary = found.node(Ref("Binary", event.path))
        found.edge(Edge("EXECUTES", actor, binary), runs=1, last_ns=event.time_ns)
    elif isinstance(event, Listen):
        actor = _local(found, host, enriched, event.time_ns)
        endpoint = found.node(Ref("Endpoint", event.address))
        found.edge(
            Edge("LISTENS", actor, endpoint, (event.proto, event.port)),
            closed=event.closed,
            last_ns=event.time_ns,
        )


def _flow(found: Upserts, host: Ref, enriched: Enriched, event: FlowSeen) -> None:
    """One side's sight of a flow. Where the peer's own host tells of it too, only the initiator's counts."""
    context = enriched.context
    if context.peer_class in ("own", "loopback") or (event.direction == "ingress" and context.peer_host):
        return
    local, peer = _local(found, host, enriched, event.last_ns), _peer(found, enriched, event)
    start, end = (local, peer) if event.direction == "egress" else (peer, local)
    blocked = event.verdict == "blocked"
    count = max(1, event.connections)
    found.edge(
        Edge("COMMUNICATES", start, end, (event.proto, event.port)),
        allowed=0 if blocked else count,
        blocked=count if blocked else 0,
        bytes=event.bytes_in + event.bytes_out,
        last_ns=event.last_ns,
    )


def _local(found: Upserts, host: Ref, enriched: Enriched, at: int) -> Ref:
    context = enriched.context
    if context.service_id is None:
        return host
    service = found.node(Ref("Service", context.service_id), name=context.service)
    found.edge(Edge("RUNS", host, service), last_ns=at)
    return service


def _peer(found: Upserts, enriched: Enriched, event: FlowSeen) -> Ref:
    context = enriched.context
    if context.peer_service_id is not None:
        return found.node(Ref("Service", context.peer_service_id), name=context.peer_service)
    if context.peer_host:
        return found.node(Ref("Host", context.peer_host))
    endpoint = Ref("Endpoint", event.peer)
    return found.node(endpoint, **{"class": context.peer_class or ""})


def software_of(inventory: PackageInventory) -> Upserts:
    """What an inventory says of the graph. What was removed is to be taken away by the caller first."""
    found = Upserts()
    host = found.node(Ref("Host", inventory.host_id))
    for package in inventory.packages:
        ref = Ref("Package", f"{package.type}/{package.name}@{package.version}")
        found.node(ref, type=package.type, name=package.name, version=package.version)
        found.edge(Edge("HAS", host, ref))
    return found


def _text(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
