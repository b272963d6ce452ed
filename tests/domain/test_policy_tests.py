"""Tests of a policy hold when they hold for all whom they name, and never because they name nobody."""

from itertools import product

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.errors import Invalid, NotFound, OverLimit, Refused
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import Address, parse_address, parse_cidr
from aegisflux.domain.policy import Expectation, Group, Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_tests import outcome
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.verdict import judge

FLEET = Inventory(
    {
        "web": ServicePlace(1, ("w1", "w2")),
        "db": ServicePlace(2, ("d1", "d2")),
        "batch": ServicePlace(3, ("w1",)),
        "metrics": ServicePlace(4, ("d1",)),
        "new": ServicePlace(5),
    },
    {
        "w1": HostPlace({}, ("10.0.0.1",)),
        "w2": HostPlace({}, ("10.0.0.2",)),
        "d1": HostPlace({}, ("10.0.1.1",)),
        "d2": HostPlace({}, ("10.0.1.2",)),
        "spare": HostPlace({}, ("10.0.9.1",)),
        "silent": HostPlace({"env": "prod"}),
    },
)
GOVERNED = ("web", "db", "batch")


def rule(from_, to, *ports, **more):
    return Rule(from_=from_, to=to, ports=ports or ("tcp/5432",), **more)


def broken(from_, to, expect, *rules, inventory=FLEET, port="tcp/5432", **more):
    """What is found wrong with one test; None: it holds."""
    test = Expectation(from_=from_, to=to, port=port, expect=expect)
    policy = Policy(policy=1, rules=rules, tests=(test,), **{"services": GOVERNED, **more})
    found = outcome(policy, inventory, compile_policy(policy, inventory)).broken
    return found[0] if found else None


@pytest.mark.parametrize("expect", ["allowed", "blocked"])
@pytest.mark.parametrize(
    ("from_", "to", "why"),
    [
        ("label:env=prdo", "db", "label:env=prdo names no host"),
        ("web", "label:env=prdo", "label:env=prdo names no host"),
        ("new", "db", "new names no host"),
        ("host:silent", "db", "host:silent is silent: no address of it is known yet"),
        ("label:env=prod", "db", "label:env=prod is silent: no address"),
        ("nobody", "db", "nobody names no host"),
        ("host:w1", "host:w1", "both ends are 10.0.0.1 alone"),
        ("host:w1", "10.0.0.1", "both ends are 10.0.0.1 alone"),
    ],
)
def test_what_is_asked_of_nobody_does_not_hold(from_, to, why, expect):
    found = broken(from_, to, expect, rule("web", "db"), groups={"nobody": Group()})
    assert (found.client, found.server, found.expected, found.got) == (from_, to, expect, "unknown")
    assert found.why.startswith(why)


@pytest.mark.parametrize(
    ("from_", "to", "kind", "words"),
    [
        ("anyone", "db", Invalid, r"tests\[0\].from: expected an end with addresses"),
        ("web", "anyone", Invalid, r"tests\[0\].to: expected an end with addresses"),
        ("wbe", "db", NotFound, r"tests\[0\].from: no service, group"),
        ("web", "host:d9", NotFound, r"tests\[0\].to: host 'd9' is not enrolled"),
    ],
)
def test_an_end_that_cannot_be_asked_is_refused(from_, to, kind, words):
    with pytest.raises(kind, match=words):
        broken(from_, to, "allowed")


@pytest.mark.parametrize(
    ("asked", "rules", "witness"),
    [
        ("10.0.0.0/8", (rule("10.5.0.0/16", "db"),), "10.5.0.0"),
        ("0.0.0.0/0", (rule("1.0.0.0/8", "db"),), "1.0.0.0"),
        ("::/0", (rule("2001:db8::/32", "db"),), "2001:db8::"),
        ("10.5.0.0/16", (rule("10.0.0.0/8", "db"), rule("10.5.0.0/17", "db", action="deny")), "10.5.128.0"),
        ("10.0.0.0/16", (rule("host:spare", "db"),), "10.0.9.1"),
        ("10.0.0.0/24", (rule("batch", "db"),), "10.0.0.1"),
    ],
)
def test_a_cidr_is_asked_wherever_rules_tell_its_addresses_apart(asked, rules, witness):
    found = broken(asked, "db", "blocked", *rules)
    assert (found.client, found.got) == (witness, "allowed")


def test_the_world_is_blocked_where_no_rule_lets_it_in():
    assert broken("0.0.0.0/0", "db", "blocked") is None
    assert broken("::/0", "db", "blocked", rule("web", "db")) is None
    assert broken("127.0.0.1", "db", "blocked").why.startswith("ingress of db: failsafe")


