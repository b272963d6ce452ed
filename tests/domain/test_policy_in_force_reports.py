"""What a host says of itself changes no renewal for others: it neither allows nor denies, takes no rule away
and fills no snapshot.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain import policy_compile
from aegisflux.domain.errors import OverLimit
from aegisflux.domain.net import parse_address
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_in_force import carried, compile_in_force
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.spans import Spans

ROLES = {"w1": "web", "w2": "web", "d1": "db", "d2": "db", "x1": "scratch", "x2": "scratch"}
HOSTS = {name: HostPlace({"role": role}, (f"10.0.{n}.1",)) for n, (name, role) in enumerate(ROLES.items(), 1)}
VICTIM = "10.0.3.1"  # of d1


def fleet(evil=(), says=(), labelled=("web", "db", "scratch"), more=(), hosts=HOSTS):
    """Services on the hosts of their role, by label or by report alone; the host evil has no label."""
    places = {}
    for number, name in enumerate(("web", "db", "scratch"), 1):
        own = tuple(host for host, place in hosts.items() if place.labels["role"] == name)
        reported = ((*own, *more) if name not in labelled else ()) + (("evil",) if name in says else ())
        every = tuple(sorted({*own, *reported}))
        places[name] = ServicePlace(number, every, 1, tuple(sorted(reported)))
    return Inventory(places, {**hosts, "evil": HostPlace({}, tuple(evil))})


def policy(*rules, **more):
    return Policy(policy=1, rules=rules, **{"services": ("web",), **more})


def deny(to="scratch", from_="web", ports=("any",)):
    return Rule(from_=from_, to=to, ports=ports, action="deny", name="no")


def allow(to="db", from_="web", ports=("tcp/5432",)):
    return Rule(from_=from_, to=to, ports=ports, name="yes")


def renewed(rules, before, after):
    """The policy planned with one inventory, then renewed with another."""
    planned = compile_policy(rules, before)["web"]
    found = carried("web", planned, compile_in_force(rules, after), after)
    return planned, found.snapshot, " ".join(found.notes)


WEB_DB = allow()
CLAIMS = {  # rules, and what the labels of the services are
    "over an allow of a CIDR": ((allow("10.0.3.0/24"), deny()), ("web", "db")),
    "over an allow of a service": ((WEB_DB, deny()), ("web", "db")),
    "of a service with labels": ((WEB_DB, deny()), ("web", "db", "scratch")),
    "on ports": ((WEB_DB, deny(ports=("tcp/1", "tcp/5432"))), ("web", "db")),
    "of ingress": ((allow("web", "10.0.0.0/16"), deny("web", "scratch")), ("web", "db")),
    "in a group's place": ((WEB_DB, deny("bad")), ("web", "db")),
    "among several": ((WEB_DB, deny(("scratch", "10.9.0.0/16"))), ("web", "db")),
}


@pytest.mark.parametrize("case", CLAIMS)
@pytest.mark.parametrize("addresses", [(VICTIM,), ("10.0.9.9",), (VICTIM, "10.0.4.1", "10.0.1.1")])
def test_a_report_denies_nobody_by_a_renewal(case, addresses):
    rules, labelled = CLAIMS[case]
    given = policy(*rules, groups={"bad": Group(labels={"role": "scratch"})})
    planned, after, said = renewed(given, fleet(labelled=labelled), fleet(addresses, ("scratch",), labelled))
    assert after == planned
    told = "host evil runs scratch by report alone and is not denied; give scratch host_labels"
    assert (told in said) == (case != "in a group's place")


@pytest.mark.parametrize("labelled", [("web", "db"), ("web", "db", "scratch")])
def test_a_plan_that_somebody_approves_may_deny_them(labelled):
    given = policy(WEB_DB, deny())
    inventory = fleet(("10.0.9.9",), ("scratch",), labelled)
    planned, after, said = renewed(given, inventory, inventory)
    assert "10.0.9.9/32" in {str(e.cidr) for e in ruleset(planned).deny}
    assert after == planned, "and a renewal keeps what was approved"
    assert "evil" in said


STAYS = {  # the target of a deny by report alone, as it is later: whether it is denied still
    "as it was": ({}, True),
    "another one reports": ({"more": ("evil",)}, True),
    "it is gone": ({"hosts": {name: place for name, place in HOSTS.items() if name != "x1"}}, False),
}


@pytest.mark.parametrize("case", STAYS)
def test_a_deny_does_not_lose_its_target(case):
    later, stays = STAYS[case]
    _, after, _ = renewed(
        policy(deny()), fleet(labelled=("web", "db")), fleet(labelled=("web", "db"), **later)
    )
    assert ("10.0.5.1/32" in {str(e.cidr) for e in ruleset(after).deny}) == stays


def test_who_gets_the_label_is_denied_by_a_renewal():
    few = {name: place for name, place in HOSTS.items() if name != "x2"}
    _, after, said = renewed(policy(deny()), fleet(hosts=few), fleet())
    assert {str(e.cidr) for e in ruleset(after).deny} == {"10.0.5.1/32", "10.0.6.1/32"}
    assert said == ""


ENDS = {
    "a label": "label:role=web",
    "hosts": ("host:w1", "host:w2"),
    "a group": "front",
    "a CIDR": "10.0.0.0/22",
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("labelled", [("web", "db", "scratch"), ("db", "scratch")])
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_a_report_takes_no_rule_from_a_service(end, labelled, action):
    """A rule by labels is a service's only where it holds all its hosts, and a report adds one."""
    rule = Rule(from_=ENDS[end], to="10.9.0.0/16", ports=("tcp/1",), action=action)
    given = policy(rule, WEB_DB, groups={"front": Group(hosts=("w1", "w2"))})
    if end == "hosts":  # one rule has to hold all of them by one end
        given = replace(given, rules=(replace(rule, from_="label:role=web"), WEB_DB))
    planned, after, said = renewed(
        given, fleet(labelled=labelled), fleet(("10.200.0.1",), ("web",), labelled)
    )
    assert {e.cidr for e in (*ruleset(planned).edges, *ruleset(planned).deny)}
    assert after == planned
    assert bool(said) == ("web" not in labelled)


