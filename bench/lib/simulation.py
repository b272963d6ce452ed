"""Recorded flows of a synthetic fleet, as both ends saw them, against snapshots that were mined from them."""

import time

import numpy as np

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.flow import Host
from aegisflux.domain.net import Address
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.segment.export import PROTOS
from aegisflux.domain.segment.fleets import Fleet
from aegisflux.domain.segment.mine import Mined
from aegisflux.domain.segment.rules import ANYONE, FLEET
from aegisflux.domain.simulate import Fleet as Judged
from aegisflux.domain.simulate import Initiations
from aegisflux.domain.simulate import Policy as Under
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.tables import EGRESS, INGRESS


def addresses(fleet: Fleet):
    """Hosts in 10/8, the world in 203/8."""
    actors = np.arange(len(fleet.role))
    return np.where(actors < fleet.hosts, 0x0A000000 + 3 * actors, 0xCB000000 + actors)


def compiled(fleet: Fleet, found: Mined):
    """The snapshot of each group of hosts, as a service of its own, by the policy that the rules are."""
    at = [str(Address(4, value)) for value in addresses(fleet).tolist()]
    groups = found.groups.tolist()
    inside = set(groups[: fleet.hosts])
    hosts = {f"h{n}": HostPlace({}, (at[n],)) for n in range(fleet.hosts)}
    services = {
        f"g{group}": ServicePlace(group, tuple(f"h{n}" for n in range(fleet.hosts) if groups[n] == group))
        for group in inside
    }
    outside = {
        f"g{group}": Group(cidrs=tuple(at[n] for n in range(fleet.hosts, len(groups)) if groups[n] == group))
        for group in set(groups) - inside - {ANYONE}
    }
    name = {ANYONE: "anyone", FLEET: "fleet"} | {group: f"g{group}" for group in set(groups) - {ANYONE}}
    rules = tuple(
        Rule(from_=name[rule.client], to=name[rule.server], ports=(f"{PROTOS[rule.proto]}/{rule.port}",))
        for rule in found.proposed
    )
    policy = Policy(policy=1, services=tuple(services), groups=outside, rules=rules)
    return compile_policy(policy, Inventory(services, hosts))


def judged(fleet: Fleet, found: Mined) -> Judged:
    """All groups' snapshots, made ready; policy n is group n."""
    snapshots = compiled(fleet, found)
    rules = [ruleset(snapshots[f"g{group}"]) for group in range(len(snapshots))]
    at = addresses(fleet)[: fleet.hosts].tolist()
    hosts = [Host(addresses=frozenset({Address(4, value)})) for value in at]
    return Judged([Under(compile_tables(one), one) for one in rules], hosts)


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
