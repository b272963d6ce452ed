"""A snapshot is never made bigger than it may be; hosts of two families are at a CIDR by one address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.errors import OverLimit
from aegisflux.domain.net import parse_address, parse_cidr
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_lint import lint
from aegisflux.domain.snapshot import MAX_ENTRIES, canonical

DUAL = {
    "w1": HostPlace({}, ("10.0.0.1", "2001:db8::1")),
    "w2": HostPlace({}, ("10.0.0.2", "2001:db8::2")),
    "d1": HostPlace({}, ("10.0.1.1", "2001:db8:1::1")),
    "d2": HostPlace({}, ("10.0.1.2", "2001:db8:1::2")),
}
FLEET = Inventory({"web": ServicePlace(1, ("w1", "w2")), "db": ServicePlace(2, ("d1", "d2"))}, DUAL)


def rule(from_, to, *ports, **more):
    return Rule(from_=from_, to=to, ports=ports or ("tcp/5432",), **more)


def compiled(*rules, inventory=FLEET, **more):
    return compile_policy(Policy(policy=1, rules=rules, services=("web", "db"), **more), inventory)


def cidrs(entries):
    return {getattr(one, next(name for name in one.__struct_fields__ if "cidr" in name)) for one in entries}


@pytest.mark.parametrize(
    ("to", "edges", "ingress"),
    [
        ("10.0.1.0/24", {"10.0.1.0/24"}, {"10.0.0.1/32", "10.0.0.2/32"}),
        ("2001:db8:1::/48", {"2001:db8:1::/48"}, {"2001:db8::1/128", "2001:db8::2/128"}),
        ("10.0.1.1", {"10.0.1.1/32"}, set()),
        (
            ("10.0.1.0/24", "2001:db8:1::/48"),
            {"10.0.1.0/24", "2001:db8:1::/48"},
            {"10.0.0.1/32", "10.0.0.2/32", "2001:db8::1/128", "2001:db8::2/128"},
        ),
    ],
)
def test_a_host_is_at_a_cidr_by_one_of_its_addresses_and_in_its_family(to, edges, ingress):
    found = compiled(rule("web", to))
    assert (cidrs(found["web"].edges), cidrs(found["db"].ingress)) == (edges, ingress)


def test_a_part_of_a_service_of_two_families_is_told():
    given = Policy(policy=1, rules=(rule("web", "10.0.1.1"),), services=("web", "db"))
    assert [(one.kind, one.detail.split()[0]) for one in lint(given, FLEET)] == [("partial", "10.0.1.1")]


blocks = st.sampled_from(["10.0.0.0/23", "10.0.0.1", "10.0.1.0/24", "2001:db8::/32", "2001:db8:1::/64"])


@given(st.lists(blocks, min_size=1, max_size=3, unique=True))
def test_what_a_cidr_holds_is_what_each_address_says(texts):
    """The oracle asks each address of each host."""
    group = Group(cidrs=tuple(texts))
    found = compiled(
        rule("g", "192.0.2.1", "tcp/1"), rule("2001:db8:9::1", "g", "tcp/2"), groups={"g": group}
    )
    prefixes = [parse_cidr(text if "/" in text else f"{text}/32") for text in texts]
    for name, place in FLEET.services.items():
        own = [[parse_address(text) for text in DUAL[host].addresses] for host in place.hosts]
        inside = [{a.family for a in of if any(cidr.covers(a) for cidr in prefixes)} for of in own]
        families = set().union(*inside) if all(inside) else set()
        assert (bool(found[name].edges), bool(found[name].ingress)) == (4 in families, 6 in families)


@pytest.mark.parametrize(
    ("prefixes", "ports", "fits"), [(2000, 512, False), (1001, 100, False), (1000, 100, True)]
)
def test_what_is_too_much_is_refused_by_its_rule_before_it_is_made(prefixes, ports, fits):
    group = Group(cidrs=tuple(f"172.{n >> 7}.{(n & 127) * 2}.0/24" for n in range(prefixes)))
    one = rule("web", "g", *(f"tcp/{n}" for n in range(1, ports + 1)))
    if fits:
        assert compiled(one, groups={"g": group})["web"].entries() == MAX_ENTRIES
        return
    with pytest.raises(
        OverLimit, match=r"rules\[1\]: egress of web, by g: name fewer or wider CIDRs"
    ) as told:
        compiled(rule("web", "db", "tcp/9"), one, groups={"g": group})
    assert (told.value.limit, told.value.maximum) == ("entries", MAX_ENTRIES)
    assert prefixes * ports <= told.value.got <= prefixes * ports + 4


def test_anyone_in_a_large_fleet_of_two_families_is_refused_and_cidrs_are_not():
    hosts = {
        f"h{n}": HostPlace({}, (f"10.{n >> 8}.{n & 255}.1", f"2001:db8:{n * 7919 % 65536:x}::{n:x}:1"))
        for n in range(1200)
    }
    many = Inventory({"web": ServicePlace(1, ("h1",)), "db": ServicePlace(2, ("h2",))}, hosts)
    with pytest.raises(
        OverLimit, match=r"rules\[0\]: ingress of web, by anyone: .* at most 100000, got 1\d{5}"
    ):
        compiled(rule("anyone", "web", "tcp/443"), inventory=many)
    assert len(compiled(rule(("0.0.0.0/0", "::/0"), "web", "tcp/443"), inventory=many)["web"].ingress) == 2


@given(st.lists(st.builds(rule, *[st.sampled_from(["web", "db", "10.0.0.0/8"])] * 2), max_size=4))
def test_what_is_said_twice_is_one_entry_and_snapshots_are_canonical(rules):
    found = compiled(*rules)
    assert found == compiled(*rules, *rules)
    assert all(one == canonical(one) for one in found.values())
