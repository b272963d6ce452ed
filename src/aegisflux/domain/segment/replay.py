"""Recorded flows against a candidate: which would be blocked, how often, by which program, since when, and
which rule would be needed.

A recorded flow names hosts, not addresses: each host stands at its first known address. A host without one,
and a flow that no candidate governs, is counted and not judged.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.flow import Host
from aegisflux.domain.net import PROTOCOL_NAMES, Address, parse_address
from aegisflux.domain.policy_compile import Inventory
from aegisflux.domain.segment.flows import HOURS
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

    judged: records of which an end is governed; blocked: at one end or both
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
    at = [place_of(actor, inventory) for actor in recorded.actors]
    placed = np.array([one is not None for one in at], bool)
    policy = np.array([number.get(actor.service, -1) for actor in recorded.actors], np.int64)
    fleet = Fleet(*_fleet(recorded.actors, at, snapshots, names))
    known = placed[flows.client] & placed[flows.server] if len(flows) else np.zeros(0, bool)
    columns = _columns(at)
    blocked = np.zeros(len(flows), bool)
    governed = np.zeros(len(flows), bool)
    found: list[BlockedFlows] = []
    for direction, own, peer in ((EGRESS, flows.client, flows.server), (INGRESS, flows.server, flows.client)):
        rows = np.nonzero(known & (policy[own] >= 0))[0] if len(flows) else np.zeros(0, np.intp)
        verdicts = fleet.judge(_initiations(rows, direction, own, peer, policy, columns, recorded))
        governed[rows] = True
        denied = rows[~verdicts.allowed]
        blocked[denied] = True
        found += _lines(recorded, denied, direction, verdicts.reason[~verdicts.allowed])
    found.sort(key=lambda line: (-line.records, line.at, line.client, line.server, line.what, line.direction))
    return Replay(
        records=len(flows),
        judged=int(governed.sum()),
        blocked=int(blocked.sum()),
        unplaced=int((~known).sum()),
        lines=tuple(found[:MOST_LINES]),
        cut=max(0, len(found) - MOST_LINES),
    )


def _fleet(
    actors: Sequence[Actor], at: Sequence[Address | None], snapshots: Mapping[str, MapSnapshot],
    names: Sequence[str],
) -> tuple[list[Policy], list[Host]]:  # fmt: skip
    rules = [ruleset(snapshots[name]) for name in names]
    own = [
        frozenset({one}) if actor.host and one else frozenset() for actor, one in zip(actors, at, strict=True)
    ]
    return [Policy(compile_tables(one), one) for one in rules], [Host(addresses=one) for one in own]


def _columns(at: Sequence[Address | None]) -> Columns:
    """Family, and both halves, of each actor's address; of none 0.0.0.0."""
    places = [one or Address(4, 0) for one in at]
    family = np.array([one.family for one in places], np.int64)
    high = np.array([one.value >> 64 for one in places], np.uint64)
    return family, high, np.array([one.value & LOW for one in places], np.uint64)


def _initiations(
    rows: NDArray[np.intp], direction: int, own: NDArray[np.int32], peer: NDArray[np.int32],
    policy: NDArray[np.int64], at: Columns, recorded: Recorded,
) -> Initiations:  # fmt: skip
    family, high, low = at
    mine, theirs = own[rows], peer[rows]
    nothing = np.zeros(len(rows), bool)
    flows = recorded.flows
    return Initiations(
        policy[mine],
        mine.astype(np.int64),
        np.full(len(rows), direction, np.int64),
        flows.proto[rows].astype(np.int64),
        family[theirs],
        high[theirs],
        low[theirs],
        flows.port[rows].astype(np.int64),
        nothing,
        nothing,
    )


def _lines(
    recorded: Recorded, denied: NDArray[np.intp], direction: int, reasons: NDArray[np.uint8]
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


def place_of(actor: Actor, inventory: Inventory) -> Address | None:
    """The address at which an actor stands; None: it is not known."""
    if not actor.host:
        return parse_address(actor.address)
    own = inventory.addresses((actor.host,))
    return min(own) if own else None
