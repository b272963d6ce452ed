"""A policy and an inventory become one snapshot for each governed service.

A rule is said at both of its ends, so that neither has to trust the other: as an edge of each service that
may call, and as an ingress rule of each that may be called. A snapshot is a whole service's: a rule whose end
is hosts, labels or a CIDR is a service's only when it holds all its hosts; `partial` tells of the others. A
host is at a CIDR when one of its addresses lies in it, in the family of that address: snapshots do not tell a
host's own addresses apart.

An allow that is left out lets less through; a deny that is left out would let more through than is written,
so it is refused unless one of its ends says it whole.

Two services on one host share its addresses: who lets one of them in lets in both (`shared`).
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from itertools import product
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from aegisflux.domain.errors import AegisError, Invalid, NotFound, OverLimit
from aegisflux.domain.names import close, literal_of
from aegisflux.domain.net import Address, Cidr, masked, parse_address
from aegisflux.domain.paths import step
from aegisflux.domain.policy import (
    ANYONE,
    FLEET,
    KINDS,
    Policy,
    Port,
    Rule,
    cidr_of,
    end_paths,
    ends_named,
    ends_of,
    ports_of,
)  # fmt: skip
from aegisflux.domain.segment.cidrs import all_but, covering
from aegisflux.domain.snapshot import MAX_ENTRIES, Deny, Edge, IngressRule, MapSnapshot, canonical
from aegisflux.domain.spans import FAMILIES, Spans

FIRST_VERSION: Final = 1
Way = Literal["egress", "ingress"]
Reports = Literal["denied", "ignored", "believed"]
"""What the hosts are to others that are members of a service by their own report alone: in a plan they are
denied with it; they are not its members at all; they are, as if its labels named them."""


class HostPlace(Struct, frozen=True):
    """An enrolled host: its labels from the trusted inventory, and the addresses it has said it has."""

    labels: Mapping[str, str] = {}
    addresses: tuple[str, ...] = ()


class ServicePlace(Struct, frozen=True):
    """A registered service and the hosts that run it; `version` is the next one of its snapshots.

    `reported` are those of `hosts` that only their own report names, not their labels: they get the service's
    snapshot, and none of their addresses is allowed to anyone in the service's name. A plan denies them too.
    `definition` says its selectors and labels: another one is another service to who approved a plan.
    """

    id: int
    hosts: tuple[str, ...] = ()
    version: int = FIRST_VERSION
    reported: tuple[str, ...] = ()
    definition: str = ""


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

    def __init__(
        self, policy: Policy, inventory: Inventory, *, strict: bool = True, reports: Reports = "denied"
    ) -> None:
        self._policy, self._inventory, self._reports = policy, inventory, reports
        self._known: dict[str, Place] = {}
        self._prefixes: dict[tuple[str, bool], tuple[Cidr, ...]] = {}
        self._reached: dict[str, Mapping[str, frozenset[int]]] = {}
        for name in policy.groups if strict else ():
            self._check_group(name)

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

    def prefixes(self, end: str, path: str, *, allow: bool = True) -> tuple[Cidr, ...]:
        """Return the prefixes of an end, as few as can be.

        In a plan, to allow a service is to allow the hosts that its labels name; to deny it is to deny also
        those that only say that they run it.
        """
        service = self._inventory.services.get(end)
        labels_alone = self._reports == "ignored" or (self._reports == "denied" and allow)
        reported = frozenset(service.reported if service and labels_alone else ())
        found = self._prefixes.get((end, bool(reported)))
        if found is None:
            place = self.of(end, path)
            known = place._replace(hosts=place.hosts - reported)
            found = self._prefixes[end, bool(reported)] = self._covered(known)
        return found

    def held(self, end: str, path: str) -> frozenset[str]:
        """The services of which the end holds every host; of a service's name that service alone."""
        return frozenset(self.reached(end, path))

    def reached(self, end: str, path: str) -> Mapping[str, frozenset[int]]:
        """The families of addresses in which the end holds each of those services."""
        found = self._reached.get(end)
        if found is None:
            found = self._reached[end] = self._whole(end, path)
        return found

    def touched(self, end: str, path: str) -> frozenset[str]:
        """The services of which the end holds some host."""
        if end in self._inventory.services:
            return frozenset({end})
        return frozenset(service for host in self._inside(self.of(end, path)) for service in self._on[host])

    def nobody(self, end: str, path: str) -> bool:
        """Whether no host and no address is at the end."""
        place = self.of(end, path)
        return not (place.hosts or place.cidrs or place.anyone)

    def beside(self, end: str, path: str, services: Set[str], held: Set[str]) -> bool:
        """Whether something is at the end that is none of these services, or one that is not held."""
        place = self.of(end, path)
        if end in self._inventory.services or self.nobody(end, path):
            return end not in held and not self.nobody(end, path)
        if place.anyone or place.unregistered:
            return True
        on = {host: self._on[host] & services for host in self._inside(place)}
        at = {host for host, own in on.items() if own and own <= held}
        known = Spans(masked(*address, address.bits) for address in self._inventory.addresses(at))
        return not place.hosts <= at or not known.holds(Spans(place.cidrs))

    def _whole(self, end: str, path: str) -> dict[str, frozenset[int]]:
        if end in self._inventory.services:
            return {end: frozenset(FAMILIES)}
        inside = self._inside(self.of(end, path))
        count = Counter(service for host in inside for service in self._on[host])
        return {
            name: frozenset[int]().union(*(inside[host] for host in self._members[name] & inside.keys()))
            for name in count
            if count[name] == len(self._members[name]) or name in self._held_by_any
        }

    def _inside(self, place: Place) -> Mapping[str, Collection[int]]:
        """The hosts at a place, with the families in which they are there."""
        if place.unregistered:
            return {}
        found: dict[str, set[int]] = {host: set(FAMILIES) for host in place.hosts}
        for cidr in place.cidrs:
            first = bisect_left(self._at, ((cidr.family, cidr.value), ""))
            last = bisect_left(self._at, ((cidr.family, cidr.last + 1), ""))
            for _, host in self._at[first:last]:
                found.setdefault(host, set()).add(cidr.family)
        return found

    @cached_property
    def _at(self) -> list[tuple[tuple[int, int], str]]:
        """(address, host), by address."""
        hosts = self._inventory.hosts
        return sorted((a[:2], host) for host in hosts for a in self._inventory.addresses((host,)))

    @cached_property
    def _on(self) -> Mapping[str, Set[str]]:
        """The services of each host."""
        found: dict[str, set[str]] = defaultdict(set)
        for name, hosts in self._members.items():
            for host in hosts:
                found[host].add(name)
        return found

    @cached_property
    def _members(self) -> Mapping[str, Set[str]]:
        """The hosts of each service that an end has to hold: but in a plan a report is none beside labels."""
        services = self._inventory.services.items()
        if self._reports == "denied":
            return {name: frozenset(service.hosts) for name, service in services}
        return {
            name: frozenset(service.hosts).difference(service.reported) or frozenset(service.hosts)
            for name, service in services
        }

    @cached_property
    def _held_by_any(self) -> Set[str]:
        """The services that an end holds with any of their hosts: a report takes no rule from the others."""
        services = self._inventory.services.items() if self._reports == "believed" else ()
        return {name for name, service in services if len(service.reported) == len(service.hosts)}

    def _covered(self, place: Place) -> tuple[Cidr, ...]:
        if place.anyone:
            return all_but(self.fleet)
        own = self._inventory.addresses(place.hosts)
        extra = self._policy.extra_addresses
        members = covering(own, self.fleet - own, extra) if extra else covering(own)
        return tuple(dict.fromkeys((*members, *place.cidrs)))

    def _of(self, end: str, path: str) -> Place:
        inventory, policy = self._inventory, self._policy
        if end in inventory.services and _is_end(end):
            kind = literal_of(end) or "an end of rules"
            raise Invalid(
                path, f"what is one thing: a service has this name, which is {kind} too; rename it", end
            )
        if end in policy.groups:
            self._check_group(end)
        if end == FLEET:
            return Place(frozenset(inventory.hosts))
        if end == ANYONE:
            return Place(frozenset(), anyone=True)
        if end in inventory.services:
            return Place(frozenset(inventory.services[end].hosts))
        if end in policy.groups:
            group = policy.groups[end]
            at = step(step("groups", end), "hosts")
            hosts = {self._host(host, step(at, n)) for n, host in enumerate(group.hosts)}
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
        raise NotFound(f"{path}: no service, group or kind of end is named {end!r}{self._near(end)}")

    def _check_group(self, name: str) -> None:
        if name in self._inventory.services:
            raise Invalid(f"groups.{name}", "a name that no registered service has", name)

    def _host(self, host: str, path: str) -> str:
        if host not in self._inventory.hosts:
            near = close(host, self._inventory.hosts)
            raise NotFound(f"{path}: host {host!r} is not enrolled{near or '; see aegisflux hosts list'}")
        return host

    def _near(self, end: str) -> str:
        names = (FLEET, ANYONE, *self._inventory.services, *self._policy.groups)
        return close(end, names) or f"; expected {KINDS}"

    def _labelled(self, labels: Mapping[str, str]) -> frozenset[str]:
        if not labels:
            return frozenset()
        wanted = labels.items()
        return frozenset(
            host for host, place in self._inventory.hosts.items() if wanted <= place.labels.items()
        )


