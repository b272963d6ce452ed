"""The `tests` of a policy: whether its snapshots let through what they must, and block what they must.

A flow is let through when each end that the policy governs lets it through. It is asked from every address of
the one end to every address of the other; of a CIDR the first and the last address are asked.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Final

from msgspec import Struct

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.flow import Direction, Flow, Host
from aegisflux.domain.net import PROTOCOL_NAMES, Address, Cidr
from aegisflux.domain.policy import NUMBERS, Expectation, Policy, parse_port
from aegisflux.domain.policy_compile import Inventory, Places
from aegisflux.domain.snapshot import MapSnapshot, Ruleset, ruleset
from aegisflux.domain.tables import Tables
from aegisflux.domain.verdict import Verdict
from aegisflux.domain.verdict_of_tables import judge_tables

MOST_PAIRS: Final = 20_000


class Broken(Struct, frozen=True):
    """A test that does not hold, with one flow that shows it."""

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


class _Bench:
    """Compiled snapshots, and which of them an address is under."""

    def __init__(self, policy: Policy, inventory: Inventory, snapshots: Mapping[str, MapSnapshot]) -> None:
        self._places, self._inventory = Places(policy, inventory), inventory
        self._rules: dict[str, tuple[Tables, Ruleset]] = {}
        for name, snapshot in snapshots.items():
            rules = ruleset(snapshot)
            self._rules[name] = compile_tables(rules), rules

    def first_broken(self, number: int, test: Expectation) -> Broken | None:
        path = f"tests[{number}]"
        clients = list(self._asked(test.from_, f"{path}.from"))
        servers = list(self._asked(test.to, f"{path}.to"))
        if len(clients) * len(servers) > MOST_PAIRS:
            raise OverLimit("pairs_of_a_test", MOST_PAIRS, len(clients) * len(servers), f"{path}: name hosts")
        port = parse_port(test.port, f"{path}.port")
        for (client, own), (server, theirs) in product(clients, servers):
            if client == server:
                continue
            for proto in NUMBERS[port.proto]:
                got, why = self._judged(client, own, server, theirs, proto, port.port)
                if got != test.expect:
                    name = PROTOCOL_NAMES[proto]
                    return Broken(number, test.expect, got, str(client), str(server), name, port.port, why)
        return None

    def _judged(
        self, client: Address, own: tuple[str, ...], server: Address, theirs: tuple[str, ...],
        proto: int, port: int,
    ) -> tuple[str, str]:  # fmt: skip
        sides: list[tuple[str, Direction, Address]] = [(s, "egress", server) for s in own]
        sides += [(s, "ingress", client) for s in theirs]
        why = "nothing of this policy governs either end"
        for service, direction, peer in sides:
            tables, rules = self._rules[service]
            verdict: Verdict = judge_tables(tables, rules, Flow(direction, proto, peer, port), Host())
            why = f"{direction} of {service}: {verdict.reason}" + (
                f", {verdict.rule}" if verdict.rule else ""
            )
            if verdict.action == "deny":
                return "blocked", why
        return "allowed", why

    def _asked(self, end: str, path: str) -> Iterator[tuple[Address, tuple[str, ...]]]:
        """Addresses of an end, each with the services whose rules hold there."""
        place = self._places.of(end, path)
        hosts = sorted(place.hosts)
        for host in hosts:
            services = (end,) if end in self._inventory.services else self._on(host)
            services = () if place.unregistered else services
            for address in sorted(self._inventory.addresses((host,))):
                yield address, tuple(s for s in services if s in self._rules)
        for cidr in place.cidrs:
            for address in _ends(cidr):
                yield address, self._at(address)
        if place.anyone:
            raise Invalid(path, "an end with addresses, as in 203.0.113.7", end)

    def _on(self, host: str) -> tuple[str, ...]:
        return tuple(name for name, place in self._inventory.services.items() if host in place.hosts)

    def _at(self, address: Address) -> tuple[str, ...]:
        hosts = (h for h in self._inventory.hosts if address in self._inventory.addresses((h,)))
        return tuple(s for host in hosts for s in self._on(host) if s in self._rules)


def _ends(cidr: Cidr) -> tuple[Address, ...]:
    return tuple(dict.fromkeys((Address(cidr.family, cidr.value), Address(cidr.family, cidr.last))))
