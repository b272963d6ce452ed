"""A proposal in words: names, evidence, what is for review, who is left out, and what to do next."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain.segment.fleets import Plan, make
from aegisflux.domain.segment.flows import HOURS, Flows
from aegisflux.domain.segment.propose import Actor, Recorded, propose

TCP = 6
FLEET = tuple(
    Actor(host, service)
    for service, hosts in (("lb", "ab"), ("web", "cde"), ("db", "fg"), ("", "h"))
    for host in hosts
)
OUTSIDE = tuple(Actor(address=f"203.0.113.{n}") for n in range(25))
LB, WEB, DB, OTHER, WORLD = (0, 1), (2, 3, 4), (5, 6), (7,), range(8, 33)
PROGRAMS = ("/usr/sbin/nginx", "/usr/bin/node", "/usr/bin/psql")


def recorded(*calls, days=range(5)):
    """(clients, servers, port, program)."""
    rows = [
        (day * HOURS, client, server, TCP, port, 2, program)
        for clients, servers, port, program in calls
        for client in clients
        for server in servers
        for day in days
    ]
    columns = zip(*rows, strict=True) if rows else [()] * 7
    return Recorded(
        (*FLEET, *OUTSIDE), len(FLEET), Flows(*(np.array(c, np.int32) for c in columns)), PROGRAMS
    )


SHOP = ((WORLD, LB, 443, -1), (LB, WEB, 8080, 0), (WEB, DB, 5432, 1))


def test_services_are_the_groups_and_rules_say_what_they_rest_on():
    found = propose(recorded(*SHOP, ((2,), DB[:1], 5432, 2)))
    assert [(group.name, group.members) for group in found.groups] == [
        ("lb", ("lb@a", "lb@b")),
        ("web", ("web@c", "web@d", "web@e")),
        ("db", ("db@f", "db@g")),
        ("role-1", ("h",)),
    ]
    said = {(r.client, r.server, r.port, r.kind, r.held): r for r in found.rules}
    assert set(said) == {
        ("anyone", "lb", 443, "public", ""),
        ("lb", "web", 8080, "learned", ""),
        ("web", "db", 5432, "learned", ""),
    }
    rule = said["web", "db", 5432, "learned", ""]
    assert (rule.clients, rule.servers, rule.days, rule.connections) == (3, 2, 5, 70)
    assert rule.confidence == round(6 / 7, 4)
    assert rule.programs == ("/usr/bin/node", "/usr/bin/psql")
    assert found.review == (said["anyone", "lb", 443, "public", ""],)
    assert (found.coverage, found.unseen, found.advice) == (1.0, 0.0, ())
    assert found.blast_radius == {"lb": 7, "web": 5, "db": 2, "role-1": 1}
    assert found.blast_radius_before == 8
    assert found.segmentedness == 1 - 2 / 12


def test_what_is_allowed_and_was_never_used_is_said():
    """The third web host called one database alone: a sixth of what the rule allows."""
    found = propose(recorded(((2, 3), DB, 5432, 1), ((4,), DB[:1], 5432, 1)))
    assert found.unseen == pytest.approx(1 / 6)


def test_a_suspicious_host_teaches_nothing_and_is_named():
    found = propose(recorded(*SHOP, ((2, 3), OTHER, 22, -1)), suspicious={"c"})
    (rule,) = [rule for rule in found.rules if rule.port == 22]
    assert (rule.clients, found.left_out) == (1, {"web@c": "marked as suspicious"})


def test_what_went_to_a_suspicious_host_is_not_learned_either():
    found = propose(recorded(*SHOP, (WEB, OTHER, 9999, 1)), suspicious={"h"})
    assert (9999 in {rule.port for rule in found.rules}, set(found.left_out)) == (False, {"h"})


def test_a_group_keeps_its_name():
    before = {"batch": frozenset({"h", "web@gone"}), "role-1": frozenset({"x"})}
    names = [group.name for group in propose(recorded(*SHOP), names_before=before).groups]
    assert names == ["lb", "web", "db", "batch"]


@pytest.mark.parametrize(
    ("days", "advice"),
    [
        (range(0), "no flows were recorded in this window: check that its hosts tell telemetry"),
        (range(1), "flows of 1 day say nothing of habits: learn for 2 days more"),
    ],
)
def test_little_is_no_proposal_and_says_what_to_do(days, advice):
    found = propose(recorded(*SHOP, days=days))
    assert found.advice == (advice,)
    assert [rule for rule in found.rules if not rule.held] == []
    assert found.coverage == 0.0


def test_days_without_a_record_are_neither_evidence_nor_doubt():
    """A clock that was set, or a host that was off: what was seen on four days was seen on four days."""
    gap, whole = (propose(recorded(*SHOP, days=days)) for days in ((0, 1, 5, 6), range(4)))
    assert (gap.rules, gap.groups, gap.coverage) == (whole.rules, whole.groups, whole.coverage)
    assert {rule.days for rule in gap.rules} == {4}


def test_what_was_seen_too_seldom_is_counted():
    found = propose(recorded(*SHOP, (OTHER, DB, 22, -1), days=range(2)))
    assert found.advice == (
        "1 ways were seen too seldom to be proposed: learn longer, or add them by hand",
        "a forecast needs flows of 5 days: learn for 3 more",
    )


@pytest.mark.parametrize(
    ("seconds", "advice"),
    [
        (86_400, ()),
        (86_399, ("a period of 86399 s stands for a day: only for demonstrations",)),
        (10, ("a period of 10 s stands for a day: only for demonstrations",)),
    ],
)
def test_a_period_shorter_than_a_day_is_said_first(seconds, advice):
    assert propose(recorded(*SHOP), period_seconds=seconds).advice == advice
    assert propose(recorded(*SHOP, days=range(2)), period_seconds=seconds).advice[:-1] == advice


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_the_same_flows_in_another_order_are_the_same_proposal(seed):
    fleet = make(Plan(hosts=40, roles=20, records=4000, world=30, partners=4), seed)
    actors = tuple(
        Actor(f"h{n}") if n < fleet.hosts else Actor(address=f"198.51.100.{n - fleet.hosts}")
        for n in range(len(fleet.role))
    )
    shuffled = np.random.default_rng(seed).permutation(len(fleet.window))
    one, two = (
        propose(Recorded(actors, fleet.hosts, flows, tuple(f"p{n}" for n in range(len(fleet.links)))))
        for flows in (fleet.window, fleet.window.where(shuffled))
    )
    assert one == two
    assert 0.9 < one.coverage <= 1
    assert 0 <= one.unseen < 1
