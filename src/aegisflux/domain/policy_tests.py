"""The `tests` of a policy: whether its snapshots let through what they must, and block what they must.

A flow is let through when each end that the policy governs lets it through. It is asked from every address of
the one end to every address of the other, and of each service that runs there, as if it were the one that
calls or is called. Of a CIDR one address is asked of each part of it that the snapshots can tell apart, and
all that are a host's.

Tests are of the rules, whatever the `mode`: what a policy that observes would block is blocked. What is asked
of nobody does not hold, whatever is expected.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain, product
from typing import Final, NamedTuple

from msgspec import Struct

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.flow import Direction, Flow, Host
from aegisflux.domain.net import PROTOCOL_NAMES, Address, Cidr
from aegisflux.domain.policy import NUMBERS, Expectation, Policy, parse_port
from aegisflux.domain.policy_compile import Inventory, Place, Places
from aegisflux.domain.snapshot import MapSnapshot, Ruleset, ruleset
from aegisflux.domain.tables import Tables
from aegisflux.domain.text import first_of
from aegisflux.domain.verdict import LOOPBACK_V4, LOOPBACK_V6, UNSPECIFIED, Verdict
from aegisflux.domain.verdict_of_tables import judge_tables

MOST_ASKED: Final = 100_000
MOST_NAMED: Final = 3
NO_SERVICE: Final = ""
NO_PEERS: Final = (LOOPBACK_V4, *(Cidr(a.family, a.value, a.bits) for a in (LOOPBACK_V6, *UNSPECIFIED)))
UNKNOWN: Final = "unknown"


class Broken(Struct, frozen=True):
    """A test that does not hold, with one flow that shows it.

    got: unknown where nobody is asked; client and server are then the ends as the test names them
    """

    number: int
    expected: str
    got: str
    client: str
    server: str
    proto: str
    port: int
    why: str

    def __str__(self) -> str:
        flow = f"{self.client} -> {self.server} {self.proto}/{self.port}"
        return f"tests[{self.number}]: {flow}: expected {self.expected}, got {self.got} ({self.why})"


class Outcome(Struct, frozen=True):
    """How many tests there are, and which do not hold."""

    tests: int
    broken: tuple[Broken, ...]


def outcome(policy: Policy, inventory: Inventory, snapshots: Mapping[str, MapSnapshot]) -> Outcome:
    """All tests; raises Invalid, NotFound or OverLimit by the path of the test."""
    bench = _Bench(policy, inventory, snapshots)
    found = (bench.first_broken(n, test) for n, test in enumerate(policy.tests))
    return Outcome(len(policy.tests), tuple(broken for broken in found if broken is not None))


class _End(NamedTuple):
    """Whom a test asks: addresses by the service that calls or is called there; NO_SERVICE: none of this
    policy. `empty`: why there are none."""

    asked: Mapping[str, tuple[Address, ...]]
    empty: str

    @property
    def addresses(self) -> frozenset[Address]:
        return frozenset(chain.from_iterable(self.asked.values()))


class _Found(NamedTuple):
    """A flow that is judged otherwise than expected."""

    client: Address
    server: Address
    got: str
    why: str


class _Bench:
    """Compiled snapshots, and which of them an address is under."""

    def __init__(self, policy: Policy, inventory: Inventory, snapshots: Mapping[str, MapSnapshot]) -> None:
        self._places, self._inventory = Places(policy, inventory), inventory
        self._rules: dict[str, tuple[Tables, Ruleset]] = {}
        self._cuts: dict[str, frozenset[Address]] = {}
        for name, snapshot in snapshots.items():
            rules = ruleset(snapshot)
            self._rules[name] = compile_tables(rules), rules

    def first_broken(self, number: int, test: Expectation) -> Broken | None:
        path = f"tests[{number}]"
        port = parse_port(test.port, f"{path}.port")
        clients, servers = self._ends(test, path)
        if empty := _nobody(clients, servers):
            ends = test.from_, test.to
            return Broken(number, test.expect, UNKNOWN, *ends, port.proto, port.port, empty)
        asked = len(clients.asked) * len(servers.addresses) + len(servers.asked) * len(clients.addresses)
        if asked > MOST_ASKED:
            raise OverLimit("questions_of_a_test", MOST_ASKED, asked, f"{path}: name fewer hosts")
        for proto in NUMBERS[port.proto]:
            found = self._against(test.expect, clients, servers, proto, port.port)
            if found is not None:
                ends = str(found.client), str(found.server)
                name = PROTOCOL_NAMES[proto]
                return Broken(number, test.expect, found.got, *ends, name, port.port, found.why)
        return None

    def _against(self, expect: str, clients: _End, servers: _End, proto: int, port: int) -> _Found | None:
        """The first flow that gets another verdict than expected."""
        for (own, callers), (theirs, called) in product(clients.asked.items(), servers.asked.items()):
            out = {peer: self._judged(own, Flow("egress", proto, peer, port)) for peer in called}
            into = {peer: self._judged(theirs, Flow("ingress", proto, peer, port)) for peer in callers}
            for client, server in _pairs(expect, into, out):
                if client != server:
                    sides: tuple[tuple[str, Direction, Verdict | None], ...]
                    sides = (own, "egress", out[server]), (theirs, "ingress", into[client])
                    return _Found(client, server, *_told(sides))
        return None

    def _judged(self, service: str, flow: Flow) -> Verdict | None:
        """None: the policy says nothing of it."""
        if service == NO_SERVICE:
            return None
        tables, rules = self._rules[service]
        return judge_tables(tables, rules, flow, Host())

    def _ends(self, test: Expectation, path: str) -> tuple[_End, _End]:
        """Of a CIDR those addresses are asked at which the snapshots of the other end begin or end."""
        ends = (test.from_, f"{path}.from"), (test.to, f"{path}.to")
        here, there = (self._places.of(*end) for end in ends)
        for place, (name, where) in zip((here, there), ends, strict=True):
            if place.anyone:
                raise Invalid(where, "an end with addresses, as in 203.0.113.7", name)
        clients = self._end(test.from_, here, self._involved(test.to, there))
        return clients, self._end(test.to, there, self._involved(test.from_, here))

    def _involved(self, end: str, place: Place) -> frozenset[str]:
        """The services whose snapshots judge at this end."""
        inside = (h for a, hosts in self._hosts.items() if _within(a, place.cidrs) for h in hosts)
        named = (s for host in place.hosts for s in self._services(end, place, host))
        return frozenset(chain(named, (s for host in inside for s in self._on(host)))) - {NO_SERVICE}

    def _end(self, end: str, place: Place, others: Iterable[str]) -> _End:
        asked: dict[str, dict[Address, None]] = defaultdict(dict)
        for host in sorted(place.hosts):
            for service in self._services(end, place, host):
                asked[service] |= dict.fromkeys(sorted(self._inventory.addresses((host,))))
        cuts = frozenset(self._hosts).union(*map(self._borders, others)) if place.cidrs else frozenset()
        for address in chain.from_iterable(_parts(cidr, cuts) for cidr in place.cidrs):
            hosts = self._hosts.get(address, ())
            for service in dict.fromkeys(s for h in hosts for s in self._on(h)) or (NO_SERVICE,):
                asked[service][address] = None
        found = {service: tuple(addresses) for service, addresses in asked.items() if addresses}
        return _End(found, "" if found else _empty(end, place))

    def _services(self, end: str, place: Place, host: str) -> tuple[str, ...]:
        """Who calls, or is called, on a host that this end names."""
        if place.unregistered:
            return (NO_SERVICE,)
        return (self._known(end),) if end in self._inventory.services else self._on(host)

    def _on(self, host: str) -> tuple[str, ...]:
        return self._run.get(host, (NO_SERVICE,))

    def _known(self, service: str) -> str:
        return service if service in self._rules else NO_SERVICE

    @cached_property
    def _run(self) -> Mapping[str, tuple[str, ...]]:
        """What each host runs, by whose rules it is judged."""
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for name, place in self._inventory.services.items():
            for host in place.hosts:
                found[host][self._known(name)] = None
        return {host: tuple(services) for host, services in found.items()}

    @cached_property
    def _hosts(self) -> Mapping[Address, tuple[str, ...]]:
        """The hosts at each address of the fleet."""
        found: dict[Address, tuple[str, ...]] = {}
        for host in sorted(self._inventory.hosts):
            for address in self._inventory.addresses((host,)):
                found[address] = (*found.get(address, ()), host)
        return found

    def _borders(self, service: str) -> frozenset[Address]:
        """The first address of each entry of a service's snapshot, and the first behind it."""
        if service not in self._cuts:
            _, rules = self._rules[service]
            entries = (*rules.edges, *rules.peers, *(rules.ingress or ()), *rules.deny)
            self._cuts[service] = frozenset(a for entry in entries for a in _around(entry.cidr))
        return self._cuts[service]


