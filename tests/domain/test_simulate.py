"""The simulator of a fleet against `verdict.judge`, flow for flow."""

import random

import numpy as np
import pytest
from hypothesis import given, settings

from aegisflux.domain import simulate
from aegisflux.domain.compile import compile_tables
from aegisflux.domain.flow import FailsafeRule, Host
from aegisflux.domain.net import Address, parse_cidr
from aegisflux.domain.simulate import Fleet, Initiations, Policy
from aegisflux.domain.tables import EGRESS, INGRESS
from aegisflux.domain.verdict import REASONS, judge
from tests.support.snapshots import random_flow, random_ruleset, seeds

HOSTS = (
    Host(addresses=frozenset({Address(4, 0x0A090909), Address(6, (0x20010DB8 << 96) + 9)})),
    Host(
        failsafe=(
            FailsafeRule("egress", "udp", 53, parse_cidr("10.0.0.0/8")),
            FailsafeRule("ingress", "any", 0),
        )
    ),
    Host(failsafe=(FailsafeRule("egress", "any", 0, cgroup="system.slice/backup.service"),)),
    Host(expired=True),
)


def columns(rows):
    """(policy, host, flow) as columns."""
    values = [
        (
            policy,
            host,
            EGRESS if flow.direction == "egress" else INGRESS,
            flow.proto,
            flow.peer.family,
            flow.peer.value >> 64,
            flow.peer.value & (1 << 64) - 1,
            -1 if flow.port is None else flow.port,
            live,
            flow.local,
        )
        for policy, host, flow, live in rows
    ]
    types = (*[np.int64] * 5, np.uint64, np.uint64, np.int64, bool, bool)
    return Initiations(*(np.array([v[i] for v in values], dtype) for i, dtype in enumerate(types)))


@pytest.fixture(scope="module", autouse=True)
def blocks():
    """More rows than a block has, in most examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "BLOCK", 16)
        yield


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_it_agrees_with_the_oracle_on_every_flow(seed):
    rng = random.Random(seed)
    rules = [random_ruleset(rng) for _ in range(rng.randint(0, 5))]
    fleet = Fleet([Policy(compile_tables(r), r) for r in rules], HOSTS)
    rows = []
    for _ in range(40):
        policy = rng.randint(-1, len(rules) - 1)
        base = rules[policy] if policy >= 0 else random_ruleset(rng)
        rows.append((policy, rng.randrange(len(HOSTS)), random_flow(rng, base), rng.random() < 0.2))
    flows = columns(rows)
    found = fleet.judge(flows)
    for row, (policy, host, _, _) in enumerate(rows):
        flow = flows.flow(row)
        verdict = judge(rules[policy] if policy >= 0 else None, flow, HOSTS[host])
        said = (REASONS[found.reason[row]], bool(found.allowed[row]), bool(found.blocks[row]))
        assert said == (verdict.reason, verdict.action == "allow", verdict.blocks), (rules[policy], flow)


def test_no_flows_are_no_error():
    assert [len(column) for column in Fleet([], HOSTS).judge(columns([]))] == [0, 0, 0]
