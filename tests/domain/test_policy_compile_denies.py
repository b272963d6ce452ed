"""A deny is written whole or refused: no flow that it names goes through where the policy governs an end."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain.errors import Invalid
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import parse_address
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.verdict import judge

AT = {
    "w1": "10.0.0.1", "w2": "10.0.0.2", "d1": "10.0.1.1", "d2": "10.0.1.2", "c1": "10.0.2.1",
    "spare": "10.0.9.1", "near": "10.0.0.77", "far": "203.0.113.7",
}  # fmt: skip
OWNER = {"w1": "web", "w2": "web", "d1": "db", "d2": "db", "c1": "cron"}
HOSTS = {name: HostPlace({}, (at,)) for name, at in AT.items() if name not in ("near", "far")}
PLACES = {
    name: ServicePlace(n, tuple(host for host, service in OWNER.items() if service == name))
    for n, name in enumerate(("web", "db", "cron"))
}
FLEET = Inventory(PLACES, HOSTS)
GROUPS = {
    "rest": Group(hosts=("w1", "w2"), unregistered=True),
    "mixed": Group(hosts=("w1", "w2", "d1")),
    "servers": Group(hosts=("d1", "d2"), cidrs=("10.0.0.2",)),
    "empty": Group(labels={"no": "host"}),
}
INSIDE = {
    "web": {"w1", "w2"},
    "db": {"d1", "d2"},
    "cron": {"c1"},
    "fleet": set(HOSTS),
    "anyone": {"near", "far"},
    "host:w1": {"w1"},
    "host:d1": {"d1"},
    "host:spare": {"spare"},
    "10.0.0.0/24": {"w1", "w2", "near"},
    "10.0.1.2": {"d2"},
    "10.0.1.1/32": {"d1"},
    "203.0.113.0/24": {"far"},
    "rest": {"w1", "w2"},
    "mixed": {"w1", "w2", "d1"},
    "servers": {"d1", "d2", "w2"},
    "empty": set(),
}
ends = st.lists(st.sampled_from(sorted(INSIDE)), min_size=1, max_size=2, unique=True).map(tuple)


def rule(from_, to, action="deny", **more):
    return Rule(from_=from_, to=to, ports=("tcp/5432",), action=action, **more)


def policy(*rules, services=("web", "db")):
    return Policy(policy=1, rules=rules, services=services, groups=GROUPS)


def held(end):
    """The governed services that an end holds whole; what runs beside services holds none."""
    if end in PLACES:
        return {end} & {"web", "db"}
    own = set() if end == "rest" else INSIDE[end]
    return {name for name in ("web", "db") if set(PLACES[name].hosts) <= own}


def in_part(end, at, of):
    return end != "rest" and end not in PLACES and OWNER.get(at) in {"web", "db"} - of


def refused(one):
    """By pairs of places: a pair that neither end says, and in which a governed service is."""
    callers, called = (set().union(*map(held, side)) for side in (one.from_, one.to))
    for client, server in product(one.from_, one.to):
        for here, there in product(INSIDE[client], INSIDE[server]):
            said_here = client != "rest" and OWNER.get(here) in callers
            said_there = server != "rest" and OWNER.get(there) in called
            parts = in_part(client, here, callers) or in_part(server, there, called)
            if parts and not said_here and not said_there:
                return True
    both = (any(INSIDE[end] for end in side) for side in (one.from_, one.to))
    return all(both) and not callers and not called


@settings(max_examples=400)
@given(ends, ends)
def test_a_deny_is_refused_where_neither_end_can_say_it_and_only_there(from_, to):
    one = rule(from_, to)
    try:
        compile_policy(policy(one), FLEET)
    except Invalid:
        assert refused(one)
    else:
        assert not refused(one)


@settings(max_examples=200)
@given(ends, ends)
def test_no_flow_that_a_deny_names_goes_through_both_ends(from_, to):
    """Everything is allowed beside it: what is blocked, the deny blocks."""
    world = ("0.0.0.0/0", "::/0")
    opens = (rule(("web", "db"), world, "allow"), rule(world, ("web", "db"), "allow"))
    try:
        found = {
            name: ruleset(one) for name, one in compile_policy(policy(*opens, rule(from_, to)), FLEET).items()
        }
    except Invalid:
        return
    governs = [at for at in AT if OWNER.get(at) in found]
    for client, server in product(from_, to):
        for here, there in product(INSIDE[client], INSIDE[server]):
            if here == there or "rest" in (client, server) or {here, there}.isdisjoint(governs):
                continue
            judged = [
                judge(
                    found[OWNER[own]], Flow(way, 6, parse_address(AT[peer]), 5432), Host(failsafe=())
                ).action
                for way, own, peer in (("egress", here, there), ("ingress", there, here))
                if own in governs
            ]
            assert "deny" in judged, (here, there)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (
            rule("host:w1", "host:d1", name="no-admin"),
            r"not the part that is host:w1: name web, or make a service of those hosts, got \"no-admin: host",
        ),
        (rule("host:w1", "host:d1"), r"rules\[0\]: expected all of web for a deny"),
        (rule("10.0.0.1", "10.0.1.1"), "not the part that is 10.0.0.1: name web"),
        (rule("203.0.113.0/24", "host:d2"), "expected all of db for a deny, not the part that is host:d2"),
        (
            rule("host:spare", "203.0.113.7"),
            r"rules\[0\]: expected a deny with a governed service at one end: name one, or take it out",
        ),
    ],
)
def test_what_a_deny_cannot_say_is_refused_with_what_to_do(one, words):
    with pytest.raises(Invalid, match=words):
        compile_policy(policy(one), FLEET)


def test_a_deny_of_nobody_says_nothing_now_and_is_no_fault():
    assert compile_policy(policy(rule("empty", "host:d1")), FLEET)["db"].deny == ()


def test_a_part_of_a_service_is_refused_by_the_whole_one_that_it_calls():
    found = compile_policy(policy(rule("web", "db", "allow"), rule("host:w1", "db")), FLEET)
    assert [(deny.cidr, deny.direction) for deny in found["db"].deny] == [("10.0.0.1/32", "ingress")]
    assert found["web"].deny == ()
