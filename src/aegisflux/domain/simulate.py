"""Many recorded flows against the snapshots of a fleet, by columns; agrees with `domain.verdict` on each.

The compiled tables of all services lie in one set of arrays, searched for all flows at once. What recorded
flows do not say (ICMP types, source ports, malformed headers, the agent's own socket, the cgroup of a socket)
is not judged here: a failsafe rule that names a cgroup covers none of them, as in `verdict` it covers no flow
whose cgroup is not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aegisflux.domain.errors import OverLimit
from aegisflux.domain.flow import FailsafeRule, Flow, Host
from aegisflux.domain.net import TCP, UDP, Address, Cidr
from aegisflux.domain.tables import (
    ALLOW_BITS,
    CLASS,
    DENY_BITS,
    EGRESS,
    INGRESS,
    KIND_DENY,
    KIND_LIST,
    KIND_PEER,
    LEAF,
    NO_CLASS,
    PROTO_ANY,
    PROTO_TCP,
    PROTO_UDP,
    Tables,
    wild_bit,
)
from aegisflux.domain.verdict import LOOPBACK_V4, REASONS
from aegisflux.domain.verdict_of_tables import Settings

Int = NDArray[np.int64]
Bools = NDArray[np.bool_]
U64 = NDArray[np.uint64]

REASON: Final = {name: number for number, name in enumerate(REASONS)}
ALLOWING: Final = frozenset(("unmanaged", "failsafe", "expired_open", "allow", "unrestricted"))
MAX_SERVICES: Final = 1 << 22
BLOCK: Final = 1 << 14  # rows at a time, whose columns stay in the cache


class Policy(NamedTuple):
    """What one service is under."""

    tables: Tables
    settings: Settings


@dataclass(frozen=True, slots=True)
class Initiations:
    """One row an initiation, as the service that is judged sees it; all columns have one length.

    policy:    number of the service's policy, -1: it has none
    host:      number of its host
    direction: EGRESS or INGRESS
    family:    of the peer, 4 or 6; high, low: the peer's address as two numbers of 64 bits
    port:      that the initiator addresses, -1: none
    live:      whether the flow was live when the snapshot came into force
    local:     whether it stays on the host
    """

    policy: Int
    host: Int
    direction: Int
    proto: Int
    family: Int
    high: U64
    low: U64
    port: Int
    live: Bools
    local: Bools

    def __len__(self) -> int:
        return len(self.policy)

    def flow(self, row: int) -> Flow:
        """One of them, as `verdict.judge` takes it."""
        value = int(self.high[row]) << 64 | int(self.low[row])
        return Flow(
            direction="egress" if self.direction[row] == EGRESS else "ingress",
            proto=int(self.proto[row]),
            peer=Address(int(self.family[row]), value),
            port=None if self.port[row] < 0 else int(self.port[row]),
            live=bool(self.live[row]),
            local=bool(self.local[row]),
        )


class Verdicts(NamedTuple):
    """Of each initiation: a number of `REASONS`, and whether it is allowed and not only observed."""

    reason: NDArray[np.uint8]
    allowed: Bools
    blocks: Bools


class Fleet:
    """The policies of a fleet and its hosts, made ready for many flows."""

    def __init__(self, policies: Sequence[Policy], hosts: Sequence[Host]) -> None:
        if len(policies) > MAX_SERVICES:
            raise OverLimit("services", MAX_SERVICES, len(policies), "a simulation")
        self._safe = _Failsafe(hosts)
        self._tables = _Stacked([policy.tables for policy in policies])
        settings = [policy.settings for policy in policies]
        self._restricts = np.array([policy.tables.ingress for policy in policies], bool)
        self._enforces = np.array([s.mode == "enforce" for s in settings], bool)
        self._keeps = np.array([s.established == "keep" for s in settings], bool)
        self._closes = np.array([s.on_expiry == "closed" for s in settings], bool)
        self._expired = np.array([host.expired for host in hosts], bool)

    def judge(self, flows: Initiations) -> Verdicts:
        """What happens to each; the same as `verdict.judge` says of `flows.flow(row)`."""
        reason = np.full(len(flows), REASON["unmanaged"], np.uint8)
        enforced = np.zeros(len(flows), bool)
        managed = np.nonzero(flows.policy >= 0)[0]
        for start in range(0, len(managed), BLOCK):
            rows = managed[start : start + BLOCK]
            policy = flows.policy[rows]
            found = self._reasons(flows, rows, policy)
            kept = (found == REASON["no_match"]) & flows.live[rows] & self._keeps[policy]
            found[kept] = REASON["allow"]
            reason[rows], enforced[rows] = found, self._enforces[policy]
        allowed = _ALLOWS[reason]
        return Verdicts(reason, allowed, ~allowed & enforced)

    def _reasons(self, flows: Initiations, rows: Int, policy: Int) -> NDArray[np.uint8]:
        """Without `keep`; from the weakest reason to the strongest, each over the one before."""
        direction = flows.direction[rows]
        bits = self._tables.bits(flows, rows, policy)
        found = np.full(len(rows), REASON["no_match"], np.uint8)
        found[(direction == INGRESS) & ~self._restricts[policy]] = REASON["unrestricted"]
        found[bits & ALLOW_BITS != 0] = REASON["allow"]
        found[bits & DENY_BITS != 0] = REASON["deny"]
        expired = self._expired[flows.host[rows]]
        found[expired & self._closes[policy]] = REASON["expired_closed"]
        found[expired & ~self._closes[policy]] = REASON["expired_open"]
        found[self._safe.covers(flows, rows)] = REASON["failsafe"]
        return found


_ALLOWS: Final = np.array([name in ALLOWING for name in REASONS], bool)


class _Failsafe:
    """`verdict.failsafe` of what flows record: own addresses and prefixes, and the hosts' lists."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        own = [(n, a) for n, host in enumerate(hosts) for a in host.addresses]
        self._v4 = np.array(sorted(n << 32 | a.value for n, a in own if a.family == 4), np.int64)
        v6 = [(n, a.value >> 64, a.value & _LOW) for n, a in own if a.family == 6]
        self._highs = np.array(sorted({high for _, high, _ in v6}), np.uint64)
        self._lows = np.array(sorted({low for _, _, low in v6}), np.uint64)
        columns = [np.array(c, np.uint64) for c in zip(*v6, strict=True)] or [np.empty(0, np.uint64)] * 3
        self._v6 = np.sort(self._pair(columns[0].astype(np.int64), columns[1], columns[2]))
        routed = {prefix for host in hosts for prefix in host.prefixes}
        self._routed = [(prefix, np.array([prefix in host.prefixes for host in hosts])) for prefix in routed]
        rules = {rule for host in hosts for rule in host.failsafe if rule.cgroup is None}
        self._lists = [(rule, np.array([rule in host.failsafe for host in hosts])) for rule in rules]

    def covers(self, flows: Initiations, rows: Int) -> Bools:
        """Which of these rows a failsafe allows."""
        host, high, low = flows.host[rows], flows.high[rows], flows.low[rows]
        v4 = flows.family[rows] == 4
        found: Bools = flows.local[rows] | ((high == 0) & (low == 0)) | (~v4 & (high == 0) & (low == 1))
        found |= v4 & (low >> np.uint64(24) == LOOPBACK_V4.value >> 24)
        found[v4] |= _among(host[v4] << 32 | low[v4].astype(np.int64), self._v4)
        found[~v4] |= _among(self._pair(host[~v4], high[~v4], low[~v4]), self._v6)
        for prefix, has in self._routed:
            found |= has[host] & _inside(prefix, flows, rows)
        for rule, has in self._lists:
            found |= has[host] & _listed(rule, flows, rows)
        return found

    def _pair(self, host: Int, high: U64, low: U64) -> Int:
        """(host, address) as one number; -1 for an address that no host has."""
        at, of = np.searchsorted(self._highs, high), np.searchsorted(self._lows, low)
        known = _is_at(self._highs, at, high) & _is_at(self._lows, of, low)
        return np.where(known, host << 40 | at << 20 | of, -1)


