"""Who could reach whom, against the one meaning of a snapshot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.could import Party, could_reach
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import parse_address
from aegisflux.domain.reach import Hop
from aegisflux.domain.snapshot import from_builtins, ruleset
from aegisflux.domain.verdict import judge
from aegisflux.wire.canonical import content_of

ADDRESSES = [f"10.0.0.{n}" for n in range(1, 7)]
PORTS = [(6, 80), (6, 5432), (17, 53)]
NAMES = {6: "tcp", 17: "udp"}


def snapshot(service=1, **more):
    body = {"version": 1, "service_id": service, "ttl_seconds": 3600, "mode": "enforce", **more}
    return from_builtins(body)


def party(name, addresses, ports=(), made=None):
    return Party(name, tuple(addresses), tuple(ports), None if made is None else content_of(made))


WEB, DB = ["10.0.0.1"], ["10.0.0.2"]
EDGE = {"dst_cidr": "10.0.0.2/32", "proto": "tcp", "port": 5432}
FROM_WEB = {"src_cidr": "10.0.0.1/32", "proto": "tcp", "port": 5432}
HOP = Hop("service:web", "service:db", 6, 5432, seen=False)


@pytest.mark.parametrize(
    ("web", "db", "could"),
    [
        (None, None, True),
        ({"edges": []}, None, False),
        ({"edges": [EDGE]}, None, True),
        ({"edges": [EDGE | {"port": 80}]}, None, False),
        ({"edges": [], "mode": "observe"}, None, True),
        (None, {"edges": [], "ingress": [FROM_WEB]}, True),
        (None, {"edges": [], "ingress": [FROM_WEB | {"src_cidr": "10.0.0.9/32"}]}, False),
        (None, {"edges": []}, True),
        ({"edges": [EDGE]}, {"edges": [], "ingress": [FROM_WEB]}, True),
        ({"edges": []}, {"edges": [], "ingress": [FROM_WEB]}, False),
    ],
)
def test_both_sides_must_let_it_through(web, db, could):
    parties = [
        party("web", WEB, (), web and snapshot(1, **web)),
        party("db", DB, [(6, 5432)], db and snapshot(2, **db)),
    ]
    assert could_reach(parties) == (frozenset({HOP} if could else ()), False)


def test_one_host_where_an_older_snapshot_is_in_force_is_enough():
    parties = [
        party("web", WEB, (), snapshot(1, edges=[])),
        party("web", ["10.0.0.7"], (), snapshot(1, edges=[EDGE])),
        party("db", DB, [(6, 5432)]),
    ]
    assert could_reach(parties)[0] == {HOP}


def test_only_what_is_asked_for_and_where_it_listens():
    parties = [party("web", WEB, [(6, 80)]), party("db", DB, [(6, 5432)]), party("idle", ["10.0.0.3"])]
    hops, _ = could_reach(parties, ["db"])
    assert {(hop.start, hop.end) for hop in hops} == {
        ("service:web", "service:db"),
        ("service:idle", "service:db"),
    }


def test_too_much_is_cut_and_said():
    parties = [party(f"s{n}", ADDRESSES, PORTS) for n in range(10)]
    hops, cut = could_reach(parties, most=100)
    assert cut
    assert len(hops) < 9 * 10 * 3
    assert not could_reach(parties, most=10_000)[1]


@pytest.mark.parametrize(
    ("made", "is_open"),
    [
        (None, True),
        ({"edges": []}, True),
        ({"ingress": []}, False),
        ({"ingress": [], "mode": "observe"}, True),
    ],
)
def test_open_is_what_takes_calls_of_anybody(made, is_open):
    assert party("db", DB, (), made and snapshot(2, **{"edges": [], **made})).is_open is is_open


entries = st.lists(
    st.builds(
        lambda address, plen, proto, port: (f"{address}/{plen}", proto, port),
        st.sampled_from(ADDRESSES),
        st.just(32),
        st.sampled_from(["tcp", "udp"]),
        st.sampled_from([80, 5432, 53]),
    ),
    max_size=4,
    unique=True,
)


@st.composite
def towns(draw):
    found = []
    for number, name in enumerate(("a", "b", "c"), 1):
        addresses = draw(st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=2, unique=True))
        ports = draw(st.lists(st.sampled_from(PORTS), max_size=3, unique=True))
        if draw(st.booleans()):
            found.append((name, addresses, ports, None))
            continue
        egress, into = draw(entries), draw(st.none() | entries)
        body = {"edges": [{"dst_cidr": c, "proto": p, "port": n} for c, p, n in egress]}
        if into is not None:
            body["ingress"] = [{"src_cidr": c, "proto": p, "port": n} for c, p, n in into]
        mode = draw(st.sampled_from(["enforce", "observe"]))
        found.append((name, addresses, ports, snapshot(number, mode=mode, **body)))
    return found


@given(towns())
def test_it_agrees_with_the_meaning_address_by_address(town):
    expected = set()
    for caller, callers, _, theirs in town:
        for callee, callees, ports, ours in town:
            for proto, port in ports if caller != callee else ():
                if any(
                    passes(theirs, "egress", proto, port, to) and passes(ours, "ingress", proto, port, at)
                    for to in callees
                    for at in callers
                ):
                    expected.add(Hop(f"service:{caller}", f"service:{callee}", proto, port, seen=False))
    assert could_reach([party(*one) for one in town]) == (expected, False)


def passes(made, direction, proto, port, peer):
    if made is None:
        return True
    verdict = judge(ruleset(made), Flow(direction, proto, parse_address(peer), port), Host())
    return verdict.action == "allow" or verdict.mode == "observe"
