"""Flows added up by minute: nothing is lost, nothing is mixed that differs in what a key names."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.enriched import Context, Enriched
from aegisflux.domain.rollup import MINUTE_NS, NO_SERVICE, Key, rolled_up
from tests.support.facts import NOON, SECOND, execed, flow

COUNTS = ("connections", "packets_out", "packets_in", "bytes_out", "bytes_in")


def seen(seq=1, context=None, **more):
    return Enriched(msgspec.structs.replace(flow(seq), **more), context or Context())


def summed(*events, host="web-1"):
    found = {}
    rolled_up(host, events, found)
    return found


def counts(sums):
    return {name: getattr(sums, name) for name in (*COUNTS, "flows")}


def test_two_flows_of_a_minute_are_one_row():
    first = seen(1, last_ns=NOON, connections=1, packets_out=2, packets_in=3, bytes_out=4, bytes_in=5)
    other = seen(
        2, last_ns=NOON + 1, connections=10, packets_out=20, packets_in=30, bytes_out=40, bytes_in=50
    )
    ((key, sums),) = summed(first, other).items()
    assert key.minute == NOON - NOON % MINUTE_NS
    assert counts(sums) == {
        "flows": 2, "connections": 11, "packets_out": 22, "packets_in": 33, "bytes_out": 44, "bytes_in": 55
    }  # fmt: skip


def test_a_row_names_who_talked_to_whom():
    context = Context(service_id=3, peer_host="db-1", peer_service_id=4, peer_class="private")
    fields = {"direction": "egress", "proto": 17, "port": 53, "verdict": "blocked", "reason": "r"}
    ((key, _),) = summed(seen(context=context, last_ns=61 * SECOND, **fields)).items()
    assert key == Key(60 * SECOND, "web-1", 3, "egress", "db-1", 4, "private", 17, 53, "blocked", "r")


def test_who_is_not_known_is_no_service_and_service_zero_is_one():
    (nobody,) = summed(seen())
    assert (nobody.service_id, nobody.peer_service_id, nobody.peer_class) == (NO_SERVICE, NO_SERVICE, "")
    (zero,) = summed(seen(context=Context(service_id=0, peer_service_id=0)))
    assert (zero.service_id, zero.peer_service_id) == (0, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"last_ns": NOON + MINUTE_NS},
        {"direction": "ingress"},
        {"proto": 17},
        {"port": 1},
        {"verdict": "blocked"},
        {"reason": "other"},
        {"context": Context(service_id=1)},
        {"context": Context(peer_service_id=1)},
        {"context": Context(peer_host="x")},
        {"context": Context(peer_class="public")},
    ],
)
def test_flows_that_differ_in_the_key_stay_apart(other):
    base = {
        "last_ns": NOON,
        "direction": "egress",
        "proto": 6,
        "port": 443,
        "verdict": "allowed",
        "reason": "",
    }
    assert len(summed(seen(**base), seen(**{**base, **other}))) == 2


@pytest.mark.parametrize("same", [{"pid": 9}, {"path": "/bin/x"}, {"cgroup": "b"}, {"last_ns": NOON + 1}])
def test_flows_that_differ_elsewhere_are_added(same):
    assert len(summed(seen(last_ns=NOON), seen(**{"last_ns": NOON, **same}))) == 1


def test_other_events_count_nothing_and_hosts_stay_apart():
    assert summed(Enriched(execed(1), Context())) == {}
    into = {}
    for host in ("web-1", "web-2"):
        rolled_up(host, [seen()], into)
    assert {key.host_id for key in into} == {"web-1", "web-2"}


FLOWS = st.lists(
    st.builds(
        seen,
        last_ns=st.integers(NOON, NOON + 3 * MINUTE_NS),
        port=st.integers(1, 3),
        **{name: st.integers(0, 1 << 40) for name in COUNTS},
    ),
    max_size=20,
)


@given(FLOWS, st.integers(0, 20))
def test_nothing_is_lost_however_the_flows_are_cut(flows, cut):
    whole, parts = summed(*flows), {}
    rolled_up("web-1", flows[:cut], parts)
    rolled_up("web-1", flows[cut:], parts)
    assert {key: counts(sums) for key, sums in whole.items()} == {k: counts(s) for k, s in parts.items()}
    for name in COUNTS:
        assert sum(getattr(s, name) for s in whole.values()) == sum(getattr(f.event, name) for f in flows)
    assert sum(sums.flows for sums in whole.values()) == len(flows)
    assert all(key.minute % MINUTE_NS == 0 for key in whole)