_LOW: Final = (1 << 64) - 1


def _is_at(values: U64, at: NDArray[np.intp], wanted: U64) -> Bools:
    if not len(values):
        return np.zeros(len(wanted), bool)
    found: Bools = values[np.minimum(at, len(values) - 1)] == wanted
    return found


def _among(wanted: Int, ordered: Int) -> Bools:
    if not len(ordered):
        return np.zeros(len(wanted), bool)
    found: Bools = ordered[np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)] == wanted
    return found


def _listed(rule: FailsafeRule, flows: Initiations, rows: Int) -> Bools:
    """Which rows an entry of a failsafe list matches (contracts §1.3)."""
    proto, port = flows.proto[rows], flows.port[rows]
    found: Bools = flows.direction[rows] == (EGRESS if rule.direction == "egress" else INGRESS)
    if rule.proto != "any":
        found &= proto == (TCP if rule.proto == "tcp" else UDP)
    elif rule.port:
        found &= (proto == TCP) | (proto == UDP)
    if rule.port:
        found &= port == rule.port
    return found if rule.cidr is None else found & _inside(rule.cidr, flows, rows)


def _inside(cidr: Cidr, flows: Initiations, rows: Int) -> Bools:
    high, low = flows.high[rows], flows.low[rows]
    found: Bools = flows.family[rows] == cidr.family
    first, last = (divmod(value, 1 << 64) for value in (cidr.value, cidr.last))
    found &= (high > first[0]) | ((high == first[0]) & (low >= first[1]))
    found &= (high < last[0]) | ((high == last[0]) & (low <= last[1]))
    return found