def _is_end(text: str) -> bool:
    """Whether a rule may say this and mean no name: a service of this name is not meant for sure."""
    if text in (FLEET, ANYONE) or text.startswith(("host:", "label:")):
        return True
    try:
        return cidr_of(text, "") is not None
    except Invalid:  # it looks like an address, and is a wrong one
        return True


def governed(policy: Policy, inventory: Inventory) -> tuple[str, ...]:
    """The services that the policy governs, by name; raises NotFound for one that is not registered."""
    if policy.services is not None:
        for n, name in enumerate(policy.services):
            if name not in inventory.services:
                near = close(name, inventory.services)
                advice = near or "; register it: aegisflux service put"
                raise NotFound(f"services[{n}]: no service is named {name!r}{advice}")
        return tuple(sorted(set(policy.services)))
    return _named(policy, inventory)


def _named(policy: Policy, inventory: Inventory) -> tuple[str, ...]:
    """The services that a rule names, sorted."""
    return tuple(sorted(ends_named(policy.rules) & inventory.services.keys()))


class _Entries:
    """What a service's snapshot is made of; never more than a snapshot may have. What is said of a rule
    counts once it is kept."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._rows: set[tuple[str, Way, Cidr, Port]] = set()
        self._said: set[tuple[str, Way, str, Port, frozenset[int]]] = set()
        self._new_rows: set[tuple[str, Way, Cidr, Port]] = set()
        self._new_said: set[tuple[str, Way, str, Port, frozenset[int]]] = set()

    def say(
        self, action: str, way: Way, ends: Sequence[str], ports: Collection[Port],
        families: frozenset[int], places: Places, path: str,
    ) -> None:  # fmt: skip
        """These peers by these ports; raises OverLimit by the path of the rule."""
        for end, port in product(ends, ports):
            said = action, way, end, port, families
            if said in self._said or said in self._new_said:
                continue
            self._new_said.add(said)
            cidrs = places.prefixes(end, path, allow=action == "allow")
            rows = ((action, way, cidr, port) for cidr in cidrs if cidr.family in families)
            self._new_rows.update(row for row in rows if row not in self._rows)
            count = len(self._rows) + len(self._new_rows)
            if count > MAX_ENTRIES:
                needed = max(count, len(cidrs) * len(ports))
                what = (
                    f"{path}: {way} of {self._service}, by {end}: name fewer or wider CIDRs, or fewer ports"
                )
                raise OverLimit("entries", MAX_ENTRIES, needed, what)

    def keep(self) -> None:
        """Take what was said since the last rule."""
        self._rows |= self._new_rows
        self._said |= self._new_said
        self.drop()

    def drop(self) -> None:
        """Forget what was said since the last rule."""
        self._new_rows.clear()
        self._new_said.clear()

    def edges(self) -> tuple[Edge, ...]:
        return tuple(Edge(str(c), *port) for does, way, c, port in self._rows if (does, way) == EDGE)

    def ingress(self) -> tuple[IngressRule, ...]:
        return tuple(
            IngressRule(str(c), *port) for does, way, c, port in self._rows if (does, way) == INGRESS
        )

    def deny(self) -> tuple[Deny, ...]:
        return tuple(Deny(str(c), *port, way) for does, way, c, port in self._rows if does == "deny")


EDGE: Final = ("allow", "egress")
INGRESS: Final = ("allow", "ingress")


def compile_policy(
    policy: Policy,
    inventory: Inventory,
    stuck: Callable[[int, AegisError], None] | None = None,
    *,
    reports: Reports = "denied",
) -> dict[str, MapSnapshot]:
    """The canonical snapshot of each governed service, by name; raises NotFound, Invalid or OverLimit by the
    path of the rule. The same policy and inventory give the same snapshots.

    With `stuck`, a rule whose ends cannot be looked up, or that needs more entries than there is room for, is
    left out as a whole and told to it, by its number.
    """
    places = Places(policy, inventory, strict=stuck is None, reports=reports)
    found = {name: _Entries(name) for name in governed(policy, inventory)}
    for n, rule in enumerate(policy.rules):
        try:
            _say(rule, f"rules[{n}]", places, found)
        except (NotFound, Invalid, OverLimit) as error:
            if stuck is None:
                raise
            stuck(n, error)
    return {name: _snapshot(policy, inventory.services[name], entries) for name, entries in found.items()}


def _say(rule: Rule, path: str, places: Places, found: Mapping[str, _Entries]) -> None:
    """Say a rule at both of its ends, once all that it names is looked up."""
    ports = tuple(dict.fromkeys(ports_of(rule, path)))
    clients, servers = ends_of(rule.from_), ends_of(rule.to)
    for at, end in end_paths(rule, path):
        places.of(end, at)
    if rule.action == "deny":
        _check_deny(rule, path, places, found.keys())
    sides: tuple[tuple[Way, tuple[str, ...], tuple[str, ...]], ...] = (
        ("egress", clients, servers),
        ("ingress", servers, clients),
    )
    concerned: dict[str, _Entries] = {}
    try:
        for way, own, peers in sides:
            for name, families in sorted(reached(own, path, places).items()):
                if name in found:
                    entries = concerned[name] = found[name]
                    entries.say(rule.action, way, peers, ports, families, places, path)
    except OverLimit:
        for entries in concerned.values():
            entries.drop()
        raise
    for entries in concerned.values():
        entries.keep()


def reached(ends: Iterable[str], path: str, places: Places) -> dict[str, frozenset[int]]:
    """The services that are held by one of the ends, in the families of all."""
    found: dict[str, frozenset[int]] = {}
    for end in ends:
        for name, families in places.reached(end, path).items():
            found[name] = found.get(name, frozenset()) | families
    return found


def _check_deny(rule: Rule, path: str, places: Places, services: Set[str]) -> None:
    """Raises Invalid for a deny that would compile to less than it says: a governed service that is in part
    at one of its ends needs nothing but whole ones at the other, for they have to refuse it."""
    clients, servers = ends_of(rule.from_), ends_of(rule.to)
    if any(all(places.nobody(end, path) for end in ends) for ends in (clients, servers)):
        return
    callers, called = (reached(ends, path, places).keys() & services for ends in (clients, servers))
    name = f"{rule.name}: " if rule.name else ""
    said = f"{name}{', '.join(clients)} -> {', '.join(servers)}"
    for own, held, others, whole in (
        (clients, callers, servers, called),
        (servers, called, clients, callers),
    ):
        in_part = ((end, part) for end in own for part in places.touched(end, path) & services - held)
        end, part = min(in_part, default=("", ""))
        if part and any(places.beside(other, path, services, whole) for other in others):
            what = f"name {part}, or make a service of those hosts"
            raise Invalid(path, f"all of {part} for a deny, not the part that is {end}: {what}", said)
    if not callers and not called:
        raise Invalid(path, "a deny with a governed service at one end: name one, or take it out", said)


def _snapshot(policy: Policy, place: ServicePlace, entries: _Entries) -> MapSnapshot:
    return canonical(
        MapSnapshot(
            version=place.version,
            service_id=place.id,
            ttl_seconds=policy.ttl_seconds,
            edges=entries.edges(),
            ingress=entries.ingress(),
            deny=entries.deny(),
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


def unlabelled(policy: Policy, inventory: Inventory) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (service, hosts) where a service that a rule names runs on hosts by their own report alone: no
    peer is allowed to call them, or be called by them, in its name."""
    for service in _named(policy, inventory):
        if hosts := inventory.services[service].reported:
            yield service, hosts


def shared(policy: Policy, inventory: Inventory) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(host, services) where more than one service that a rule names runs on a host: over addresses they
    cannot be told apart."""
    named = set(governed(policy, inventory))
    for host in sorted(inventory.hosts):
        own = tuple(s for s in sorted(named) if host in inventory.services[s].hosts)
        if len(own) > 1:
            yield host, own
