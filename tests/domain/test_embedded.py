"""A deny of IPv4 holds for the addresses of IPv6 that lead there; an allow of IPv4 does not."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.embedded import forms, warnings_of
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import ICMPV6, TCP, UDP, Address, masked, parse_address, parse_cidr
from aegisflux.domain.snapshot import from_builtins, ruleset
from aegisflux.domain.verdict import judge
from aegisflux.domain.verdict_of_tables import judge_tables

EVERY = {"dst_cidr": "::/0", "proto": "any", "port": 0}
DENY = {"cidr": "198.51.100.0/24", "proto": "any", "port": 0, "direction": "both"}


def snapshot_of(deny=DENY, edges=(EVERY,), **fields):
    body = {"version": 1, "service_id": 101, "ttl_seconds": 600, "edges": list(edges), **fields}
    return from_builtins(body | {"deny": [deny] if isinstance(deny, dict) else list(deny)})


def judged(snapshot, peer, port=443, proto=TCP, direction="egress"):
    """What the oracle says, and the tables too."""
    rules = ruleset(snapshot)
    flow = Flow(direction, proto, parse_address(peer), port, 40_000)
    verdict = judge(rules, flow, Host())
    assert judge_tables(compile_tables(rules), rules, flow, Host()) == verdict
    return verdict


@pytest.mark.parametrize(
    ("peer", "rule"),
    [
        ("64:ff9b::198.51.100.7", "deny 64:ff9b::c633:6400/120 any/*"),
        ("64:ff9b::198.51.101.7", None),
        ("2002:c633:6407::1", "deny 2002:c633:6400::/40 any/*"),
        ("2002:c633:64ff:ffff:ffff:ffff:ffff:ffff", "deny 2002:c633:6400::/40 any/*"),
        ("2002:c633:6507::1", None),
        ("::ffff:198.51.100.7", "deny 198.51.100.0/24 any/*"),
        # not covered, and listed in SECURITY
        ("64:ff9b:1::198.51.100.7", None),
        ("2001::c633:6407", None),
        ("::198.51.100.7", None),
        ("2001:db8::5efe:198.51.100.7", None),
    ],
)
def test_a_deny_holds_for_what_leads_there(peer, rule):
    verdict = judged(snapshot_of(), peer)
    assert (verdict.word, verdict.rule) == (("blocked", rule) if rule else ("allowed", "edges ::/0 any/*"))


def test_its_protocol_port_and_direction_stay():
    one = {**DENY, "proto": "tcp", "port": 443, "direction": "egress"}
    at = "64:ff9b::198.51.100.7"
    assert judged(snapshot_of(one), at).word == "blocked"
    assert judged(snapshot_of(one), at, port=80).word == "allowed"
    assert judged(snapshot_of(one), at, proto=UDP).word == "allowed"
    assert judged(snapshot_of(one), at, direction="ingress").word == "allowed"
    assert judged(snapshot_of(), at, port=None, proto=ICMPV6).word == "blocked"


def test_an_allow_of_ipv4_is_none_of_its_forms():
    edges = [{"dst_cidr": "198.51.100.0/24", "proto": "any", "port": 0}]
    assert judged(snapshot_of((), edges), "64:ff9b::198.51.100.7").reason == "no_match"


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1), st.integers(0, 2**80 - 1))
def test_a_form_covers_exactly_the_addresses_of_its_prefix(value, length, other, rest):
    cidr = masked(4, value, length)
    nat64, six_to_four = forms(cidr)
    inside = cidr.covers(Address(4, other))
    v4 = ipaddress.IPv4Address(other)
    assert nat64.covers(parse_address(f"64:ff9b::{v4}")) == inside
    assert six_to_four.covers(Address(6, 0x2002 << 112 | other << 80 | rest)) == inside
    assert forms(parse_cidr("2001:db8::/32")) == ()


@pytest.mark.parametrize(
    ("edges", "more", "told"),
    [
        ([EVERY], [], ["64:ff9b:1::/48 and 2001::/32"]),
        ([EVERY], [{**DENY, "cidr": "64:ff9b:1::/48"}], ["2001::/32"]),
        ([EVERY], [{**DENY, "cidr": "64:ff9b:1::/48"}, {**DENY, "cidr": "2001::/23"}], []),
        ([EVERY], [{**DENY, "cidr": "64:ff9b:1::/48", "port": 443}], ["64:ff9b:1::/48 and 2001::/32"]),
        ([{**EVERY, "dst_cidr": "64:ff9b:1:7::/64"}], [], ["64:ff9b:1::/48"]),
        ([{**EVERY, "dst_cidr": "2001:db8::/32"}], [], []),
        ([{**EVERY, "dst_cidr": "0.0.0.0/0"}], [], []),
    ],
)
def test_an_author_hears_of_forms_that_stay_open(edges, more, told):
    found = warnings_of(snapshot_of([DENY, *more], edges))
    assert len(found) == len(told)
    for text, part in zip(found, told, strict=True):
        assert f"not for those in {part}, which" in text
        assert text.startswith("deny 198.51.100.0/24 holds for")


def test_without_a_deny_of_ipv4_nothing_is_told():
    assert warnings_of(snapshot_of({**DENY, "cidr": "2001:db8::/32"})) == []