class _Stacked:
    """The tables of all policies in one set of arrays; classes are numbered across policies, -1 is none."""

    def __init__(self, tables: Sequence[Tables]) -> None:
        classes = [np.frombuffer(t.classes, _CLASS) for t in tables]
        base = np.cumsum([0, *(len(c) for c in classes)])
        items = [np.frombuffer(t.items, "<u4").astype(np.int64) for t in tables]
        item_base = np.cumsum([0, *(len(i) for i in items)])
        every = np.concatenate(classes) if classes else np.empty(0, _CLASS)
        owner = np.repeat(np.arange(len(tables)), [len(c) for c in classes])
        parent = every["parent"].astype(np.int64)
        self._parent = np.where(parent == NO_CLASS, -1, parent + base[owner])
        self._wild = every["wild"].astype(np.int64)
        self._start = every["start"].astype(np.int64) + item_base[owner]
        self._count = every["count"].astype(np.int64)
        raw = np.concatenate(items) if items else np.empty(0, np.int64)
        keys, self._item_bits = raw >> 8, raw & 0xFF
        heads = np.unique(self._start[self._count > 0])
        head = heads[np.searchsorted(heads, np.arange(len(raw)), side="right") - 1] if len(raw) else raw
        self._items = head << _KEY_BITS | keys
        self._v4_keys, self._v4_class = _leaves(tables, base)
        self._v6 = _V6(tables, base)

    def bits(self, flows: Initiations, rows: Int, policy: Int) -> Int:
        """The bits of all entries that match, of every enclosing prefix."""
        cls = self._class_of(flows, rows, policy)
        code = _CODES[flows.proto[rows]]
        direction, port = flows.direction[rows], flows.port[rows]
        exact = np.where((code != PROTO_ANY) & (port >= 0), direction << 17 | code << 16 | port, -1)
        wild = _WILD[direction, code]
        found = np.zeros(len(rows), np.int64)
        at = np.nonzero(cls >= 0)[0]
        while len(at):
            here = cls[at]
            found[at] |= np.where(self._wild[here] & wild[at, 0], DENY_BITS, 0)
            found[at] |= np.where(self._wild[here] & wild[at, 1], ALLOW_BITS, 0)
            self._add_exact(found, at, here, exact)
            cls[at] = self._parent[here]
            at = at[cls[at] >= 0]
        return found

    def _add_exact(self, found: Int, at: Int, here: Int, exact: Int) -> None:
        asks = (self._count[here] > 0) & (exact[at] >= 0)
        rows, cls = at[asks], here[asks]
        wanted = self._start[cls] << _KEY_BITS | exact[rows]
        place = np.minimum(np.searchsorted(self._items, wanted), max(0, len(self._items) - 1))
        hit = self._items[place] == wanted if len(self._items) else np.zeros(len(rows), bool)
        found[rows[hit]] |= self._item_bits[place[hit]]

    def _class_of(self, flows: Initiations, rows: Int, policy: Int) -> Int:
        found = np.empty(len(rows), np.int64)
        v4 = flows.family[rows] == 4
        wanted = policy[v4].astype(np.uint64) << np.uint64(32) | flows.low[rows][v4]
        found[v4] = (
            self._v4_class[np.searchsorted(self._v4_keys, wanted, side="right") - 1] if v4.any() else 0
        )
        found[~v4] = self._v6.class_of(policy[~v4], flows.high[rows][~v4], flows.low[rows][~v4])
        return found


