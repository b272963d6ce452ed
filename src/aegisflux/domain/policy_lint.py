"""What is odd about a policy although it compiles: rules that say nothing new, nothing true, or too much.

Rules are compared two by two: a rule that only several others together make needless is not found.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from aegisflux.domain.net import Address, Cidr
from aegisflux.domain.policy import (
    ANYONE,
    FLEET,
    NUMBERS,
    Policy,
    Port,
    Rule,
    cidr_of,
    ends_of,
    label_of,
    ports_of,
)
from aegisflux.domain.policy_compile import Inventory, Places, partial, shared
from aegisflux.domain.spans import Spans

WIDE: Final = {4: 16, 6: 48}  # prefixes shorter than these are called too broad
MOST_COMPARED: Final = 2_000
MOST_SEEN: Final = 1_000_000

Kind = Literal["shadowed", "redundant", "never_hit", "too_broad", "partial", "shared_host", "unused_group"]
Seen = tuple[Address, Address, int, int]  # client, server, protocol, port


class Lint(Struct, frozen=True):
    """One remark: about which rule (or group, or host), what is odd, and what to do."""

    kind: Kind
    about: str
    detail: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.about}: {self.detail}; {self.advice}"


class _Reach(NamedTuple):
    """A rule as sets."""

    name: str
    rule: Rule
    clients: Spans
    servers: Spans
    ports: tuple[Port, ...]

    def within(self, other: "_Reach") -> bool:
        """Whether the other rule says all of it."""
        return (
            all(any(_opens(wide, port) for wide in other.ports) for port in self.ports)
            and other.clients.holds(self.clients)
            and other.servers.holds(self.servers)
        )

    def hit(self, seen: Seen) -> bool:
        client, server, proto, port = seen
        return (
            any(proto in NUMBERS[p.proto] and p.port in (0, port) for p in self.ports)
            and self.clients.has(client)
            and self.servers.has(server)
        )


def lint(policy: Policy, inventory: Inventory, seen: Iterable[Seen] | None = None) -> tuple[Lint, ...]:
    """All remarks, in the order of the rules. `seen`: flows that were recorded (at most `MOST_SEEN` are
    looked at); without them nothing is said to be never hit."""
    places = Places(policy, inventory)
    reaches = [_reach(places, rule, n) for n, rule in enumerate(policy.rules)]
    found = [*_covered(reaches[:MOST_COMPARED]), *_broad(reaches)]
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
    for host, services in shared(policy, inventory):
        words = ", ".join(services)
        found.append(
            Lint("shared_host", f"host {host}", f"{words} share its addresses", "who lets one in lets in all")
        )
    return (*found, *_unused(policy))


def _reach(places: Places, rule: Rule, number: int) -> _Reach:
    path = f"rules[{number}]"

    def spans(ends: Sequence[str]) -> Spans:
        return Spans(cidr for end in ends for cidr in places.prefixes(end, path))

    clients, servers = spans(ends_of(rule.from_)), spans(ends_of(rule.to))
    return _Reach(label_of(rule, number), rule, clients, servers, ports_of(rule, path))


def _covered(reaches: Sequence[_Reach]) -> Iterator[Lint]:
    for n, one in enumerate(reaches):
        for m, other in enumerate(reaches):
            if n == m or not one.within(other) or _first_of_twins(n, m, one, other):
                continue
            if other.rule.action == one.rule.action:
                yield Lint("redundant", one.name, f"{other.name} says all of it", "take one of them out")
                break
            if other.rule.action == "deny":
                yield Lint(
                    "shadowed", one.name, f"{other.name} denies all of it", "take it out, or narrow the deny"
                )
                break


def _first_of_twins(n: int, m: int, one: _Reach, other: _Reach) -> bool:
    """Of two rules that say the same, the first is none too many."""
    return m > n and one.rule.action == other.rule.action and other.within(one)


def _broad(reaches: Iterable[_Reach]) -> Iterator[Lint]:
    for one in reaches:
        if one.rule.action == "deny":
            continue
        every = [str(port) for port in one.ports if not port.port]
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
    left = dict(enumerate(reaches))
    for n, flow in enumerate(seen):
        if not left or n >= MOST_SEEN:
            break
        for number in [number for number, one in left.items() if one.hit(flow)]:
            del left[number]
    for one in left.values():
        yield Lint(
            "never_hit", one.name, "no recorded flow goes this way", "take it out, or look further back"
        )


def _unused(policy: Policy) -> Iterator[Lint]:
    named = {end for rule in policy.rules for end in (*ends_of(rule.from_), *ends_of(rule.to))}
    named |= {end for test in policy.tests for end in (test.from_, test.to)}
    for name in policy.groups:
        if name not in named:
            yield Lint("unused_group", f"groups.{name}", "no rule names it", "take it out")


def _opens(wide: Port, port: Port) -> bool:
    """Whether a port of a rule lets in all that another does."""
    if wide.proto not in (port.proto, "any"):
        return False
    return wide.port in (0, port.port)
