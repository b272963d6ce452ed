"""The snapshots of a result mean what it proposes: all that it covers, and nothing else."""

import random

import numpy as np
import pytest

from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import Address
from aegisflux.domain.segment.fleets import Plan, make
from aegisflux.domain.segment.mine import mine
from aegisflux.domain.segment.snapshots import Places, Target, snapshot_of, unsayable
from aegisflux.domain.segment.tuples import tuples_of
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.verdict import judge

PLAN = Plan(hosts=60, roles=30, records=12_000, world=40, partners=6, poison=0.02)
NOBODY = Host(failsafe=())


def address(actor, hosts):
    """Hosts in 10/8, some of them IPv6; the world in 203.0.113.0/24."""
    if actor >= hosts:
        return Address(4, 0xCB007100 + actor - hosts)
    return Address(6, (0x20010DB8 << 96) + actor) if actor % 7 == 0 else Address(4, 0x0A000000 + 3 * actor)


class Compiled:
    """A fleet's result and the snapshots of all its groups."""

    def __init__(self, seed):
        self.fleet = make(PLAN, seed)
        self.actors = len(self.fleet.role)
        self.mined = mine(self.fleet.window, self.fleet.hosts, self.actors)
        self.at = [address(actor, self.fleet.hosts) for actor in range(self.actors)]
        places = Places(self.mined, [[a] for a in self.at])
        groups = sorted(set(self.mined.groups[: self.fleet.hosts].tolist()))
        self.of = {g: ruleset(snapshot_of(self.mined, places, g, Target(g, 1, 3600))) for g in groups}

    def lets(self, client, server, proto, port):
        """Whether both ends, where they are hosts of ours, let it through."""
        egress = Flow("egress", proto, self.at[server], port)
        ingress = Flow("ingress", proto, self.at[client], port)
        hosts = self.fleet.hosts
        return all(
            judge(self.of[int(self.mined.groups[own])], flow, NOBODY).action == "allow"
            for own, flow in ((client, egress), (server, ingress))
            if own < hosts
        )


@pytest.mark.parametrize("seed", range(3))
def test_both_ends_allow_what_is_proposed_and_nothing_else(seed):
    compiled = Compiled(seed)
    mined, fleet = compiled.mined, compiled.fleet
    assert unsayable(mined) == 0
    seen = tuples_of(fleet.window.and_(fleet.later))
    rng = random.Random(seed)
    columns = (seen.client, seen.server, seen.proto, seen.port)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    ports = sorted(set(seen.port.tolist()))
    for _ in range(1500):
        ends = rng.sample(range(compiled.actors), 2)
        if min(ends) < fleet.hosts:
            rows.append((*ends, rng.choice((6, 17)), rng.choice(ports)))
    columns = [np.array(column, np.int32) for column in zip(*rows, strict=True)]
    proposed = mined.allows(*columns).tolist()
    assert {True, False} <= set(proposed)
    for row, allowed in zip(rows, proposed, strict=True):
        assert compiled.lets(*row) == allowed, row


def test_what_was_learned_is_what_both_ends_allow_later():
    compiled = Compiled(1)
    later = compiled.fleet.later
    covered = compiled.mined.allows(later.client, later.server, later.proto, later.port)
    assert covered.mean() > 0.9