def test_a_service_with_labels_still_gets_what_is_new_beside_a_report():
    few = {name: place for name, place in HOSTS.items() if name != "d2"}
    given = policy(allow("db", "label:role=web"))
    _, after, _ = renewed(given, fleet(hosts=few), fleet(("10.200.0.1",), ("web",)))
    assert {e.dst_cidr for e in after.edges} == {"10.0.3.1/32", "10.0.4.1/32"}


MANY = tuple(f"10.{100 + n // 128}.{n % 128 * 2}.4" for n in range(400))
FULL = {  # who fills a snapshot: the rules, and the other services' labels
    "a deny by report": ((WEB_DB, deny(ports=("tcp/1", "tcp/2"))), ("web", "db")),
    "a deny beside labels": ((WEB_DB, deny(ports=("tcp/1", "tcp/2"))), ("web", "db", "scratch")),
    "an allow by report": ((WEB_DB, allow("scratch", ports=("tcp/1", "tcp/2"))), ("web", "db")),
    "the whole fleet": ((WEB_DB, allow("fleet", ports=("tcp/1", "tcp/2"))), ("web", "db")),
}


@pytest.mark.parametrize("case", FULL)
def test_a_host_of_many_addresses_stops_no_other_rule(case, monkeypatch):
    monkeypatch.setattr(policy_compile, "MAX_ENTRIES", 100)
    rules, labelled = FULL[case]
    few = {name: place for name, place in HOSTS.items() if name != "d2"}
    before, later = fleet(labelled=labelled, hosts=few), fleet(MANY, ("scratch",), labelled)
    planned, after, said = renewed(policy(*rules), before, later)
    edges = {(str(e.cidr), e.port) for e in ruleset(after).edges}
    assert ("10.0.4.1/32", 5432) in edges, "the database that joined"
    assert {(e.cidr, e.port) for e in ruleset(planned).edges} <= {
        (e.cidr, e.port) for e in ruleset(after).edges
    }
    assert set(ruleset(planned).deny) == set(ruleset(after).deny)
    if case == "the whole fleet":
        assert "rule yes keeps the entries it has: " in said
        assert "over the limit entries: at most 100, got" in said
    with pytest.raises(OverLimit, match=r"rules\[1\]"):
        compile_policy(policy(*rules), later) if "deny" in case or "fleet" in case else _raise()


def _raise():
    raise OverLimit("entries", 100, 101, "rules[1]: an allow leaves them out")


@given(st.sets(st.sampled_from(["web", "db", "scratch"])), st.sets(st.sampled_from(["web", "db", "scratch"])),
       st.lists(st.sampled_from([p.addresses[0] for p in HOSTS.values()] + ["10.50.0.1"]), unique=True),
       st.integers(0, 3))  # fmt: skip
def test_no_report_changes_what_others_may_do(says, labelled, addresses, extra):
    """With and without the report of one host, each renewal lets the same addresses in and out."""
    given = policy(
        allow("10.0.3.0/24"), WEB_DB, deny(), deny("label:role=scratch", ports=("udp/1",)),
        allow("web", "label:role=db", ("tcp/80",)), extra_addresses=extra,
    )  # fmt: skip
    before = fleet(addresses, (), tuple(labelled))
    planned, quiet, _ = renewed(given, before, before)
    _, loud, _ = renewed(given, before, fleet(addresses, says, tuple(labelled)))
    assert reach(quiet) == reach(loud)
    assert reach(loud) == reach(planned)


def reach(snapshot):
    rules = ruleset(snapshot)
    every = {parse_address(text) for place in HOSTS.values() for text in place.addresses}
    every.add(parse_address("10.50.0.1"))
    lists = (("to", rules.edges), ("from", rules.ingress or ()), ("deny", rules.deny))
    return {
        (name, e.proto, e.port, address)
        for name, entries in lists
        for e in entries
        for address in every
        if Spans((e.cidr,)).has(address)
    }
