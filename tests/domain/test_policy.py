"""A policy means what it says: both ends of each rule, by the inventory of the moment, and nothing else."""

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.errors import Invalid, NotFound
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import parse_address
from aegisflux.domain.policy import Expectation, Group, Policy, Rule, ends_of, parse_port
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_lint import lint
from aegisflux.domain.policy_tests import outcome
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.verdict import judge

HOSTS = {
    "w1": HostPlace({"env": "prod"}, ("10.0.0.1", "2001:db8::1")),
    "w2": HostPlace({"env": "prod"}, ("10.0.0.2",)),
    "d1": HostPlace({"env": "prod", "tier": "data"}, ("10.0.1.1",)),
    "d2": HostPlace({"env": "test", "tier": "data"}, ("10.0.1.2",)),
    "spare": HostPlace({}, ("10.0.9.1",)),
}
FLEET = Inventory(
    {
        "web": ServicePlace(101, ("w1", "w2"), 3),
        "db": ServicePlace(102, ("d1", "d2")),
        "idle": ServicePlace(103),
    },
    HOSTS,
)


def rule(from_, to, *ports, **more):
    return Rule(from_=from_, to=to, ports=ports or ("tcp/5432",), **more)


def policy(*rules, **more):
    return Policy(policy=1, rules=rules, **more)


def peers(entries):
    return sorted(
        f"{next(v for n, v in vars_of(e).items() if 'cidr' in n)} {e.proto}/{e.port}" for e in entries
    )


def vars_of(entry):
    return {name: getattr(entry, name) for name in entry.__struct_fields__}


def test_a_rule_is_said_at_both_of_its_ends_and_nowhere_else():
    found = compile_policy(policy(rule("web", "db")), FLEET)
    assert sorted(found) == ["db", "web"]
    assert peers(found["web"].edges) == ["10.0.1.1/32 tcp/5432", "10.0.1.2/32 tcp/5432"]
    assert found["web"].ingress == ()
    assert peers(found["db"].ingress) == [
        "10.0.0.1/32 tcp/5432",
        "10.0.0.2/32 tcp/5432",
        "2001:db8::1/128 tcp/5432",
    ]
    assert found["db"].edges == ()
    assert (found["web"].version, found["web"].service_id) == (3, 101)


def test_every_kind_of_end():
    groups = {"office": Group(cidrs=("192.0.2.0/24", "203.0.113.7")), "data": Group(labels={"tier": "data"})}
    given = policy(
        rule("office", "web", "tcp/443"),
        rule(("host:spare", "198.51.100.9"), "web", "udp/53", "any/9"),
        rule("web", "label:tier=data", "tcp"),
        rule("fleet", "data", "tcp/9100"),
        rule("web", "anyone", "tcp/443"),
        groups=groups,
    )
    found = compile_policy(given, FLEET)
    assert peers(found["web"].ingress) == [
        "10.0.9.1/32 any/9",
        "10.0.9.1/32 udp/53",
        "192.0.2.0/24 tcp/443",
        "198.51.100.9/32 any/9",
        "198.51.100.9/32 udp/53",
        "203.0.113.7/32 tcp/443",
    ]
    edges = ruleset(found["web"])
    for peer, port, word in (
        ("10.0.1.2", 1, "allow"),
        ("10.0.1.2", 9100, "allow"),
        ("10.0.9.1", 443, "deny"),
        ("203.0.113.200", 443, "allow"),
        ("2001:db8::2", 443, "allow"),
        ("2001:db8::1", 443, "deny"),
    ):
        flow = Flow("egress", 6, parse_address(peer), port)
        assert judge(edges, flow, Host()).action == word, (peer, port)
    assert "db" not in found  # no rule names it
    assert "db" in compile_policy(replace(given, services=("db",)), FLEET)


def test_what_runs_beside_the_services_of_a_host_is_none_of_them():
    given = policy(rule("rest", "db", "tcp/9"), groups={"rest": Group(hosts=("w1", "w2"), unregistered=True)})
    found = compile_policy(replace(given, services=("web", "db")), FLEET)
    assert found["web"].edges == ()
    assert peers(found["db"].ingress)[0] == "10.0.0.1/32 tcp/9"
    as_hosts = replace(given, groups={"rest": Group(hosts=("w1", "w2"))}, services=("web", "db"))
    assert peers(compile_policy(as_hosts, FLEET)["web"].edges) == ["10.0.1.1/32 tcp/9", "10.0.1.2/32 tcp/9"]


