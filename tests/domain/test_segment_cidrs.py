"""Prefixes for addresses: all members, no known stranger, within the budget, and as few as can be."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain.net import Address, Cidr, masked, parse_address
from aegisflux.domain.segment.cidrs import covering

BASE = 0x0A000000
VALUES = st.sets(st.integers(0, 15), min_size=1, max_size=8)


def of(values, family=4):
    return [Address(family, BASE + value) for value in values]


def texts(*addresses, never=(), extra=0):
    found = covering(map(parse_address, addresses), map(parse_address, never), extra)
    return [str(cidr) for cidr in found]


@settings(max_examples=200, deadline=None)
@given(VALUES, st.sets(st.integers(0, 15), max_size=4), st.integers(0, 12), st.sampled_from((4, 6)))
def test_it_is_as_good_as_trying_all(values, never, extra, family):
    never -= values
    found = covering(of(values, family), of(never, family), extra)
    held = {n for n in range(16) if any(c.covers(Address(family, BASE + n)) for c in found)}
    assert values <= held
    assert not held & never
    size = sum(1 << (cidr.bits - cidr.plen) for cidr in found)
    assert size == len(held), "disjoint, and nothing beyond the sixteen"
    assert size - len(values) <= extra
    assert len(found) == least(values, never, extra)


def least(values, never, extra):
    """Of all sets of prefixes of these sixteen addresses."""
    nodes = [
        frozenset(range(start, start + size)) for size in (1, 2, 4, 8, 16) for start in range(0, 16, size)
    ]
    nodes = [node for node in nodes if node & values and not node & never]
    for count in range(1, len(values) + 1):
        for chosen in combinations(nodes, count):
            held = frozenset().union(*chosen)
            if values <= held and len(held) - len(values) <= extra and sum(map(len, chosen)) == len(held):
                return count
    raise AssertionError("the members by themselves always do")


def test_exact_by_default():
    assert texts("10.0.0.4", "10.0.0.5", "10.0.0.7") == ["10.0.0.4/31", "10.0.0.7/32"]


def test_a_budget_closes_what_it_can_and_spends_no_more():
    assert texts("10.0.0.4", "10.0.0.5", "10.0.0.7", extra=1) == ["10.0.0.4/30"]
    assert texts("10.0.0.4", "10.0.0.7", "10.9.0.1", extra=2) == ["10.0.0.4/30", "10.9.0.1/32"]


def test_never_over_a_known_stranger():
    assert texts("10.0.0.4", "10.0.0.5", "10.0.0.7", never=["10.0.0.6"], extra=9) == [
        "10.0.0.4/31",
        "10.0.0.7/32",
    ]


def test_both_families_each_by_itself():
    assert texts("2001:db8::", "2001:db8::1", "192.0.2.1") == ["192.0.2.1/32", "2001:db8::/127"]


def test_an_address_that_is_both_is_refused():
    with pytest.raises(ValueError, match=r"192\.0\.2\.1 is a member and must never be one"):
        covering([parse_address("192.0.2.1")], [parse_address("192.0.2.1")])


def test_no_members_no_prefixes():
    assert covering([]) == ()


def test_a_large_fleet_is_quick_and_exact():
    members = [Address(4, BASE + 2 * n) for n in range(5000)]
    assert covering(members) == tuple(Cidr(4, a.value, 32) for a in members)
    assert covering([Address(4, BASE + n) for n in range(4096)]) == (masked(4, BASE, 20),)