_KEY_BITS: Final = 18
_CLASS: Final = np.dtype(
    {
        "names": ["parent", "wild", "start", "count"],
        "formats": ["<u2", "<u4", "<u4", "<u2"],
        "offsets": [0, 4, 8, 12],
        "itemsize": CLASS.size,
    }
)
_LEAF: Final = np.dtype(
    {"names": ["start", "class"], "formats": ["<u4", "<u2"], "offsets": [0, 4], "itemsize": LEAF.size}
)
_CODES: Final = np.full(256, PROTO_ANY, np.int64)
_CODES[TCP], _CODES[UDP] = PROTO_TCP, PROTO_UDP


def _wild_masks() -> Int:
    """Of each direction and protocol code: the wild bits that deny, and those that allow."""
    found = np.zeros((2, 3, 2), np.int64)
    for direction in (EGRESS, INGRESS):
        for code in (PROTO_TCP, PROTO_UDP, PROTO_ANY):
            for proto in {code, PROTO_ANY}:
                found[direction, code, 0] |= wild_bit(direction, proto, KIND_DENY)
                for kind in (KIND_LIST, KIND_PEER):
                    found[direction, code, 1] |= wild_bit(direction, proto, kind)
    return found


_WILD: Final = _wild_masks()


def _leaves(tables: Sequence[Tables], base: Int) -> tuple[U64, Int]:
    keys, classes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for number, one in enumerate(tables):
        leaves = np.frombuffer(one.v4_leaves, _LEAF)
        keys.append(np.uint64(number << 32) | leaves["start"].astype(np.uint64))
        classes.append(_global(leaves["class"], int(base[number])))
    return np.concatenate(keys), np.concatenate(classes)


def _global(classes: NDArray[np.uint16], base: int) -> Int:
    numbers = classes.astype(np.int64)
    return np.where(numbers == NO_CLASS, -1, numbers + base)


class _V6:
    """IPv6 intervals: addresses are ranked among all starts, so that (policy, rank) is one number."""

    def __init__(self, tables: Sequence[Tables], base: Int) -> None:
        starts = [np.frombuffer(t.v6_starts, ">u8").reshape(-1, 2) for t in tables]
        every = np.concatenate(starts) if starts else np.empty((0, 2), ">u8")
        owner = np.repeat(np.arange(len(tables)), [len(s) for s in starts])
        self._high = np.unique(every[:, 0].astype(np.uint64))
        self._low = np.unique(every[:, 1].astype(np.uint64))
        if max(len(self._high), len(self._low)) >= _MOST_RANKS:
            raise OverLimit("ipv6_starts", _MOST_RANKS - 1, len(every), "a simulation")
        classes = [np.empty(0, np.int64)]
        for number, one in enumerate(tables):
            classes.append(_global(np.frombuffer(one.v6_classes, "<u2"), int(base[number])))
        self._class = np.concatenate(classes)
        self._keys = self._key(owner, every[:, 0].astype(np.uint64), every[:, 1].astype(np.uint64))

    def class_of(self, policy: Int, high: U64, low: U64) -> Int:
        if not len(policy):
            return np.empty(0, np.int64)
        wanted = self._key(policy, high, low)
        return self._class[np.searchsorted(self._keys, wanted, side="right") - 1]

    def _key(self, policy: Int, high: U64, low: U64) -> U64:
        """(policy, rank of high, rank of low); an address between two ranks is the lower one, filled up."""
        at = np.searchsorted(self._high, high, side="right") - 1
        exact = self._high[at] == high
        rank = np.searchsorted(self._low, low, side="right").astype(np.int64)
        rank = np.where(exact, rank, _MOST_RANKS - 1)
        keys: U64 = (policy << 40 | at << 20 | rank).astype(np.uint64)
        return keys


_MOST_RANKS: Final = 1 << 20
