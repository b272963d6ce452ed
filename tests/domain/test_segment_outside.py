"""Callers outside of the fleet: few are exact addresses, many are anyone, and all are for review."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain.segment.export import policy_of
from aegisflux.domain.segment.mine import mine
from aegisflux.domain.segment.propose import Actor, Recorded, propose
from aegisflux.domain.segment.rules import ANYONE, PUBLIC_CLIENTS
from tests.support.windows import window

TCP = 6
SERVICES = ("bastion", "web", "web", "db")
BASTION, WEB, DB = (0,), (1, 2), (3,)
INSIDE = len(SERVICES)
ACTORS = (
    *(Actor(f"h{n}", service) for n, service in enumerate(SERVICES)),
    *(Actor(address=f"203.0.113.{n}") for n in range(40)),
)


def outside(*numbers):
    return tuple(INSIDE + n for n in numbers)


def flows(*calls):
    """(clients, servers, port, days)."""
    return window((clients, servers, (port,), days) for clients, servers, port, days in calls)


def proposed(*calls):
    return propose(Recorded(ACTORS, INSIDE, flows(*calls)))


def members(found):
    return {group.name: group.members for group in found.groups}


@pytest.mark.parametrize(
    ("callers", "days", "kind", "held"),
    [
        (1, 3, "outside", ""),
        (1, 2, "outside", "one_client_few_days"),
        (1, 1, "outside", "few_outside"),
        (2, 2, "outside", ""),
        (2, 1, "outside", "few_outside"),
        (PUBLIC_CLIENTS - 1, 5, "outside", ""),
        (PUBLIC_CLIENTS, 1, "public", "few_days"),
        (PUBLIC_CLIENTS, 2, "public", ""),
    ],
)
def test_few_outside_callers_are_exact_addresses_and_never_anyone(callers, days, kind, held):
    """An address is named that came back; of those that did not nothing is learned."""
    found = proposed((outside(*range(callers)), BASTION, 22, range(days)))
    (rule,) = found.rules
    assert (rule.kind, rule.held, rule.clients, rule.days) == (kind, held, callers, days)
    assert found.review == (rule,), "whatever comes from outside is for a person to look at"
    exact = kind == "outside" and held != "few_outside"
    assert (rule.client == "anyone") == (not exact)
    if exact:
        assert members(found)[rule.client] == tuple(f"203.0.113.{n}" for n in range(callers))


def test_the_exported_policy_names_the_address_alone():
    policy = policy_of(proposed((outside(7), BASTION, 22, range(3))))
    (rule,) = policy.rules
    assert (rule.to, policy.groups[rule.from_].cidrs) == ("bastion", ("203.0.113.7",))


def test_addresses_that_do_not_go_the_same_ways_are_groups_apart():
    found = proposed(
        (outside(1, 2), BASTION, 22, range(3)),
        (outside(2, 3), DB, 5432, range(3)),
        (outside(4), WEB, 1, (0,)),
    )
    said = {(members(found).get(r.client, "anyone"), r.server, r.port) for r in found.rules if not r.held}
    one, two, three = (f"203.0.113.{n}" for n in (1, 2, 3))
    assert said == {
        ((one,), "bastion", 22),
        ((two,), "bastion", 22),
        ((two,), "db", 5432),
        ((three,), "db", 5432),
    }
    assert found.unseen == 0.0
    (advice,) = [line for line in found.advice if "outside" in line]
    assert advice.startswith("1 ways are called by few addresses outside of the fleet")


def test_what_is_public_is_one_rule_although_some_callers_have_names():
    """An address that may use the bastion is one of the world where the world may call."""
    found = proposed((outside(*range(30)), WEB, 443, range(3)), (outside(5), BASTION, 22, range(3)))
    assert [(r.client, r.server, r.clients, r.kind) for r in found.rules if r.port == 443] == [
        ("anyone", "web", 30, "public")
    ]
    assert (found.coverage, found.unseen) == (1.0, 0.0)


def test_what_a_named_address_did_not_use_is_said():
    """It called one of two: half of what its rule allows."""
    found = proposed((outside(1), WEB[:1], 8080, range(3)))
    assert found.unseen == pytest.approx(1 / 2)


def test_a_server_outside_that_calls_as_well_is_apart_from_those_that_do_not():
    partners = outside(1, 2, 3)
    calls = ((WEB, partners, 443, range(3)), (partners[:1], WEB, 8080, range(3)))
    groups = mine(flows(*calls), INSIDE, len(ACTORS)).groups
    assert groups[partners[1]] == groups[partners[2]] != groups[partners[0]]
    found = proposed(*calls)
    (rule,) = [rule for rule in found.rules if rule.port == 8080]
    assert members(found)[rule.client] == ("203.0.113.1",)
    assert found.unseen == 0.0


def fleet(hosts, *calls):
    """Hosts of which each calls the next, and what else is called; 30 addresses outside."""
    ring = [((n,), ((n + 1) % hosts,), 5000 + n, range(5)) for n in range(hosts)]
    return mine(flows(*ring, *calls), hosts, hosts + 30)


@pytest.mark.parametrize("callers", [1, 2, 25])
def test_who_visits_the_fleet_from_outside_is_named_and_nobody_else_may(callers):
    """A monitoring service of somebody else: a core service that is no host of ours."""
    visitors = range(8, 8 + callers)
    found = fleet(8, (visitors, range(8), 9100, range(3)))
    assert [one.actors for one in found.core] == [tuple(visitors)]
    (rule,) = [rule for rule in found.rules if rule.port == 9100]
    assert (rule.kind, rule.client == ANYONE, rule.clients) == ("core", False, callers)
    assert np.nonzero(found.groups == rule.client)[0].tolist() == list(visitors)


def test_a_visitor_that_sees_each_host_once_is_named_too():
    """It touches enough of the fleet over three days, and no host twice."""
    found = fleet(9, *(((9,), (n,), 9100, (n % 3,)) for n in range(9)))
    (rule,) = [rule for rule in found.rules if rule.port == 9100]
    assert np.nonzero(found.groups == rule.client)[0].tolist() == [9]


def test_what_the_fleet_shares_and_the_world_calls_is_a_rule_for_each():
    """A shared service lets in the fleet alone; its callers outside need a rule of their own."""
    found = fleet(8, (range(8), (0,), 443, range(3)), (range(8, 33), (0,), 443, range(3)))
    assert {(r.kind, r.clients, r.held) for r in found.rules if r.port == 443} == {
        ("core", 7, ""),
        ("public", 25, ""),
    }


def test_what_each_of_some_servers_outside_called_once_is_nobodys_habit():
    """They are one group as servers; what one called today and another tomorrow is not what they all do."""
    partners = outside(1, 2, 3)
    found = proposed(
        (WEB, partners, 443, range(3)), (partners[:1], DB, 22, (0,)), (partners[1:2], DB, 22, (1,))
    )
    (rule,) = [rule for rule in found.rules if rule.port == 22]
    assert (rule.client, rule.held, rule.clients) == ("anyone", "few_outside", 2)


def test_an_address_comes_back_to_a_service_not_to_one_of_its_hosts():
    """What spreads its calls sends each to another host."""
    found = proposed(*((outside(1), (WEB[day % 2],), 8080, (day,)) for day in range(3)))
    (rule,) = found.rules
    assert (members(found)[rule.client], rule.held, rule.days) == (("203.0.113.1",), "", 3)


INNER = st.lists(st.integers(0, INSIDE - 1), min_size=1, max_size=INSIDE, unique=True)
OUTER = st.lists(st.integers(INSIDE, INSIDE + 29), min_size=1, max_size=25, unique=True)
ENDS = st.one_of(st.tuples(OUTER, INNER), st.tuples(OUTER, INNER), st.tuples(INNER, OUTER))
DAYS = st.sets(st.integers(0, 4), min_size=1).map(sorted)
CALLS = st.lists(
    st.tuples(ENDS, st.sampled_from((22, 443)), DAYS).map(lambda one: (*one[0], *one[1:])), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(CALLS, st.sampled_from(((-1,) * 4, (0, 1, 1, 2))))
def test_no_address_is_let_in_that_did_not_call_where_fewer_did_than_make_the_world(calls, labels):
    window = flows(*calls)
    found = mine(window, INSIDE, INSIDE + 30, np.array(labels, np.int32))
    called = defaultdict(set)
    for client, server, port in zip(window.client, window.server, window.port, strict=True):
        called[int(found.groups[server]), int(port)].add(int(client))
    ways = np.array(list(product(range(INSIDE, INSIDE + 30), range(INSIDE), (TCP,), (22, 443))), np.int32)
    for client, server, _, port in ways[found.allows(*ways.T)].tolist():
        callers = called[int(found.groups[server]), port]
        assert client in callers or len(callers) >= PUBLIC_CLIENTS
    assert not [r for r in found.proposed if r.client == ANYONE and r.kind != "public"]
