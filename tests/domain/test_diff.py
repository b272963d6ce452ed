"""The semantic diff is exact: each witness flips, whatever is in a change flips, and nothing else does."""

import random

import pytest
from hypothesis import given, settings

from aegisflux.domain.diff import EVERY, UNNAMED, diff, named_ports
from aegisflux.domain.flow import FailsafeRule, Host
from aegisflux.domain.net import Address, parse_cidr
from aegisflux.domain.snapshot import Entry, Ruleset
from aegisflux.domain.verdict import judge
from tests.support.snapshots import random_entry, random_flow, random_ruleset, seeds

HOSTS = (
    Host(),
    Host(addresses=frozenset({Address(4, 0x0A010203)}), failsafe=()),
    Host(
        failsafe=(
            FailsafeRule("egress", "udp", 53, parse_cidr("10.0.0.0/9")),
            FailsafeRule("ingress", "any", 0),
        )
    ),
)


def neighbour(rng, rules):
    """Another one that differs in little, or in all, or none."""
    chance = rng.random()
    if chance < 0.1:
        return None
    if chance < 0.3:
        return random_ruleset(rng)
    edges = {e for e in rules.edges if rng.random() < 0.8} | {
        random_entry(rng) for _ in range(rng.randint(0, 2))
    }
    return Ruleset(
        rules.service_id,
        rules.version + 1,
        tuple(sorted(edges)),
        rules.peers,
        rules.ingress,
        rules.deny,
        rng.choice((rules.mode, "enforce", "observe")),
        rules.on_expiry,
        rules.established,
    )


@settings(max_examples=150, deadline=None)
@given(seeds)
def test_what_flips_is_told_and_nothing_else(seed):
    rng = random.Random(seed)
    old = random_ruleset(rng)
    new, host = neighbour(rng, old), rng.choice(HOSTS)
    changes, named = diff(old, new, host), named_ports(old, new, host=host)
    for change in changes:
        words = judge(old, change.witness, host).word, judge(new, change.witness, host).word
        assert words == (change.before, change.after), change
        assert change.before != change.after
        assert change.holds(change.witness, named)
    for _ in range(40):
        flow = random_flow(rng, rng.choice([r for r in (old, new) if r is not None]))
        if flow.local or flow.malformed:
            continue
        words = judge(old, flow, host).word, judge(new, flow, host).word
        told = [(c.before, c.after) for c in changes if c.holds(flow, named)]
        assert told == ([words] if words[0] != words[1] else []), (old, new, flow)


@given(seeds)
def test_the_same_meaning_is_no_change(seed):
    """An entry inside of another changes nothing, nor does a new version."""
    rules = random_ruleset(random.Random(seed))
    doubled = [Entry(e.cidr, e.proto, e.port, e.direction) for e in rules.edges]
    inner = [
        Entry(e.cidr._replace(plen=e.cidr.plen + 1), e.proto, e.port, e.direction)
        for e in rules.edges
        if e.cidr.plen < e.cidr.bits
    ]
    other = Ruleset(
        rules.service_id,
        rules.version + 1,
        tuple(sorted({*doubled, *inner})),
        rules.peers,
        rules.ingress,
        rules.deny,
        rules.mode,
        rules.on_expiry,
        rules.established,
    )
    assert diff(rules, other) == ()


def entries(*texts):
    found = []
    for text in texts:
        cidr, service = text.split()
        proto, port = service.split("/")
        found.append(Entry(parse_cidr(cidr), proto, 0 if port == "*" else int(port)))
    return tuple(sorted(found))


def rules(*edges, ingress=None, mode="enforce"):
    return Ruleset(1, 1, entries(*edges), (), ingress, (), mode, "open", "cut")


def told(old, new):
    return [
        (c.direction, c.proto, c.port, c.before, c.after, [str(cidr) for cidr in c.cidrs])
        for c in diff(old, new, Host(failsafe=()))
    ]


def test_a_port_more_is_one_change():
    assert told(rules("10.0.0.0/24 tcp/443"), rules("10.0.0.0/24 tcp/443", "10.0.0.0/25 tcp/5432")) == [
        ("egress", "tcp", 5432, "blocked", "allowed", ["10.0.0.0/25"])
    ]


def test_a_port_taken_from_many_is_that_port():
    assert told(rules("10.0.0.0/24 tcp/*"), rules("10.0.0.0/24 tcp/443")) == [
        ("egress", "tcp", UNNAMED, "allowed", "blocked", ["10.0.0.0/24"])
    ]


def test_enforcing_what_was_observed_names_all_that_it_will_block():
    changes = told(rules("10.0.0.0/8 any/*", mode="observe"), rules("10.0.0.0/8 any/*"))
    assert {c[:5] for c in changes} == {("egress", "any", EVERY, "would block", "blocked")}


@pytest.mark.parametrize("side", [0, 1])
def test_no_snapshot_governs_nothing(side):
    pair = [None, rules("0.0.0.0/0 any/*", "::/0 any/*")]
    assert told(pair[side], pair[1 - side]) == []