def _pairs(
    expect: str, into: Mapping[Address, Verdict | None], out: Mapping[Address, Verdict | None]
) -> Iterator[tuple[Address, Address]]:
    """Clients and servers whose flow is judged otherwise than expected: allowed is what both ends allow."""
    if expect == "blocked":
        return product((c for c in into if not _denies(into[c])), (s for s in out if not _denies(out[s])))
    shut = product((c for c in into if _denies(into[c])), out)
    return chain(product(into, (s for s in out if _denies(out[s]))), shut)


def _denies(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.action == "deny"


def _told(sides: Iterable[tuple[str, Direction, Verdict | None]]) -> tuple[str, str]:
    """What came of a flow, and by which end: the first that denies it, else the last that allows it."""
    why = "nothing of this policy governs either end"
    for service, direction, verdict in sides:
        if verdict is not None:
            rule = f", {verdict.rule}" if verdict.rule else ""
            why = f"{direction} of {service}: {verdict.reason}{rule}"
            if _denies(verdict):
                return "blocked", why
    return "allowed", why


def _nobody(clients: _End, servers: _End) -> str:
    """Why no flow is asked; empty: there are some."""
    if clients.empty or servers.empty:
        return clients.empty or servers.empty
    every = clients.addresses | servers.addresses
    return f"both ends are {next(iter(every))} alone: name two" if len(every) == 1 else ""


def _empty(end: str, place: Place) -> str:
    hosts = sorted(place.hosts)
    if not hosts:
        return f"{end} names no host: check how it is written, or what the inventory says of it"
    return f"{end} is {first_of(hosts, MOST_NAMED)}: no address of it is known yet"


def _parts(cidr: Cidr, cuts: Iterable[Address]) -> tuple[Address, ...]:
    """The first address of each part into which these cuts, and what is no peer's, divide a CIDR; and its
    last address. A fleet's address is a part, so that the next one is cut off too."""
    inside = {a for a in cuts if cidr.covers(a)}
    behind = {Address(a.family, a.value + 1) for a in inside}
    ends = {a for special in NO_PEERS for a in _around(special)}
    found = inside | {a for a in behind | ends if cidr.covers(a)}
    every = sorted(found | {Address(cidr.family, cidr.value), Address(cidr.family, cidr.last)})
    return tuple(a for a in every if not _within(a, NO_PEERS)) or tuple(every)


def _around(cidr: Cidr) -> tuple[Address, Address]:
    return Address(cidr.family, cidr.value), Address(cidr.family, cidr.last + 1)


def _within(address: Address, cidrs: Iterable[Cidr]) -> bool:
    return any(cidr.covers(address) for cidr in cidrs)
