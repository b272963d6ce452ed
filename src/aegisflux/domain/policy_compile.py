"""A policy and an inventory become one snapshot for each governed service.

A rule is said at both of its ends, so that neither has to trust the other: as an edge of each service that
may call, and as an ingress rule of each that may be called. A snapshot is a whole service's: a rule whose end
is hosts, labels or a CIDR is a service's only when it holds all its hosts; `partial` tells of the others.

Two services on one host share its addresses: who lets one of them in lets in both (`shared`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import product
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from aegisflux.domain.errors import Invalid, NotFound
from aegisflux.domain.net import Address, Cidr, parse_address
from aegisflux.domain.policy import ANYONE, FLEET, Policy, Port, cidr_of, ends_of, ports_of
from aegisflux.domain.segment.cidrs import all_but, covering
from aegisflux.domain.snapshot import Deny, Edge, IngressRule, MapSnapshot, canonical

FIRST_VERSION: Final = 1


class HostPlace(Struct, frozen=True):
    """An enrolled host: its labels from the trusted inventory, and the addresses it has said it has."""

    labels: Mapping[str, str] = {}
    addresses: tuple[str, ...] = ()


class ServicePlace(Struct, frozen=True):
    """A registered service and the hosts that run it; `version` is the next one of its snapshots."""

    id: int
    hosts: tuple[str, ...] = ()
    version: int = FIRST_VERSION


class Inventory(Struct, frozen=True):
    """What names mean now."""

    services: Mapping[str, ServicePlace]
    hosts: Mapping[str, HostPlace]

    def addresses(self, hosts: Iterable[str]) -> frozenset[Address]:
        """Of these hosts; what is no address is nobody's."""
        return frozenset(
            parse_address(text) for host in hosts if host in self.hosts for text in self.hosts[host].addresses
        )


class Place(NamedTuple):
    """Where an end is: hosts, and prefixes that stand for themselves."""

    hosts: frozenset[str]
    cidrs: tuple[Cidr, ...] = ()
    anyone: bool = False
    unregistered: bool = False


class Places:
    """Ends of a policy, looked up in an inventory; each once."""

    def __init__(self, policy: Policy, inventory: Inventory) -> None:
        self._policy, self._inventory = policy, inventory
        self._known: dict[str, Place] = {}
        self._prefixes: dict[str, tuple[Cidr, ...]] = {}
        self._held: dict[str, frozenset[str]] = {}
        for name in policy.groups:
            if name in inventory.services:
                raise Invalid(f"groups.{name}", "a name that no registered service has", name)

    @cached_property
    def fleet(self) -> frozenset[Address]:
        """The addresses of all hosts."""
        return self._inventory.addresses(self._inventory.hosts)

    def of(self, end: str, path: str) -> Place:
        """Where an end is; raises NotFound by path for a name that nobody has."""
        found = self._known.get(end)
        if found is None:
            found = self._known[end] = self._of(end, path)
        return found

    def prefixes(self, end: str, path: str) -> tuple[Cidr, ...]:
        """The prefixes of an end, as few as can be."""
        found = self._prefixes.get(end)
        if found is None:
            found = self._prefixes[end] = self._covered(self.of(end, path))
        return found

    def held(self, end: str, path: str) -> frozenset[str]:
        """The services of which the end holds every host; of a service's name that service alone."""
        found = self._held.get(end)
        if found is None:
            found = self._held[end] = frozenset(self._services(end, path, all))
        return found

    def touched(self, end: str, path: str) -> frozenset[str]:
        """The services of which the end holds some host."""
        return frozenset(self._services(end, path, any))

    def _services(self, end: str, path: str, which: Callable[[Iterable[bool]], bool]) -> Iterator[str]:
        place = self.of(end, path)
        if end in self._inventory.services:
            yield end
            return
        inside = {host for host in self._inventory.hosts if self._inside(place, host)}
        for name, service in self._inventory.services.items():
            if service.hosts and which(host in inside for host in service.hosts):
                yield name

    def _inside(self, place: Place, host: str) -> bool:
        if place.unregistered:
            return False
        if host in place.hosts:
            return True
        own = self._inventory.addresses((host,)) if place.cidrs else ()
        return bool(own) and all(any(cidr.covers(a) for cidr in place.cidrs) for a in own)

    def _covered(self, place: Place) -> tuple[Cidr, ...]:
        if place.anyone:
            return all_but(self.fleet)
        own = self._inventory.addresses(place.hosts)
        extra = self._policy.extra_addresses
        members = covering(own, self.fleet - own, extra) if extra else covering(own)
        return tuple(dict.fromkeys((*members, *place.cidrs)))

    def _of(self, end: str, path: str) -> Place:
        inventory, policy = self._inventory, self._policy
        if end == FLEET:
            return Place(frozenset(inventory.hosts))
        if end == ANYONE:
            return Place(frozenset(), anyone=True)
        if end in inventory.services:
            return Place(frozenset(inventory.services[end].hosts))
        if end in policy.groups:
            group = policy.groups[end]
            hosts = {self._host(host, f"groups.{end}.hosts") for host in group.hosts}
            cidrs = (cidr_of(text, f"groups.{end}.cidrs") for text in group.cidrs)
            every = frozenset(hosts) | self._labelled(group.labels)
            return Place(every, tuple(c for c in cidrs if c), unregistered=group.unregistered)
        if (cidr := cidr_of(end, path)) is not None:
            return Place(frozenset(), (cidr,))
        kind, _, rest = end.partition(":")
        if kind == "host" and rest:
            return Place(frozenset({self._host(rest, path)}))
        if kind == "label" and rest:
            name, _, value = rest.partition("=")
            return Place(self._labelled({name: value}))
        raise NotFound(f"{path}: no service, group or kind of end is named {end!r}")

    def _host(self, host: str, path: str) -> str:
        if host not in self._inventory.hosts:
            raise NotFound(f"{path}: host {host!r} is not enrolled")
        return host

    def _labelled(self, labels: Mapping[str, str]) -> frozenset[str]:
        if not labels:
            return frozenset()
        wanted = labels.items()
        return frozenset(
            host for host, place in self._inventory.hosts.items() if wanted <= place.labels.items()
        )


