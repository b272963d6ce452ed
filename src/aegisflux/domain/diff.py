"""What changes when one snapshot takes another's place: all initiations whose verdict flips, no others.

The space of initiations is cut where either snapshot, or a failsafe, can tell two of them apart: at the
borders of prefixes, at named ports, by TCP, UDP and the rest. Within such a cell all verdicts are equal, so
one flow of it decides: the witness. Live flows, expired leases and malformed packets are not compared.
"""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.flow import Direction, Flow, Host
from aegisflux.domain.net import TCP, UDP, Address, Cidr
from aegisflux.domain.snapshot import Ruleset
from aegisflux.domain.tables import CLASS, LEAF, NO_CLASS, Tables
from aegisflux.domain.verdict import LOOPBACK_V4, LOOPBACK_V6, UNSPECIFIED, Verdict, judge
from aegisflux.domain.verdict_of_tables import judge_tables

ProtoName = Literal["tcp", "udp", "other", "any"]
PROTOS: Final[tuple[tuple[ProtoName, int], ...]] = (("tcp", TCP), ("udp", UDP))
DIRECTIONS: Final[tuple[Direction, ...]] = ("egress", "ingress")
OTHER_PROTO: Final = 253  # for experiments (RFC 3692): no rule can name it
MAPPED: Final = Cidr(6, 0xFFFF << 32, 96)  # never an IPv6 peer
EVERY: Final = 0
UNNAMED: Final = -1


class Change(Struct, frozen=True):
    """Initiations that get another verdict: from or to these peers.

    port: EVERY, or UNNAMED: those that neither snapshot names
    proto: other: neither TCP nor UDP; any: all
    witness: one of them
    """

    direction: Direction
    proto: ProtoName
    port: int
    before: str
    after: str
    cidrs: tuple[Cidr, ...]
    witness: Flow

    def holds(self, flow: Flow, named: frozenset[int]) -> bool:
        """Whether the flow is one of them; `named` as `named_ports` of the two snapshots."""
        proto = {TCP: "tcp", UDP: "udp"}.get(flow.proto, "other")
        ported = proto == "other" or self.port in (EVERY, flow.port)
        return (
            flow.direction == self.direction
            and self.proto in (proto, "any")
            and (ported or (self.port == UNNAMED and flow.port not in named))
            and any(cidr.covers(flow.peer) for cidr in self.cidrs)
        )


class _Flip(NamedTuple):
    direction: Direction
    proto: ProtoName
    port: int
    before: str
    after: str


def diff(before: Ruleset | None, after: Ruleset | None, host: Host | None = None) -> tuple[Change, ...]:
    """Every change, in a stable order; a snapshot that is None governs nothing. Empty: they mean the same."""
    cells = _Cells(before, after, host or Host())
    spans: dict[_Flip, list[tuple[int, int, int]]] = {}
    for family in (4, 6):
        for first, last, flips in cells.of(family):
            for flip in flips:
                known = spans.setdefault(flip, [])
                if known and known[-1][0] == family and known[-1][2] + 1 == first:
                    known[-1] = (family, known[-1][1], last)
                else:
                    known.append((family, first, last))
    return tuple(cells.change(flip, spans[flip]) for flip in sorted(spans))


def named_ports(*rulesets: Ruleset | None, host: Host | None = None) -> frozenset[int]:
    """The ports that entries, or the host's failsafe list, name."""
    entries = [
        entry
        for rules in rulesets
        if rules is not None
        for entry in (*rules.edges, *rules.peers, *(rules.ingress or ()), *rules.deny)
    ]
    listed = (rule.port for rule in (host or Host()).failsafe)
    return frozenset({*(entry.port for entry in entries), *listed} - {0})


class _Side:
    """One of the two snapshots: its verdicts, and its class at each address."""

    def __init__(self, rules: Ruleset | None, host: Host) -> None:
        self._rules, self._host = rules, host
        self._tables = compile_tables(rules) if rules is not None else None
        self._ports: dict[int, frozenset[int]] = {NO_CLASS: frozenset()}

    def word(self, flow: Flow) -> str:
        if self._rules is None or self._tables is None:
            return judge(None, flow, self._host).word
        verdict: Verdict = judge_tables(self._tables, self._rules, flow, self._host)
        return verdict.word

    def leaves(self, family: int) -> list[tuple[int, int]]:
        """(start, class), ascending from 0."""
        tables = self._tables
        if tables is None:
            return [(0, NO_CLASS)]
        if family == 4:
            return [leaf[:2] for leaf in LEAF.iter_unpack(tables.v4_leaves)]
        starts = (tables.v6_starts[i : i + 16] for i in range(0, len(tables.v6_starts), 16))
        classes = memoryview(tables.v6_classes).cast("H")
        return list(zip((int.from_bytes(start, "big") for start in starts), classes, strict=True))

    def ports(self, cls: int) -> frozenset[int]:
        """The ports that a class, or one around it, names."""
        known = self._ports.get(cls)
        if known is None:
            assert self._tables is not None
            known = self._ports[cls] = self.ports(_parent(self._tables, cls)) | _own_ports(self._tables, cls)
        return known


def _parent(tables: Tables, cls: int) -> int:
    return int(CLASS.unpack_from(tables.classes, cls * CLASS.size)[0])


