"""Recorded flows of a synthetic fleet, as both ends saw them, against snapshots that were mined from them."""

import time

import numpy as np

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.flow import Host
from aegisflux.domain.net import Address
from aegisflux.domain.segment.fleets import Fleet
from aegisflux.domain.segment.mine import Mined
from aegisflux.domain.segment.snapshots import Places, Target, snapshot_of
from aegisflux.domain.simulate import Fleet as Judged
from aegisflux.domain.simulate import Initiations, Policy
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.tables import EGRESS, INGRESS


def addresses(fleet: Fleet):
    """Hosts in 10/8, the world in 203/8."""
    actors = np.arange(len(fleet.role))
    return np.where(actors < fleet.hosts, 0x0A000000 + 3 * actors, 0xCB000000 + actors)


def judged(fleet: Fleet, found: Mined) -> Judged:
    """All groups' snapshots, made ready; policy n is group n."""
    at = [Address(4, value) for value in addresses(fleet).tolist()]
    places = Places(found, [[address] for address in at])
    groups = int(found.groups[: fleet.hosts].max()) + 1
    policies = []
    for group in range(groups):
        rules = ruleset(snapshot_of(found, places, group, Target(group, 1, 3600)))
        policies.append(Policy(compile_tables(rules), rules))
    return Judged(policies, [Host(addresses=frozenset({a})) for a in at[: fleet.hosts]])


def initiations(fleet: Fleet, found: Mined) -> Initiations:
    """One row for each end of a recorded flow that is a host."""
    flows, at = fleet.window, addresses(fleet).astype(np.uint64)
    sides = ((flows.client, flows.server, EGRESS), (flows.server, flows.client, INGRESS))
    parts = []
    for own, peer, direction in sides:
        rows = own < fleet.hosts
        n = int(rows.sum())
        parts.append(
            (
                found.groups[own[rows]].astype(np.int64),
                own[rows].astype(np.int64),
                np.full(n, direction),
                flows.proto[rows].astype(np.int64),
                np.full(n, 4),
                np.zeros(n, np.uint64),
                at[peer[rows]],
                flows.port[rows].astype(np.int64),
                np.zeros(n, bool),
                np.zeros(n, bool),
            )
        )
    return Initiations(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def rate(fleet: Fleet, found: Mined) -> tuple[float, int, float]:
    """Flows judged a second by one thread (best of three), how many there were, and the share allowed."""
    ready, rows = judged(fleet, found), initiations(fleet, found)
    best = 0.0
    for _ in range(3):
        begin = time.perf_counter()
        verdicts = ready.judge(rows)
        best = max(best, len(rows) / (time.perf_counter() - begin))
    return best, len(rows), float(verdicts.allowed.mean())
