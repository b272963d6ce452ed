"""Recorded flows against a candidate: which would be blocked, how often, by which program, since when, and
which rule would be needed.

Hosts of the fleet are judged at the addresses at which the window saw them talk to each other; a flow is
blocked when it is at any of these. Where none was recorded, a host stands at the lowest of its addresses that
no other host claims. A host without one, and a flow that no candidate governs, is counted and not judged.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.flow import Host
from aegisflux.domain.net import PROTOCOL_NAMES, Address, parse_address
from aegisflux.domain.policy_compile import Inventory
from aegisflux.domain.segment.flows import HOURS, Flows
from aegisflux.domain.segment.propose import Actor, Recorded
from aegisflux.domain.simulate import Fleet, Initiations, Policy
from aegisflux.domain.snapshot import MapSnapshot, ruleset
from aegisflux.domain.tables import EGRESS, INGRESS
from aegisflux.domain.verdict import REASONS

MOST_LINES: Final = 1000
MOST_NAMED: Final = 3
LOW: Final = (1 << 64) - 1
Columns = tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]


class BlockedFlows(Struct, frozen=True, kw_only=True):
    """Recorded flows of one kind that a candidate would block at one of its ends.

    at: the service whose snapshot blocks, and in which direction
    records, connections: how often; since: the period of the window (0 is its first) when it was first seen
    hosts: some of the service's hosts on which it happens; programs: the caller's, most often first
    rule: what would let it through
    """

    at: str
    direction: str
    client: str
    server: str
    what: str
    records: int
    connections: int
    since: int
    hosts: tuple[str, ...]
    programs: tuple[str, ...]
    reason: str
    rule: str


class Replay(Struct, frozen=True, kw_only=True):
    """What a candidate would do to the flows of a window; counts are of flow records.

    judged: records of which an end is governed; blocked: at one end or both, by the failsafe that every host
            has (SSH to it): the lines of a host's own list, and what cgroup they name, its agent alone knows
    unplaced: records that could not be judged, since a host has no known address
    lines: what is blocked, most often first; cut: kinds beyond `MOST_LINES`
    """

    records: int
    judged: int
    blocked: int
    unplaced: int
    lines: tuple[BlockedFlows, ...]
    cut: int = 0


def replay(recorded: Recorded, snapshots: Mapping[str, MapSnapshot], inventory: Inventory) -> Replay:
    """Judge every record; the verdict is that of `domain.simulate`."""
    names, flows = sorted(snapshots), recorded.flows
    number = {name: n for n, name in enumerate(names)}
    policy = np.array([number.get(actor.service, -1) for actor in recorded.actors], np.int64)
    fleet, ends = Fleet(*_fleet(recorded.actors, inventory, snapshots, names)), Ends(recorded, inventory)
    blocked = np.zeros(len(flows), bool)
    governed = np.zeros(len(flows), bool)
    found: list[BlockedFlows] = []
    for direction, own in ((EGRESS, flows.client), (INGRESS, flows.server)):
        rows = np.nonzero(ends.known & (policy[own] >= 0))[0] if len(flows) else np.zeros(0, np.intp)
        reason = np.full(len(flows), -1, np.int64)
        for nth in range(ends.most):
            some = rows[ends.count[rows] > nth]
            verdicts = fleet.judge(
                _initiations(some, direction, own, policy, ends.peers(some, direction, nth), flows)
            )
            reason[some[~verdicts.allowed]] = verdicts.reason[~verdicts.allowed]
        governed[rows] = True
        denied = np.nonzero(reason >= 0)[0]
        blocked[denied] = True
        found += _lines(recorded, denied, direction, reason[denied])
    found.sort(key=lambda line: (-line.records, line.at, line.client, line.server, line.what, line.direction))
    return Replay(
        records=len(flows),
        judged=int(governed.sum()),
        blocked=int(blocked.sum()),
        unplaced=int((~ends.known).sum()),
        lines=tuple(found[:MOST_LINES]),
        cut=max(0, len(found) - MOST_LINES),
    )


class Ends:
    """At which addresses each record is judged: in `count` ways, at most `most`; `known`: in at least one."""

    def __init__(self, recorded: Recorded, inventory: Inventory) -> None:
        flows, actors = recorded.flows, recorded.actors
        claimed = shared(inventory)
        places = [place_of(actor, inventory, claimed) for actor in actors]
        keys = flows.client.astype(np.int64) * max(1, len(actors)) + flows.server
        pairs, self._pair = np.unique(keys, return_inverse=True)
        ways = [_ways(recorded, places, *divmod(int(key), max(1, len(actors)))) for key in pairs]
        sizes = np.array([len(one) for one in ways], np.int64)
        self._first = np.cumsum(sizes) - sizes
        self._clients = _columns([one[0] for some in ways for one in some])
        self._servers = _columns([one[1] for some in ways for one in some])
        self.most = int(sizes.max()) if len(sizes) else 0
        self.count = sizes[self._pair] if len(sizes) else np.zeros(0, np.int64)
        self.known = self.count > 0

    def peers(self, rows: NDArray[np.intp], direction: int, nth: int) -> Columns:
        """The other ends of these records, in the nth way."""
        at = self._first[self._pair[rows]] + nth
        family, high, low = self._servers if direction == EGRESS else self._clients
        return family[at], high[at], low[at]


def _ways(
    recorded: Recorded, places: Sequence[Address | None], client: int, server: int
) -> list[tuple[Address, Address]]:
    seen = recorded.between.get((recorded.actors[client].host, recorded.actors[server].host))
    if seen:
        return [(parse_address(one), parse_address(other)) for one, other in seen]
    here, there = places[client], places[server]
    return [(here, there)] if here and there else []


def fresh_cuts(then: Replay, now: Replay) -> tuple[BlockedFlows, ...]:
    """What is blocked now and was not named then."""
    named = {_kind(line) for line in then.lines}
    return tuple(line for line in now.lines if _kind(line) not in named)


def without_calls_of(recorded: Recorded, hosts: Collection[str]) -> Recorded:
    """The window without what these hosts began."""
    kept = np.array([actor.host not in hosts for actor in recorded.actors], bool)
    return replace(recorded, flows=recorded.flows.where(kept[recorded.flows.client]))


def _kind(line: BlockedFlows) -> tuple[str, ...]:
    return line.at, line.direction, line.client, line.server, line.what


def _fleet(
    actors: Sequence[Actor], inventory: Inventory, snapshots: Mapping[str, MapSnapshot], names: Sequence[str]
) -> tuple[list[Policy], list[Host]]:
    rules = [ruleset(snapshots[name]) for name in names]
    own = {host: inventory.addresses((host,)) for host in {actor.host for actor in actors}}
    hosts = [Host(addresses=own[actor.host]) for actor in actors]
    return [Policy(compile_tables(one), one) for one in rules], hosts


def _columns(places: Sequence[Address]) -> Columns:
    """Family, and both halves, of each address."""
    family = np.array([one.family for one in places], np.int64)
    high = np.array([one.value >> 64 for one in places], np.uint64)
    return family, high, np.array([one.value & LOW for one in places], np.uint64)


def _initiations(
    rows: NDArray[np.intp], direction: int, own: NDArray[np.int32], policy: NDArray[np.int64],
    peers: Columns, flows: Flows,
) -> Initiations:  # fmt: skip
    mine = own[rows]
    nothing = np.zeros(len(rows), bool)
    return Initiations(
        policy[mine],
        mine.astype(np.int64),
        np.full(len(rows), direction, np.int64),
        flows.proto[rows].astype(np.int64),
        *peers,
        flows.port[rows].astype(np.int64),
        nothing,
        nothing,
    )


def _lines(
    recorded: Recorded, denied: NDArray[np.intp], direction: int, reasons: NDArray[np.int64]
) -> list[BlockedFlows]:
    flows, actors = recorded.flows.where(denied), recorded.actors
    kinds: dict[tuple[str, str, int, int], list[int]] = defaultdict(list)
    columns = (flows.client, flows.server, flows.proto, flows.port)
    for row, (client, server, proto, port) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        kinds[_name(actors[client]), _name(actors[server]), proto, port].append(row)
    found = []
    for (client, server, proto, port), rows in kinds.items():
        some = flows.where(np.array(rows, np.intp))
        own = some.client if direction == EGRESS else some.server
        programs = Counter(p for p in some.program.tolist() if p >= 0)
        what = f"{PROTOCOL_NAMES.get(proto, str(proto))}/{port}"
        found.append(
            BlockedFlows(
                at=client if direction == EGRESS else server,
                direction="egress" if direction == EGRESS else "ingress",
                client=client,
                server=server,
                what=what,
                records=len(rows),
                connections=int(some.count.sum(dtype=np.int64)),
                since=int(some.hour.min()) // HOURS,
                hosts=tuple(sorted({actors[n].host for n in set(own.tolist())})[:MOST_NAMED]),
                programs=tuple(recorded.programs[p] for p, _ in programs.most_common(MOST_NAMED)),
                reason=REASONS[int(reasons[rows[0]])],
                rule=f"{client} -> {server} {what}",
            )
        )
    return found


def _name(actor: Actor) -> str:
    """As a rule would name it."""
    if actor.service:
        return actor.service
    return f"host:{actor.host}" if actor.host else actor.address


def place_of(actor: Actor, inventory: Inventory, claimed: Collection[Address] = ()) -> Address | None:
    """The address at which an actor stands, if it can be one that is not claimed; None: it is not known."""
    if not actor.host:
        return parse_address(actor.address)
    own = inventory.addresses((actor.host,))
    return min(own.difference(claimed) or own, default=None)


def shared(inventory: Inventory) -> frozenset[Address]:
    """Addresses that more than one host says are its own, such as those of a container bridge."""
    said = Counter(one for host in inventory.hosts for one in inventory.addresses((host,)))
    return frozenset(one for one, hosts in said.items() if hosts > 1)