def _own_ports(tables: Tables, cls: int) -> frozenset[int]:
    *_, start, count = CLASS.unpack_from(tables.classes, cls * CLASS.size)
    items = memoryview(tables.items).cast("I")[start : start + count]
    return frozenset(item >> 8 & 0xFFFF for item in items)


class _Cells:
    """The cells of both snapshots, with what flips in each."""

    def __init__(self, before: Ruleset | None, after: Ruleset | None, host: Host) -> None:
        self._sides = _Side(before, host), _Side(after, host)
        self._named = named_ports(before, after, host=host)
        self._listed = frozenset(rule.port for rule in host.failsafe) - {0}
        self._unnamed = next((port for port in range(1, 65_536) if port not in self._named), None)
        self._special = _special(host)
        self._known: dict[tuple[int, int, tuple[bool, ...]], tuple[_Flip, ...]] = {}

    def of(self, family: int) -> Iterator[tuple[int, int, tuple[_Flip, ...]]]:
        """(first, last, flips) of each interval in which no prefix begins or ends."""
        specials = [cidr for cidr in self._special if cidr.family == family]
        top = (1 << (32 if family == 4 else 128)) - 1
        leaves = [side.leaves(family) for side in self._sides]
        borders = {start for side in leaves for start, _ in side}
        borders |= {cidr.value for cidr in specials} | {cidr.last + 1 for cidr in specials if cidr.last < top}
        at = [0, 0]
        starts = sorted(borders)
        for first, following in zip(starts, [*starts[1:], top + 1], strict=True):
            for side in (0, 1):
                while at[side] + 1 < len(leaves[side]) and leaves[side][at[side] + 1][0] <= first:
                    at[side] += 1
            peer = Address(family, first)
            if not MAPPED.covers(peer):
                one, two = (leaves[side][at[side]][1] for side in (0, 1))
                key = one, two, tuple(cidr.covers(peer) for cidr in specials)
                if key not in self._known:
                    self._known[key] = tuple(self._flips(peer, one, two))
                yield first, following - 1, self._known[key]

    def _flips(self, peer: Address, one: int, two: int) -> Iterator[_Flip]:
        """What flips at this peer, as few words as hold all of it."""
        here = self._sides[0].ports(one) | self._sides[1].ports(two) | self._listed
        for direction in DIRECTIONS:
            found = {name: list(self._ported(direction, name, number, peer, here)) for name, number in PROTOS}
            found["other"] = list(self._flip(direction, "other", EVERY, Flow(direction, OTHER_PROTO, peer)))
            every = {(flips[0].before, flips[0].after) for flips in found.values() if flips}
            whole = all(len(flips) == 1 and flips[0].port == EVERY for flips in found.values())
            if whole and len(every) == 1:
                yield found["tcp"][0]._replace(proto="any")
            else:
                yield from (flip for flips in found.values() for flip in flips)

    def _ported(
        self, direction: Direction, name: ProtoName, number: int, peer: Address, here: frozenset[int]
    ) -> Iterator[_Flip]:
        """Of TCP or UDP: EVERY when all ports flip alike, else each named port and the rest."""
        rest: list[_Flip] = []
        if self._unnamed is not None:
            rest = list(self._flip(direction, name, UNNAMED, Flow(direction, number, peer, self._unnamed)))
        flips = [
            flip
            for port in sorted(here & self._named)
            for flip in self._flip(direction, name, port, Flow(direction, number, peer, port))
        ]
        if rest:
            flips += [rest[0]._replace(port=port) for port in sorted(self._named - here)]
        ways = {(flip.before, flip.after) for flip in (*flips, *rest)}
        if rest and len(flips) == len(self._named) and len(ways) == 1:
            yield rest[0]._replace(port=EVERY)
        else:
            yield from (*flips, *rest)

    def _flip(self, direction: Direction, name: ProtoName, port: int, flow: Flow) -> Iterator[_Flip]:
        before, after = (side.word(flow) for side in self._sides)
        if before != after:
            yield _Flip(direction, name, port, before, after)

    def change(self, flip: _Flip, spans: Sequence[tuple[int, int, int]]) -> Change:
        family, first, _ = spans[0]
        number = {"udp": UDP, "other": OTHER_PROTO}.get(flip.proto, TCP)
        port = self._unnamed if flip.port in (EVERY, UNNAMED) else flip.port
        witness = Flow(
            flip.direction, number, Address(family, first), None if number == OTHER_PROTO else port
        )
        return Change(*flip, cidrs=tuple(_cidrs(spans)), witness=witness)


def _special(host: Host) -> list[Cidr]:
    """Where a failsafe tells addresses apart, and what is no address of a peer."""
    single = {LOOPBACK_V6, *UNSPECIFIED, *host.addresses}
    listed = {rule.cidr for rule in host.failsafe if rule.cidr is not None}
    known = {LOOPBACK_V4, MAPPED, *listed, *host.prefixes}
    return sorted({*known, *(Cidr(a.family, a.value, a.bits) for a in single)})


def _cidrs(spans: Iterable[tuple[int, int, int]]) -> Iterator[Cidr]:
    for family, first, last in spans:
        of = IPv4Address if family == 4 else IPv6Address
        for network in summarize_address_range(of(first), of(last)):
            yield Cidr(family, int(network.network_address), network.prefixlen)
