"""Mining as a whole: what is learned, what is held back and why, and that a window may be tiny."""

import numpy as np
import pytest

from aegisflux.domain.segment.flows import HOURS, Flows
from aegisflux.domain.segment.mine import mine
from aegisflux.domain.segment.rules import ANYONE, FLEET

TCP, UDP = 6, 17
LB, WEB, DB, DNS, HOSTS = (0, 1), (2, 3, 4), (5, 6), (7,), 8
OUTSIDE = range(HOSTS, HOSTS + 30)


def flows(*calls):
    """(clients, servers, port, days); DNS over UDP."""
    rows = [
        (day * HOURS, client, server, UDP if port == 53 else TCP, port, 1, -1)
        for clients, servers, port, days in calls
        for client in clients
        for server in servers
        for day in days
        if client != server
    ]
    return Flows(*(np.array(c, np.int32) for c in zip(*rows, strict=True)))


WEEK = range(5)
USUAL = ((LB, WEB, 8080, WEEK), (WEB, DB, 5432, WEEK), (OUTSIDE, LB, 443, WEEK), (range(7), DNS, 53, WEEK))


def found(*more):
    return mine(flows(*USUAL, *more), HOSTS, HOSTS + len(OUTSIDE))


def rule_for(result, client, server, port):
    ends = [end if end < 0 else int(result.groups[end]) for end in (client, server)]
    return [r for r in result.rules if [r.client, r.server, r.port] == [*ends, port]]


def test_an_application_is_learned_with_its_support():
    result = found()
    assert len(set(result.groups[:HOSTS].tolist())) == 4
    assert not any(rule.held for rule in result.rules)
    (rule,) = rule_for(result, WEB[0], DB[0], 5432)
    assert (rule.kind, rule.clients, rule.servers, rule.days, rule.records) == ("learned", 3, 2, 5, 30)
    (rule,) = rule_for(result, ANYONE, LB[0], 443)
    assert (rule.kind, rule.clients) == ("public", 30)
    (rule,) = rule_for(result, FLEET, DNS[0], 53)
    assert (rule.kind, rule.clients, rule.servers) == ("core", 7, 1)


@pytest.mark.parametrize(
    ("clients", "days", "held"),
    [
        ((2,), (1,), "one_client_few_days"),
        ((2,), (0, 3), "one_client_few_days"),
        ((2,), (0, 1, 3), ""),
        ((2, 3), (1,), "few_days"),
        ((2, 3), (1, 2), ""),
    ],
)
def test_what_is_seen_seldom_is_held_back_and_says_why(clients, days, held):
    result = found((clients, DB[:1], 9999, days))
    (rule,) = rule_for(result, clients[0], DB[0], 9999)
    assert rule.held == held
    ends = (np.array([number], np.int32) for number in (2, 5, TCP, 9999))
    assert result.allows(*ends).tolist() == [held == ""]


def test_nothing_seen_proposes_nothing():
    none = np.empty(0, np.int32)
    result = mine(Flows(*[none] * 7), 3, 5)
    assert (result.rules, result.core, result.wide) == ((), (), ())
    assert result.groups.tolist() == [0, 1, 2, ANYONE, ANYONE]


def test_one_day_proposes_nothing():
    result = mine(flows((LB, WEB, 8080, (0,)), (WEB, DB, 5432, (0,))), HOSTS, HOSTS)
    assert result.proposed == ()
    assert {rule.held for rule in result.rules} <= {"few_days", "one_client_few_days"}


def fleet_with(client, ports, days):
    """60 hosts in 20 pairs of callers and called; then one host calls a host of each pair."""
    pairs = [((3 * n, 3 * n + 1), (3 * n + 2,), 1000 + n, WEEK) for n in range(20)]
    more = [((client,), (3 * n + 2,), port, days) for n in range(20) for port in ports]
    return mine(flows(*pairs, *[c for c in more if c[0] != c[1]]), 60, 60)


@pytest.mark.parametrize("days", [(1,), WEEK], ids=["scanner", "patient"])
def test_who_calls_everything_is_named_and_teaches_nothing_of_its_own(days):
    result = fleet_with(0, (22, 445, 3389), days)
    assert result.wide == (0,)
    own = [rule for rule in result.rules if rule.port in (22, 445, 3389)]
    assert own
    assert {rule.held for rule in own} <= {"wide_host", "one_client_few_days"}
    assert result.groups[0] == result.groups[1], "it still plays its role"
    (rule,) = [r for r in result.rules if r.port == 1000]
    assert (rule.held, rule.clients) == ("", 2), "what others of its role do too is learned"