def test_a_rule_of_a_service_is_not_that_of_another_one_on_its_hosts():
    inventory = Inventory({**FLEET.services, "sidecar": ServicePlace(104, ("w1",))}, HOSTS)
    given = policy(rule("web", "db"), services=("web", "db", "sidecar"))
    found = compile_policy(given, inventory)
    assert (found["sidecar"].edges, len(found["web"].edges)) == ((), 2)


def test_a_deny_beats_an_allow_at_both_ends():
    given = policy(rule("web", "db"), rule("web", "host:d2", "tcp/5432", action="deny"))
    found = compile_policy(given, FLEET)
    assert [(d.cidr, d.direction) for d in found["web"].deny] == [("10.0.1.2/32", "egress")]
    assert found["db"].deny == ()  # d2 is not all of db: the deny holds at its other end


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (
            policy(rule("wbe", "db")),
            NotFound,
            r"rules\[0\].from: no service, group or kind of end is named 'wbe'",
        ),
        (policy(rule("web", "host:x")), NotFound, r"rules\[0\].to: host 'x' is not enrolled"),
        (
            policy(rule("web", "db"), services=("nope",)),
            NotFound,
            r"services\[0\]: no service is named 'nope'",
        ),
        (policy(groups={"web": Group()}), Invalid, r"groups.web: expected a name that no registered service"),
    ],
)
def test_a_name_that_nobody_has_is_refused_by_its_rule(given, kind, words):
    with pytest.raises(kind, match=words):
        compile_policy(given, FLEET)


@pytest.mark.parametrize("text", ["tcp/0", "tcp/65536", "sctp/1", "tcp/", "", "tcp/1-2"])
def test_a_port_that_is_none_is_refused(text):
    with pytest.raises(Invalid, match="tcp/1 to tcp/65535"):
        parse_port(text, "x")


def test_a_snapshot_without_a_rule_locks_the_service():
    found = compile_policy(policy(services=("web",)), FLEET)
    assert (found["web"].edges, found["web"].ingress) == ((), ())


ENDS = (
    "web",
    "db",
    "fleet",
    "anyone",
    "host:w1",
    "host:spare",
    "label:tier=data",
    "label:env=prod",
    "10.0.0.0/23",
)
PORTS = ("tcp/80", "udp/80", "any/81", "tcp", "any")


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            rule, st.sampled_from(ENDS), st.sampled_from(ENDS), st.sampled_from(PORTS),
            action=st.sampled_from(("allow", "allow", "deny")),
        ),
        max_size=5,
    )
)  # fmt: skip
def test_what_both_ends_let_through_is_what_some_rule_allows_and_none_denies(rules):
    """The oracle is the rules themselves, by hosts and not by prefixes; ends that hold part of a service are
    left out of it, as the module says."""
    rules = [one for one in rules if one.action == "allow" or compiles(one)]
    given = policy(*rules, services=("web", "db"))
    found = {name: ruleset(one) for name, one in compile_policy(given, FLEET).items()}
    owner = {"w1": "web", "w2": "web", "d1": "db", "d2": "db"}
    for client, server in product(("w1", "w2"), ("d1", "d2")):
        for proto, port in product((6, 17), (80, 81, 82)):
            sides = (("egress", client, server), ("ingress", server, client))
            for direction, own, peer in sides:
                flow = Flow(direction, proto, parse_address(HOSTS[peer].addresses[0]), port)
                got = judge(found[owner[own]], flow, Host(failsafe=())).action
                assert got == expected(rules, direction, owner[own], peer, proto, port), (
                    direction,
                    own,
                    peer,
                )


def compiles(one):
    """Which denies do not is said in test_policy_compile_denies."""
    try:
        compile_policy(policy(one, services=("web", "db")), FLEET)
    except Invalid:
        return False
    return True


def expected(rules, direction, service, peer, proto, port):
    said = {
        one.action
        for one in rules
        if holds(one.from_ if direction == "egress" else one.to, service)
        and any(contains(end, peer) for end in ends_of(one.to if direction == "egress" else one.from_))
        and any(opens(parse_port(text, ""), proto, port) for text in one.ports)
    }
    return "deny" if "deny" in said or not said else "allow"


def opens(one, proto, port):
    return {"tcp": proto == 6, "udp": proto == 17, "any": True}[one.proto] and one.port in (0, port)


def contains(end, host):
    place = HOSTS[host]
    if end in FLEET.services:
        return host in FLEET.services[end].hosts
    words = {"fleet": True, "anyone": False, f"host:{host}": True, "10.0.0.0/23": host[0] in "wd"}
    if end.startswith("label:"):
        name, _, value = end[6:].partition("=")
        return place.labels.get(name) == value
    return words.get(end, False)


