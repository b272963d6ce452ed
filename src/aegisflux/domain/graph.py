"""The graph of the fleet: one schema for every Cypher engine, and what a batch of events adds to it.

Nodes and relations are described once (`NODES`, `RELATIONS`); adapters compile constraints and upserts of it.
`facts_of` turns enriched events into upserts, added up: a thousand flows between two services are one.
The graph is a cache of the store: it holds sums and last sightings, no single events.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal, NamedTuple

from aegisflux.domain.enriched import Context, EnrichedBatch, PackageRef
from aegisflux.domain.event import Event, Exec, FlowSeen, Listen, VerdictSeen
from aegisflux.domain.graph_share import OTHERS, Told, network_of
from aegisflux.domain.inventory import Package, PackageInventory
from aegisflux.domain.known import KnownVulnerability
from aegisflux.domain.net import TCP
from aegisflux.domain.rollup import MOST

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


DAY_NS: Final = 86_400_000_000_000
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


def _added(known: Value, more: Value) -> int:
    return min(MOST, int(known) + int(more))


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
            known[name] = _added(known.get(name, 0), value) if name in adding else value

    def parts(self, most: int) -> Iterator["Upserts"]:
        """The same in pieces of at most `most` entries: nodes first, so that every edge finds its ends."""
        if 0 < len(self.nodes) + len(self.edges) <= most:
            yield self
            return
        nodes, edges = iter(self.nodes.items()), iter(self.edges.items())
        while some_nodes := dict(islice(nodes, most)):
            yield Upserts(nodes=some_nodes)
        while some_edges := dict(islice(edges, most)):
            yield Upserts(edges=some_edges)

    def __bool__(self) -> bool:
        return bool(self.nodes or self.edges)


_ADDING: Final = {r.name: frozenset(p.name for p in r.properties if p.adds) for r in RELATIONS}


def host_of(found: Upserts, host_id: str, labels: Mapping[str, str]) -> Ref:
    """A host with its labels, as one text."""
    return found.node(
        Ref("Host", host_id), labels=",".join(f"{name}={value}" for name, value in sorted(labels.items()))
    )


FlowKey = tuple[int | None, Ref, str, bool, int, int]
"""The local service, the peer with its name or class, whether it is egress, protocol and port."""

ListenKey = tuple[int | None, str, int, int]
"""The local service, the address, protocol and port."""


class Sight:
    """What one host says, by plain keys, added up; a service None is the host itself. `told` bounds it."""

    __slots__ = ("_told", "flows", "listens", "names", "ran", "runs")

    def __init__(self, told: Told | None = None) -> None:
        self._told = told or Told()
        self.names: dict[int, str] = {}
        self.ran: dict[int, int] = {}
        self.flows: dict[FlowKey, list[int]] = {}
        self.runs: dict[tuple[int | None, str], list[int]] = {}
        self.listens: dict[ListenKey, tuple[bool, int]] = {}

    def __len__(self) -> int:
        """How many edges it is."""
        return len(self.ran) + len(self.flows) + len(self.runs) + len(self.listens)

    def add(self, event: Event, context: Context) -> None:
        """See an event."""
        service = context.service_id
        if type(event) is FlowSeen:
            self._flow(event, context)
        elif type(event) is Exec:
            service = self._local(service, context.service, event.time_ns)
            self.run(service, event.path, 1, event.time_ns)
        elif type(event) is Listen:
            service = self._local(service, context.service, event.time_ns)
            self.listen((service, event.address, event.proto, event.port), event.closed, event.time_ns)
        elif type(event) is VerdictSeen and event.verdict == "blocked" and event.direction == "egress":
            self._refused(event, context)

    def put(self, found: Upserts, host: Ref) -> None:
        """All of it as nodes and edges."""
        actors: dict[int | None, Ref] = {None: host}
        for number, at in self.ran.items():
            actors[number] = found.node(Ref("Service", number), name=self.names[number])
            found.edge(Edge("RUNS", host, actors[number]), last_ns=at)
        for (service, peer, text, egress, proto, port), (allowed, blocked, size, last) in self.flows.items():
            property_ = {"Service": {"name": text}, "Endpoint": {"class": text}}.get(peer.label, {})
            found.node(peer, **property_)
            local = actors[service]
            start, end = (local, peer) if egress else (peer, local)
            edge = Edge("COMMUNICATES", start, end, (proto, port))
            found.edge(edge, allowed=allowed, blocked=blocked, bytes=size, last_ns=last)
        for (service, path), (runs, last) in self.runs.items():
            binary = found.node(Ref("Binary", path))
            found.edge(Edge("EXECUTES", actors[service], binary), runs=runs, last_ns=last)
        for (service, address, proto, port), (closed, last) in self.listens.items():
            endpoint = found.node(Ref("Endpoint", address))
            edge = Edge("LISTENS", actors[service], endpoint, (proto, port))
            found.edge(edge, closed=closed, last_ns=last)

    def _flow(self, event: FlowSeen, context: Context) -> None:
        """One side's sight of a flow. Where the peer's host tells of it too, the initiator tells what passed,
        and each what it refused itself: the other saw a call without an answer, which reached nobody.
        """
        egress, refused = event.direction == "egress", event.verdict == "blocked"
        if context.peer_class in ("own", "loopback") or (not egress and context.peer_host and not refused):
            return
        service, count = context.service_id, max(1, event.connections)
        blocked = count if refused else 0
        allowed = 0 if refused or (egress and event.proto == TCP and not event.packets_in) else count
        service = self._local(service, context.service, event.last_ns)
        key = (service, *_peer(event, context), egress, event.proto, event.port)
        self.flow(key, allowed, blocked, event.bytes_in + event.bytes_out, event.last_ns)

    def flow(self, key: FlowKey, allowed: int, blocked: int, size: int, last_ns: int) -> None:
        """Traffic of a key, or of the coarser one that it is told by."""
        known = self.flows.get(key)
        if known is None:
            key = self._placed(key)
            known = self.flows.setdefault(key, [0, 0, 0, 0])
        known[0] += allowed
        known[1] += blocked
        known[2] += size
        known[3] = max(known[3], last_ns)

    def _placed(self, key: FlowKey) -> FlowKey:
        if self._told.place("flow", key):
            return key
        service, peer, text, egress, proto, _ = key
        if peer.label == "Endpoint":
            peer = Ref("Endpoint", network_of(str(peer.key)))
        coarse = (service, peer, text, egress, proto, 0)
        if self._told.place("network", coarse):
            return coarse
        return (None, Ref("Endpoint", OTHERS), OTHERS, egress, 0, 0)

    def _refused(self, event: VerdictSeen, context: Context) -> None:
        """What was refused at the call sent no packet, and is no flow."""
        service = self._local(context.service_id, context.service, event.time_ns)
        key = (service, *_peer(event, context), True, event.proto, event.peer_port or 0)
        self.flow(key, 0, 1, 0, event.time_ns)

    def run(self, service: int | None, path: str, runs: int, last_ns: int) -> None:
        """A program ran so often."""
        known = self.runs.get((service, path))
        if known is None:
            path = path if self._told.place("binary", (service, path)) else OTHERS
            known = self.runs.setdefault((service, path), [0, 0])
        known[0] += runs
        known[1] = last_ns

    def listen(self, key: ListenKey, closed: bool, last_ns: int) -> None:
        """Somebody listens there; of a host with too many listeners it is not told."""
        if self._told.place("listener", key):
            self.listens[key] = closed, last_ns

    def runs_on(self, service: int, name: str, at: int) -> int | None:
        """A service runs on the host; what it counts as."""
        return self._local(service, name, max(at, self.ran.get(service, 0)))

    def _local(self, service: int | None, name: str, at: int) -> int | None:
        """The service, or None: of a host that told of too many it is the host itself."""
        if service is None or not self._told.place("service", service):
            return None
        self.names[service] = name
        self.ran[service] = at
        return service


class Sights:
    """What many hosts say until it is put in, added up: what is told again takes no more room. `told` is what
    each of them told of today, which lasts longer than this.
    """

    def __init__(self, told: dict[str, Told] | None = None) -> None:
        self._hosts: dict[str, tuple[Sight, Mapping[str, str]]] = {}
        self._told = {} if told is None else told
        self.edges = 0

    def see(self, batches: Iterable[EnrichedBatch]) -> None:
        """See the events of batches, later ones after earlier ones."""
        for batch in batches:
            known = self._hosts.get(batch.host_id)
            told = self._told.setdefault(batch.host_id, Told())
            told.begin(batch.received_ns // DAY_NS)
            sight = known[0] if known else Sight(told)
            before = len(sight)
            for enriched in batch.events:
                sight.add(enriched.event, enriched.context)
            self._hosts[batch.host_id] = sight, batch.labels
            self.edges += len(sight) - before

    def put(self, found: Upserts) -> Iterator[None]:
        """Put all of it as nodes and edges, a host at each step."""
        for host_id, (sight, labels) in self._hosts.items():
            sight.put(found, host_of(found, host_id, labels))
            yield


def _peer(event: FlowSeen | VerdictSeen, context: Context) -> tuple[Ref, str]:
    return peer_of(
        context.peer_service_id, context.peer_service, context.peer_host, event.peer, context.peer_class or ""
    )


def peer_of(service: int | None, name: str, host: str, address: str, class_: str) -> tuple[Ref, str]:
    """A peer as a node, with its name or its class."""
    if service is not None:
        return Ref("Service", service), name
    if host:
        return Ref("Host", host), ""
    return Ref("Endpoint", address), class_


def software_of(inventory: PackageInventory) -> Upserts:
    """What an inventory says of the graph. What was removed is to be taken away by the caller first."""
    found = Upserts()
    host = found.node(Ref("Host", inventory.host_id))
    for package in inventory.packages:
        found.edge(Edge("HAS", host, _package(found, package)))
    return found


def vulnerabilities_of(known: Iterable[KnownVulnerability]) -> Upserts:
    """What is known of vulnerabilities, whichever host has the package."""
    found = Upserts()
    for one in known:
        open_one = one.vulnerability
        ref = found.node(Ref("Vulnerability", open_one.id), severity=open_one.severity, kev=open_one.kev)
        found.edge(Edge("AFFECTED_BY", _package(found, one.package), ref))
    return found


def _package(found: Upserts, package: Package | PackageRef) -> Ref:
    ref = Ref("Package", f"{package.type}/{package.name}@{package.version}")
    return found.node(ref, type=package.type, name=package.name, version=package.version)
