"""A mapped address of fewer than 96 bits looks like IPv4 and would match no IPv4: it is refused wherever a
CIDR is read, and what was stored before goes on."""

import pytest

from aegisflux.agent.failsafes import failsafe_of
from aegisflux.domain.errors import Invalid
from aegisflux.domain.net import parse_address, parse_cidr
from aegisflux.domain.policy import Group, Policy, Rule, check, rewritten
from aegisflux.domain.search import FLOW_FIELDS, parse_search
from aegisflux.domain.snapshot import from_builtins

CUT = {
    "::ffff:172.16.0.0/12": "write 172.16.0.0/12 or ::ffff:172.16.0.0/108 (to mean IPv6 peers alone, ::/12)",
    "::ffff:ac10:0/12": "write 172.16.0.0/12 or ::ffff:172.16.0.0/108 ",
    "::FFFF:10.1.2.3/8": "write 10.0.0.0/8 or ::ffff:10.0.0.0/104 ",
    "0:0:0:0:0:ffff:10.0.0.0/24": "write 10.0.0.0/24 or ::ffff:10.0.0.0/120 ",
    "::ffff:10.0.0.7/32": "write 10.0.0.7/32 or ::ffff:10.0.0.7/128 ",
    "::ffff:0.0.0.0/0": "write 0.0.0.0/0 or ::ffff:0.0.0.0/96 (to mean IPv6 peers alone, ::/0)",
    "::ffff:10.0.0.0/33": "such as 10.0.0.0/32, or a mapped address with a length of 96 to 128",
    "::ffff:10.0.0.0/64": "(to mean IPv6 peers alone, ::/64)",
    "::ffff:0:0/80": "a length of 96 to 128",
    "::ffff:10.0.0.0/95": "(to mean IPv6 peers alone, ::fffe:0:0/95)",
}
KEPT = {
    "::ffff:172.16.0.0/108": "172.16.0.0/12",
    "::ffff:10.0.0.0/96": "0.0.0.0/0",
    "::ffff:10.0.0.1/128": "10.0.0.1/32",
    "::/0": "::/0",
    "::/12": "::/12",
    "::/64": "::/64",
    "::/80": "::/80",
    "::fffe:0:0/95": "::fffe:0:0/95",
    "::ffc0:0:0/90": "::ffc0:0:0/90",
    "64:ff9b::10.0.0.0/96": "64:ff9b::/96",
}


def snapshot(field, name, cidr):
    entry = {name: cidr, "proto": "tcp", "port": 443} | ({"direction": "both"} if field == "deny" else {})
    return from_builtins({"version": 1, "service_id": 1, "ttl_seconds": 60, field: [entry]})


def ruled(**given):
    return Policy(policy=1, rules=(Rule(**{"from_": "web", "to": "db", "ports": ("tcp",)} | given),))


def failsafe(cidr):
    _, refused, _ = failsafe_of([{"direction": "ingress", "proto": "tcp", "port": 22, "cidr": cidr}])
    if refused:
        raise Invalid("failsafe.cidr", refused[0])


READERS = {
    "a CIDR": parse_cidr,
    "an end": lambda cidr: check(ruled(from_=cidr)),
    "an end of a list": lambda cidr: check(ruled(to=("db", cidr))),
    "a deny": lambda cidr: check(ruled(to=cidr, action="deny")),
    "a group": lambda cidr: check(Policy(policy=1, groups={"office": Group(cidrs=("10.0.0.0/8", cidr))})),
    "an edge": lambda cidr: snapshot("edges", "dst_cidr", cidr),
    "an ingress": lambda cidr: snapshot("ingress", "src_cidr", cidr),
    "a peer": lambda cidr: snapshot("allow_cidrs", "cidr", cidr),
    "a deny of a snapshot": lambda cidr: snapshot("deny", "cidr", cidr),
    "a failsafe": failsafe,
    "a filter": lambda cidr: parse_search(f"peer={cidr}", FLOW_FIELDS),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("cidr", CUT)
def test_it_is_refused_with_what_to_write(reader, cidr):
    with pytest.raises(Invalid) as caught:
        reader(cidr)
    assert CUT[cidr] in str(caught.value)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("cidr", KEPT)
def test_what_is_not_cut_is_read_as_before(reader, cidr):
    reader(cidr)
    assert str(parse_cidr(cidr)) == KEPT[cidr]


@pytest.mark.parametrize("cidr", CUT)
def test_what_was_stored_means_what_it_did_and_is_told(cidr):
    given = Policy(
        policy=1,
        groups={"office": Group(cidrs=("10.0.0.0/8", cidr))},
        rules=(Rule(from_=cidr, to=("db", cidr), ports=("tcp",)),),
    )
    told = []
    stored = rewritten(given, told.append)
    check(stored)
    (rule,) = stored.rules
    assert rule.from_ == rule.to[1] == stored.groups["office"].cidrs[1]
    assert (former := parse_cidr(rule.from_)).family == 6
    assert former.plen == int(cidr.partition("/")[2])
    assert [error.path for error in told] == ["rules[0].from", "rules[0].to[1]", "groups.office.cidrs[1]"]
    assert str(snapshot("deny", "cidr", rule.from_).deny[0].cidr) == rule.from_


def test_a_prefix_around_the_mapped_ones_matches_no_ipv4():
    mapped = parse_address("::ffff:10.0.0.1")
    assert not any(parse_cidr(cidr).covers(mapped) for cidr in ("::/0", "::/64", "::fffe:0:0/95"))