@pytest.mark.parametrize(
    ("from_", "to", "rules", "allowed", "blocked"),
    [
        ("host:w1", "db", (rule("batch", "db"),), "egress of web: no_match", "ingress of db: allow"),
        ("host:w1", "db", (rule(("batch", "web"), "db"),), None, "ingress of db: allow"),
        ("host:w1", "db", (), "egress of web: no_match", None),
        ("batch", "db", (rule("batch", "db"),), None, "ingress of db: allow"),
        ("web", "db", (rule("batch", "db"),), "egress of web: no_match", None),
        ("host:spare", "db", (rule("host:spare", "db"),), None, "ingress of db: allow"),
        ("host:spare", "db", (), "ingress of db: no_match", None),
        ("host:spare", "host:d2", (), "ingress of db: no_match", None),
        ("host:spare", "host:d1", (), "ingress of db: no_match", "nothing of this policy governs"),
        ("metrics", "host:d2", (), "ingress of db: no_match", None),
    ],
)
def test_what_a_host_may_is_asked_of_each_of_its_services(from_, to, rules, allowed, blocked):
    for expect, why in (("allowed", allowed), ("blocked", blocked)):
        found = broken(from_, to, expect, *rules)
        assert (found is None) == (why is None), found
        assert found is None or found.why.startswith(why)


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_tests_are_of_the_rules_whatever_the_mode(mode):
    assert broken("web", "db", "blocked", mode=mode) is None
    assert broken("web", "db", "allowed", mode=mode).got == "blocked"
    assert broken("web", "db", "allowed", rule("web", "db"), mode=mode) is None


def test_too_many_questions_are_refused_by_the_test():
    hosts = {f"h{n}": HostPlace({}, (f"10.{n >> 8}.{n & 255}.1",)) for n in range(2000)}
    services = {f"s{n}": ServicePlace(n + 1, (f"h{n}",)) for n in range(40)}
    with pytest.raises(OverLimit, match=r"tests\[0\]: name fewer hosts"):
        broken("fleet", "fleet", "blocked", inventory=Inventory(services, hosts), services=tuple(services))


PREFIXES = st.tuples(st.integers(0, 31), st.integers(27, 32)).map(
    lambda at: str(parse_cidr(f"10.0.0.{at[0]}/{at[1]}"))
)
NAMES = st.sampled_from(["web", "db", "batch", "host:h3", "host:h9", "fleet"])
ENDS = PREFIXES | NAMES
SMALL = Inventory(
    {
        "web": ServicePlace(1, ("h3", "h4")),
        "db": ServicePlace(2, ("h9",)),
        "batch": ServicePlace(3, ("h3", "h9")),
    },
    {f"h{n}": HostPlace({}, (f"10.0.0.{n}",)) for n in (3, 4, 9, 20)},
)
RULES = st.builds(
    lambda from_, to, action: rule(from_, to, action=action),
    ENDS, ENDS, st.sampled_from(["allow", "allow", "deny"]),
)  # fmt: skip


def callers(end, governed):
    """(address, service) of all whom an end names, one by one."""
    if "/" in end:
        cidr = parse_cidr(end)
        every = (Address(4, cidr.value + n) for n in range(1 << (32 - cidr.plen)))
        return [(address, service) for address in every for service in running(str(address), governed)]
    hosts = SMALL.services[end].hosts if end in SMALL.services else ()
    hosts = hosts or (SMALL.hosts if end == "fleet" else (end.removeprefix("host:"),))
    addresses = [SMALL.hosts[host].addresses[0] for host in hosts]
    if end in SMALL.services:
        return [(parse_address(a), end if end in governed else "") for a in addresses]
    return [(parse_address(a), service) for a in addresses for service in running(a, governed)]


def running(address, governed):
    host = "h" + address.rpartition(".")[2]
    found = [name for name, place in SMALL.services.items() if host in place.hosts]
    return {name if name in governed else "" for name in found} or {""}


@given(
    st.lists(RULES, max_size=4), ENDS, ENDS, st.sampled_from(["allowed", "blocked"]),
    st.sets(st.sampled_from(["web", "db", "batch"])),
)  # fmt: skip
def test_a_test_holds_when_it_holds_for_every_address_and_service(rules, from_, to, expect, governed):
    policy = Policy(policy=1, services=tuple(governed), rules=tuple(rules))
    try:
        snapshots = compile_policy(policy, SMALL)
    except Refused:
        reject()  # a deny that no snapshot can say
    rulesets = {name: ruleset(one) for name, one in snapshots.items()}
    words = set()
    for (client, own), (server, theirs) in product(callers(from_, governed), callers(to, governed)):
        if client != server:
            sides = ((own, "egress", server), (theirs, "ingress", client))
            actions = [
                judge(rulesets[service], Flow(way, 6, peer, 5432), Host()).action
                for service, way, peer in sides
                if service
            ]
            words.add("blocked" if "deny" in actions else "allowed")
    test = Expectation(from_=from_, to=to, port="tcp/5432", expect=expect)
    found = outcome(replace(policy, tests=(test,)), SMALL, snapshots).broken
    assert (not found) == (words == {expect}), (words, found)
    assert not found or (found[0].got == "unknown") == (not words)