def governed(policy: Policy, inventory: Inventory) -> tuple[str, ...]:
    """The services that the policy governs, by name; raises NotFound for one that is not registered."""
    if policy.services is not None:
        for n, name in enumerate(policy.services):
            if name not in inventory.services:
                raise NotFound(f"services[{n}]: no service is named {name!r}")
        return tuple(sorted(set(policy.services)))
    named = {end for rule in policy.rules for end in (*ends_of(rule.from_), *ends_of(rule.to))}
    return tuple(sorted(named & set(inventory.services)))


class _Entries:
    """What a service's snapshot is made of."""

    def __init__(self) -> None:
        self.edges: list[Edge] = []
        self.ingress: list[IngressRule] = []
        self.deny: list[Deny] = []

    def add(self, action: str, direction: Literal["egress", "ingress"], cidr: str, port: Port) -> None:
        if action == "deny":
            self.deny.append(Deny(cidr, *port, direction))
        elif direction == "egress":
            self.edges.append(Edge(cidr, *port))
        else:
            self.ingress.append(IngressRule(cidr, *port))


def compile_policy(policy: Policy, inventory: Inventory) -> dict[str, MapSnapshot]:
    """The canonical snapshot of each governed service, by name; raises NotFound or Invalid by the path of the
    rule. The same policy and inventory give the same snapshots."""
    places = Places(policy, inventory)
    found = {name: _Entries() for name in governed(policy, inventory)}
    for n, rule in enumerate(policy.rules):
        path = f"rules[{n}]"
        ports = ports_of(rule, path)
        clients, servers = ends_of(rule.from_), ends_of(rule.to)
        sides: tuple[tuple[Literal["egress", "ingress"], tuple[str, ...], tuple[str, ...]], ...] = (
            ("egress", clients, servers),
            ("ingress", servers, clients),
        )
        for direction, own, peers in sides:
            cidrs = [str(cidr) for end in peers for cidr in places.prefixes(end, path)]
            for name in frozenset().union(*(places.held(end, path) for end in own)) & found.keys():
                for cidr, port in product(cidrs, ports):
                    found[name].add(rule.action, direction, cidr, port)
    return {name: _snapshot(policy, inventory.services[name], entries) for name, entries in found.items()}


def _snapshot(policy: Policy, place: ServicePlace, entries: _Entries) -> MapSnapshot:
    return canonical(
        MapSnapshot(
            version=place.version,
            service_id=place.id,
            ttl_seconds=policy.ttl_seconds,
            edges=tuple(entries.edges),
            ingress=tuple(entries.ingress),
            deny=tuple(entries.deny),
            mode=policy.mode,
            on_expiry=policy.on_expiry,
            established=policy.established,
        )
    )


def partial(policy: Policy, inventory: Inventory, places: Places) -> Iterator[tuple[int, str, str]]:
    """(rule, end, service) where an end holds some hosts of a governed service and not all: the rule does not
    belong to that service."""
    services = set(governed(policy, inventory))
    for n, rule in enumerate(policy.rules):
        for end in dict.fromkeys((*ends_of(rule.from_), *ends_of(rule.to))):
            path = f"rules[{n}]"
            for service in sorted((places.touched(end, path) - places.held(end, path)) & services):
                yield n, end, service


def shared(policy: Policy, inventory: Inventory) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(host, services) where more than one service that a rule names runs on a host: over addresses they
    cannot be told apart."""
    named = set(governed(policy, inventory))
    for host in sorted(inventory.hosts):
        own = tuple(s for s in sorted(named) if host in inventory.services[s].hosts)
        if len(own) > 1:
            yield host, own