def holds(ends, service):
    return any(all(contains(end, host) for host in FLEET.services[service].hosts) for end in ends_of(ends))


DATABASE, WORLD = "10.0.9.1 -> 10.0.1.1 tcp/5432", "10.0.9.1 -> 203.0.113.1 tcp/80"


def test_tests_of_a_policy_say_which_flow_is_judged_otherwise():
    given = policy(
        rule("web", "db"),
        tests=(
            Expectation(from_="web", to="db", port="tcp/5432", expect="allowed"),
            Expectation(from_="web", to="db", port="tcp/22", expect="blocked"),
            Expectation(from_="host:spare", to="db", port="tcp/5432", expect="allowed"),
            Expectation(from_="203.0.113.0/24", to="web", port="udp/53", expect="blocked"),
            Expectation(from_="host:spare", to="203.0.113.1", port="tcp/80", expect="blocked"),
        ),
    )
    found = outcome(given, FLEET, compile_policy(given, FLEET))
    assert (found.tests, [str(one) for one in found.broken]) == (
        5,
        [
            f"tests[2]: {DATABASE}: expected allowed, got blocked (ingress of db: no_match)",
            f"tests[4]: {WORLD}: expected blocked, got allowed (nothing of this policy governs either end)",
        ],
    )


def said(given, seen=None, inventory=FLEET):
    return [(one.kind, one.about) for one in lint(given, inventory, seen)]


def test_rules_that_say_nothing_new_are_told_and_the_first_of_twins_is_not():
    given = policy(
        rule("web", "db", name="all"),
        rule("host:w1", "db", name="one"),
        rule("web", "db", name="twin"),
        rule("web", "db", "tcp/80", name="other"),
    )
    assert said(given)[:2] == [("redundant", "one"), ("redundant", "twin")]
    denied = policy(rule("web", "db", name="all"), rule("web", "fleet", "tcp", action="deny", name="never"))
    assert ("shadowed", "all") in said(denied)


@pytest.mark.parametrize(
    "given",
    [
        rule("web", "db", "tcp"),
        rule("fleet", "fleet", "tcp/9"),
        rule("web", "anyone", "tcp/443"),
        rule("10.0.0.0/8", "web", "tcp/443"),
        rule("2001:db8::/32", "web", "tcp/443"),
    ],
)
def test_rules_that_let_in_too_much_are_told(given):
    assert ("too_broad", "rules[0]") in said(policy(given))


def test_a_narrow_rule_is_in_order():
    assert said(policy(rule("192.0.2.0/24", "web", "tcp/443"))) == []


def test_a_rule_that_no_flow_went_by_is_told():
    at = {name: parse_address(place.addresses[0]) for name, place in HOSTS.items()}
    given = policy(rule("web", "db", name="used"), rule("web", "db", "udp/53", name="unused"))
    assert said(given, [(at["w1"], at["d1"], 6, 5432), (at["d1"], at["w1"], 17, 53)]) == [
        ("never_hit", "unused")
    ]


def test_an_end_that_holds_part_of_a_service_and_a_shared_host_are_told():
    inventory = Inventory({**FLEET.services, "cache": ServicePlace(104, ("d1",))}, HOSTS)
    given = policy(rule("web", "host:d1"), rule("cache", "db"), groups={"lonely": Group(hosts=("w1",))})
    assert {("partial", "rules[0]"), ("shared_host", "host d1"), ("unused_group", "groups.lonely")} <= set(
        said(given, inventory=inventory)
    )


def test_extra_addresses_save_entries_and_never_let_in_a_host_of_the_fleet():
    hosts = {f"h{n}": HostPlace({}, (f"10.2.0.{n}",)) for n in range(1, 31) if n % 4}
    hosts["foreign"] = HostPlace({}, ("10.2.0.8",))
    own = tuple(sorted(set(hosts) - {"foreign"}))
    inventory = Inventory({"web": ServicePlace(1, ("foreign",)), "many": ServicePlace(2, own)}, hosts)
    exact = compile_policy(policy(rule("web", "many")), inventory)["web"]
    fewer = compile_policy(policy(rule("web", "many"), extra_addresses=8), inventory)["web"]
    assert len(fewer.edges) < len(exact.edges)
    rules = ruleset(fewer)
    rng = random.Random(1)
    for host in [*rng.sample(own, 10), "foreign"]:
        flow = Flow("egress", 6, parse_address(hosts[host].addresses[0]), 5432)
        assert judge(rules, flow, Host(failsafe=())).action == ("deny" if host == "foreign" else "allow")
