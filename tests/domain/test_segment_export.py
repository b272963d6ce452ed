"""An exported policy means what the proposal says: all that it allows, at both ends, and nothing else."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import parse_address
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.segment.export import policy_of, rule_name
from aegisflux.domain.segment.fleets import Plan, make
from aegisflux.domain.segment.propose import Actor, Group, Proposal, ProposedRule, Recorded, propose
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.verdict import judge
from aegisflux.wire.policyfile import read, write

PLAN = Plan(hosts=60, roles=30, records=12_000, world=40, partners=6, poison=0.02)
NOBODY = Host(failsafe=())


class Exported:
    """A synthetic fleet, each role of it a registered service but the last ten, and its exported policy."""

    def __init__(self, seed):
        self.fleet = fleet = make(PLAN, seed)
        roles = fleet.role[: fleet.hosts].tolist()
        kept = max(roles) - 10
        self.actors = [
            Actor(f"h{n}", f"svc-{roles[n]}" if roles[n] < kept else "")
            if n < fleet.hosts
            else Actor(address=f"203.0.{113 + n // 250}.{n % 250}")
            for n in range(len(fleet.role))
        ]
        self.recorded = Recorded(
            tuple(self.actors),
            fleet.hosts,
            fleet.window,
            tuple(f"/bin/{n}" for n in range(1 + fleet.window.program.max())),
        )
        self.proposal = propose(self.recorded)
        hosts = {f"h{n}": HostPlace({}, (self.address(n),)) for n in range(fleet.hosts)}
        services = {
            name: ServicePlace(number, tuple(a.host for a in self.actors if a.service == name))
            for number, name in enumerate(sorted({a.service for a in self.actors} - {""}))
        }
        self.inventory = Inventory(services, hosts)
        self.policy = policy_of(self.proposal)
        found = compile_policy(read(write(self.policy)), self.inventory)
        self.snapshots = {name: ruleset(one) for name, one in found.items()}

    def address(self, n):
        if n >= self.fleet.hosts:
            return self.actors[n].address
        return f"2001:db8::{n:x}" if n % 7 == 0 else f"10.0.{n // 80}.{3 * (n % 80)}"

    def lets(self, client, server, proto, port):
        """Whether both ends, where they are governed, let it through."""
        sides = (("egress", client, server), ("ingress", server, client))
        return all(
            judge(self.snapshots[self.actors[own].service], flow, NOBODY).action == "allow"
            for direction, own, peer in sides
            if self.actors[own].service
            for flow in (Flow(direction, proto, parse_address(self.address(peer)), port),)
        )

    def proposed(self, client, server, proto, port):
        group = {member: g.name for g in self.proposal.groups for member in g.members}
        ends = [group.get(str(self.actors[n]), "anyone") for n in (client, server)]
        ends = [
            (end, "fleet") if n < self.fleet.hosts else (end, "anyone")
            for end, n in zip(ends, (client, server), strict=True)
        ]
        return any(
            (rule.held, rule.proto, rule.port) == ("", proto, port)
            and rule.client in ends[0]
            and rule.server in ends[1]
            for rule in self.proposal.rules
        )


@pytest.mark.parametrize("seed", range(2))
def test_both_ends_let_through_what_is_proposed_and_nothing_else(seed):
    one = Exported(seed)
    flows = one.fleet.window.and_(one.fleet.later)
    columns = (flows.client, flows.server, flows.proto, flows.port)
    rows = list({tuple(row) for row in np.stack(columns).T.tolist()})
    ports = sorted({row[3] for row in rows})
    rng = random.Random(seed)
    rows = rng.sample(rows, 700)
    rows += [
        (*rng.sample(range(len(one.actors)), 2), rng.choice((6, 17)), rng.choice(ports)) for _ in range(700)
    ]
    governed = [row for row in rows if one.actors[row[0]].service or one.actors[row[1]].service]
    expected = [one.proposed(*row) for row in governed]
    assert {True, False} <= set(expected)
    assert [one.lets(*row) for row in governed] == expected


LONG = "a" * 60


def proposed(*ways):
    """A proposal of rules between services that run on one host each."""
    names = sorted({end for way in ways for end in way})
    rules = tuple(
        ProposedRule(
            client=client, server=server, proto=6, port=443, kind="learned", held="", clients=1, servers=1,
            days=3, connections=1,
        )
        for client, server in ways
    )  # fmt: skip
    return Proposal(
        groups=tuple(Group(name, (f"{name}@{name}-1",)) for name in names),
        rules=rules, coverage=1, unseen=0, review=(), left_out={}, stability={}, segmentedness=0,
        blast_radius={},
    )  # fmt: skip


@pytest.mark.parametrize(
    "ways",
    [
        ((LONG, "db"), (LONG, "cache")),
        (("db", LONG), ("db", LONG + "b"), ("db", LONG + "c")),
        (("a-to-b", "c"), ("a", "b-to-c")),
        (("a-to", "b"), ("a", "to-b")),
        (("a-to-to", "b"), ("a", "to-to-b")),
    ],
)
def test_no_two_rules_of_an_export_have_one_name(ways):
    policy = policy_of(proposed(*ways))
    assert len({rule.name for rule in policy.rules}) == len(ways)
    assert [rule.name for rule in read(write(policy)).rules] == [rule.name for rule in policy.rules]


def test_a_short_name_is_only_its_two_ends_and_a_long_one_keeps_its_beginning():
    assert rule_name("web", "db") == "web-to-db"
    assert rule_name(LONG, "db").startswith(LONG[:54] + "-")
    assert len(rule_name(LONG, LONG)) == 63


ENDS = st.lists(st.sampled_from(["a", "b", "-to", "-", "to", "-to-", "x" * 30]), min_size=1, max_size=5).map(
    "".join
)


@given(st.sets(st.tuples(ENDS, ENDS), max_size=30))
def test_names_of_rules_are_of_one_pair_each(ways):
    assert len({rule_name(*way) for way in ways}) == len(ways)
