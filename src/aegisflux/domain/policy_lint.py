"""What is odd about a policy although it compiles: rules that say nothing new, nothing true, or too much.

Rules are compared two by two: a rule that only several others together make needless is not found.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import reduce
from itertools import islice
from operator import or_
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from aegisflux.domain.errors import Invalid
from aegisflux.domain.names import check_label, close, remarks
from aegisflux.domain.net import TCP, UDP, Address, Cidr, masked
from aegisflux.domain.policy import (
    ANYONE,
    FLEET,
    Policy,
    Port,
    Rule,
    cidr_of,
    ends_named,
    ends_of,
    label_of,
    ports_of,
)
from aegisflux.domain.policy_compile import Inventory, Places, governed, partial, reached, shared, unlabelled
from aegisflux.domain.policy_ranges import Ranges, holders, numbers
from aegisflux.domain.snapshot import Proto
from aegisflux.domain.text import first_of

WIDE: Final = {4: 16, 6: 48}  # prefixes shorter than these are called too broad
NAMES: Final[dict[int, Proto]] = {TCP: "tcp", UDP: "udp"}
MOST_COMPARED: Final = 2_000
MOST_NAMED: Final = 5
MOST_SEEN: Final = 1_000_000

Kind = Literal[
    "shadowed", "redundant", "never_hit", "too_broad", "partial", "shared_host", "unlabelled", "unused_group",
    "matches_nothing", "ambiguous_name",
]  # fmt: skip
Seen = tuple[Address, Address, int, int]  # client, server, protocol, port


class Lint(Struct, frozen=True):
    """One remark: about which rule (or group, or host), what is odd, and what to do."""

    kind: Kind
    about: str
    detail: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.about}: {self.detail}; {self.advice}"


Held = frozenset[tuple[str, int]]  # governed services, each in a family of addresses


class _Reach(NamedTuple):
    """A rule as sets; `callers` and `called`: the services that it is said of at either end."""

    name: str
    rule: Rule
    clients: Ranges
    servers: Ranges
    callers: Held
    called: Held
    ports: frozenset[Port]

    def within(self, other: "_Reach") -> bool:
        """Whether the other rule holds all of its flows."""
        return (
            not any(other.ports.isdisjoint(_wider(port)) for port in self.ports)
            and other.clients.holds(self.clients)
            and other.servers.holds(self.servers)
        )

    def repeats(self, other: "_Reach") -> bool:
        """Whether the other rule says all of it, of each service of which it is said."""
        return self.within(other) and self.callers <= other.callers and self.called <= other.called

    def beaten(self, deny: "_Reach") -> bool:
        """Whether a deny beats all of it at one of its ends."""
        if not self.callers and not self.called:
            return self.within(deny)
        ends = (self.callers, deny.callers), (self.called, deny.called)
        return self.within(deny) and any(own and own <= theirs for own, theirs in ends)


class _Holders:
    """Which rules open a port, or hold an address: rule n is bit n."""

    def __init__(
        self, reaches: Sequence[_Reach], clients: Iterable[Address], servers: Iterable[Address]
    ) -> None:
        self._ports: dict[Port, int] = defaultdict(int)
        for n, one in enumerate(reaches):
            for port in one.ports:
                self._ports[port] |= 1 << n
        callers, called = _sides(reaches)
        self.clients, self.servers = holders(callers, clients), holders(called, servers)

    def opening(self, port: Port) -> int:
        """The rules that open all of it."""
        return reduce(or_, (self._ports.get(wide, 0) for wide in _wider(port)))

    def around(self, one: _Reach) -> int:
        """The rules that may hold all of its flows, and no rule less: they hold its ports, and the corners of
        its addresses."""
        found = -1
        for port in one.ports:
            found &= self.opening(port)
        for held, addresses in ((self.clients, one.clients), (self.servers, one.servers)):
            for corner in addresses.corners():
                found &= held[corner]
        return found


def lint(policy: Policy, inventory: Inventory, seen: Iterable[Seen] | None = None) -> tuple[Lint, ...]:
    """All remarks, in the order of the rules. `seen`: flows that were recorded (at most `MOST_SEEN` are
    looked at); without them nothing is said to be never hit."""
    places = Places(policy, inventory)
    reaches = _reaches(policy, places, frozenset(governed(policy, inventory)))
    found = [*_matchless(policy, inventory, places), *_ambiguous(policy, inventory)]
    found += _unheld(policy, inventory, places, reaches)
    found += [*_covered(reaches[:MOST_COMPARED]), *_broad(reaches)]
    if seen is not None:
        found += _never_hit(reaches, seen)
    for n, end, service in partial(policy, inventory, places):
        found.append(
            Lint(
                "partial",
                label_of(policy.rules[n], n),
                f"{end} holds some hosts of {service} and not all, so that the rule is not {service}'s",
                f"name {service}, or make a service of those hosts",
            )
        )
    for service, hosts in unlabelled(policy, inventory):
        run, those = ("run", "those hosts") if len(hosts) > 1 else ("runs", "that host")
        found.append(
            Lint(
                "unlabelled",
                f"service {service}",
                f"{first_of(hosts, MOST_NAMED)} {run} it by report alone, so that no rule allows others its "
                "addresses there; a deny of it holds for what is reported",
                f"give {service} host_labels, and {those} its labels",
            )
        )
    for host, services in shared(policy, inventory):
        words = ", ".join(services)
        found.append(
            Lint("shared_host", f"host {host}", f"{words} share its addresses", "who lets one in lets in all")
        )
    return (*found, *_unused(policy))


def _matchless(policy: Policy, inventory: Inventory, places: Places) -> Iterator[Lint]:
    """Ends at which there is no host and no address: an allow of one allows nothing, and a deny, which looks
    like a safeguard, denies nothing."""
    for n, rule in enumerate(policy.rules):
        does = "denies" if rule.action == "deny" else "allows"
        for side, ends in (("from", ends_of(rule.from_)), ("to", ends_of(rule.to))):
            nobody = [end for end in dict.fromkeys(ends) if places.nobody(end, f"rules[{n}].{side}")]
            whole = len(nobody) == len(set(ends))
            for end in nobody:
                effect = f"the rule {does} nothing" if whole else f"the rule {does} nothing for it"
                yield _nothing(label_of(rule, n), f"{side}: {end}", effect, end, policy, inventory)
    for n, test in enumerate(policy.tests):
        for side, end in (("from", test.from_), ("to", test.to)):
            if places.nobody(end, f"tests[{n}].{side}"):
                yield _nothing(
                    f"tests[{n}]", f"{side}: {end}", "the test tries nothing", end, policy, inventory
                )
    for name in sorted(set(policy.services or ())):
        if name in inventory.services and not inventory.services[name].hosts:
            detail = "matches nothing: no host runs it; nothing is governed"
            yield Lint("matches_nothing", f"services: {name}", detail, "look at its host_labels")


def _is_unregistered(policy: Policy, end: str) -> bool:
    group = policy.groups.get(end)
    return group is not None and group.unregistered


def _unheld(
    policy: Policy, inventory: Inventory, places: Places, reaches: Sequence[_Reach]
) -> Iterator[Lint]:
    """Rules with something at both ends of which no governed service holds an entry, or only entries of what
    is always allowed."""
    for n, one in enumerate(reaches):
        path, allow = f"rules[{n}]", one.rule.action == "allow"
        clients, servers = ends_of(one.rule.from_), ends_of(one.rule.to)
        if any(all(places.nobody(end, path) for end in ends) for ends in (clients, servers)):
            continue
        ways = [
            (held, [cidr for end in ends for cidr in places.prefixes(end, path, allow=allow)])
            for held, ends in ((one.callers, servers), (one.called, clients))
            if held
        ]
        effect = f"the rule {'allows' if allow else 'denies'} nothing"
        if not ways and any(_is_unregistered(policy, end) for end in (*clients, *servers)):
            continue  # an exported rule that waits until somebody registers a service: its group says so
        if not ways:
            where = "add it to `services`" if policy.services is not None else "make one of those hosts"
            yield _unheld_as(one, f"no governed service is at either end; {effect}", f"name one, or {where}")
        elif all(_no_family(held, cidrs) for held, cidrs in ways):
            why = "its ends have no family of addresses in common"
            yield _unheld_as(one, f"{why}; {effect}", "name addresses of the same family at both ends")
        elif not allow and all(_own(held, cidrs, inventory) for held, cidrs in ways):
            why = "both ends are one host, and what a host sends to itself is always allowed"
            yield _unheld_as(
                one, f"{why}; {effect}", "take it out, or run the services on hosts of their own"
            )


def _unheld_as(one: _Reach, why: str, advice: str) -> Lint:
    return Lint("matches_nothing", one.name, why, advice)


def _no_family(held: Held, cidrs: Sequence[Cidr]) -> bool:
    """Whether there are addresses, and none is of a family in which these services are at their end."""
    families = {family for _, family in held}
    return bool(cidrs) and not any(cidr.family in families for cidr in cidrs)


def _own(held: Held, cidrs: Sequence[Cidr], inventory: Inventory) -> bool:
    """Whether the services are on one host, whose own addresses these are."""
    hosts: set[str] = set()
    for name in {name for name, _ in held}:
        hosts.update(inventory.services[name].hosts[:2])
        if len(hosts) > 1:
            return False
    own = Ranges(masked(*address, address.bits) for address in inventory.addresses(hosts))
    return bool(cidrs) and all(own.holds(Ranges((cidr,))) for cidr in cidrs)


def _nothing(about: str, at: str, effect: str, end: str, policy: Policy, inventory: Inventory) -> Lint:
    why, advice = _why_nothing(end, policy, inventory)
    return Lint("matches_nothing", about, f"{at} matches nothing: {why}; {effect}", advice)


def _why_nothing(end: str, policy: Policy, inventory: Inventory) -> tuple[str, str]:
    if end in inventory.services:
        return "no host runs this service", "look at its host_labels"
    if end.startswith("label:"):
        name, _, value = end.removeprefix("label:").partition("=")
        return _why_no_label(name, value, inventory)
    if end in policy.groups:
        labels = policy.groups[end].labels
        for name, value in labels.items():
            if not any(place.labels.get(name) == value for place in inventory.hosts.values()):
                why, advice = _why_no_label(name, value, inventory)
                return f"{why} (label {name}={value} of the group)", advice
        words = "no host bears all labels of the group" if labels else "the group is empty"
        return words, "correct the group, or give hosts its labels"
    return "there is no host", "enrol hosts"


def _why_no_label(name: str, value: str, inventory: Inventory) -> tuple[str, str]:
    try:
        check_label("", name, value)
    except Invalid as error:
        return (
            f"no host can bear this label: a host can have {error.expected}",
            "name another label, and give it to hosts (a word as its value, such as v1)",
        )
    values = sorted({place.labels[name] for place in inventory.hosts.values() if name in place.labels})
    if values:
        cut = ", ..." if len(values) > MOST_NAMED else ""
        told = ", ".join(f"{name}={value}" for value in values[:MOST_NAMED])
        return "no host bears this label", f"correct its value; hosts bear {told}{cut}"
    names = sorted({label for place in inventory.hosts.values() for label in place.labels})
    advice = f"correct its name, or give hosts the label{close(name, names)}"
    return f"no host bears a label {name}", advice


def _ambiguous(policy: Policy, inventory: Inventory) -> Iterator[Lint]:
    names = {f"service {name}": name for name in inventory.services}
    names |= {f"group {name}": name for name in policy.groups}
    names |= {f"host {host}": host for host in inventory.hosts}
    for whose, detail in remarks(
        names, {}
    ):  # labels: see `hosts list`; one remark a host would bury the others
        yield Lint("ambiguous_name", whose, detail, "give it another one")


def _reaches(policy: Policy, places: Places, services: Set[str]) -> list[_Reach]:
    known: dict[tuple[str, ...], tuple[Ranges, Held]] = {}

    def end(ends: tuple[str, ...], path: str) -> tuple[Ranges, Held]:
        if ends not in known:
            held = reached(ends, path, places)
            ways = ((name, family) for name in held.keys() & services for family in held[name])
            spans = Ranges(cidr for one in ends for cidr in places.prefixes(one, path))
            known[ends] = spans, frozenset(ways)
        return known[ends]

    found = []
    for n, rule in enumerate(policy.rules):
        path = f"rules[{n}]"
        (clients, callers), (servers, called) = (end(ends_of(ends), path) for ends in (rule.from_, rule.to))
        ports = frozenset(ports_of(rule, path))
        found.append(_Reach(label_of(rule, n), rule, clients, servers, callers, called, ports))
    return found


def _covered(reaches: Sequence[_Reach]) -> Iterator[Lint]:
    clients, servers = ([a for s in sets for a in s.corners()] for sets in _sides(reaches))
    rules = _Holders(reaches, clients, servers)
    denies = sum(1 << n for n, one in enumerate(reaches) if one.rule.action == "deny")
    every = (1 << len(reaches)) - 1
    for n, one in enumerate(reaches):
        others = rules.around(one) & ~(1 << n) & (denies if one.rule.action == "deny" else every)
        remarks = (_remark(one, reaches[m], n < m) for m in numbers(others))
        yield from islice(filter(None, remarks), 1)


def _remark(one: _Reach, other: _Reach, first: bool) -> Lint | None:
    """What the other rule makes of this one; of two that say the same, the first is none too many."""
    if other.rule.action == one.rule.action:
        if not one.repeats(other) or (first and other.repeats(one)):
            return None
        return Lint("redundant", one.name, f"{other.name} says all of it", "take one of them out")
    if not one.beaten(other):
        return None
    return Lint("shadowed", one.name, f"{other.name} denies all of it", "take it out, or narrow the deny")


def _sides(reaches: Iterable[_Reach]) -> tuple[dict[Ranges, int], dict[Ranges, int]]:
    """Each set of addresses, with the rules that have it at that end."""
    clients: dict[Ranges, int] = defaultdict(int)
    servers: dict[Ranges, int] = defaultdict(int)
    for n, one in enumerate(reaches):
        clients[one.clients] |= 1 << n
        servers[one.servers] |= 1 << n
    return clients, servers


def _broad(reaches: Iterable[_Reach]) -> Iterator[Lint]:
    for one in reaches:
        if one.rule.action == "deny":
            continue
        every = [str(port) for port in ports_of(one.rule, "") if not port.port]
        if every:
            yield Lint("too_broad", one.name, f"{every[0]} is every port", "name the ports that are used")
        if FLEET in ends_of(one.rule.from_) and FLEET in ends_of(one.rule.to):
            yield Lint("too_broad", one.name, "every host may call every host", "name services")
        if ANYONE in ends_of(one.rule.to):
            yield Lint("too_broad", one.name, "it may call anyone", "name CIDRs")
        for end in (*ends_of(one.rule.from_), *ends_of(one.rule.to)):
            if (wide := _wide(end)) is not None:
                yield Lint("too_broad", one.name, f"{wide} is wide", "name what is used of it")


def _wide(end: str) -> Cidr | None:
    cidr = cidr_of(end, "")
    return cidr if cidr and cidr.plen < WIDE[cidr.family] else None


def _never_hit(reaches: Sequence[_Reach], seen: Iterable[Seen]) -> Iterator[Lint]:
    flows = list(islice(seen, MOST_SEEN))
    rules = _Holders(reaches, (client for client, *_ in flows), (server for _, server, *_ in flows))
    left = (1 << len(reaches)) - 1
    opening = {
        (proto, port): rules.opening(Port(name, port)) if (name := NAMES.get(proto)) else 0
        for proto, port in {(proto, port) for *_, proto, port in flows}
    }
    for client, server, proto, port in flows:
        left &= ~(opening[proto, port] & rules.clients[client] & rules.servers[server])
    for number in numbers(left):
        yield Lint(
            "never_hit",
            reaches[number].name,
            "no recorded flow goes this way",
            "take it out, or look further back",
        )


def _unused(policy: Policy) -> Iterator[Lint]:
    named = ends_named(policy.rules) | {end for test in policy.tests for end in (test.from_, test.to)}
    for name in policy.groups:
        if name not in named:
            yield Lint("unused_group", f"groups.{name}", "no rule names it", "take it out")


def _wider(port: Port) -> tuple[Port, Port, Port, Port]:
    """The ports of rules that let in all that this one does."""
    return port, Port(port.proto, 0), Port("any", port.port), Port("any", 0)
