"""However many peers, programs and listeners one host tells of, the graph grows by its share of a day."""

import pytest

from aegisflux.domain import graph_share
from aegisflux.domain.enriched import Context, Enriched, EnrichedBatch
from aegisflux.domain.graph import DAY_NS, Sights, Upserts
from aegisflux.domain.graph_share import Told, network_of
from tests.support.facts import NOON, execed, flow, listen

MANY = 6000


def peers(n):
    return f"172.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}"


FLOODS = {
    "peers": lambda n: (flow(n, peer=peers(n)), {}),
    "peers of many networks": lambda n: (flow(n, peer=f"{n % 200 + 1}.{n // 200}.0.1"), {}),
    "ports of a host": lambda n: (flow(n, peer="10.0.0.1", port=n % 60_000 + 1), {"peer_host": "web-2"}),
    "services": lambda n: (flow(n, peer="10.0.0.1"), {"service_id": n, "service": str(n)}),
    "peers over IPv6": lambda n: (flow(n, peer=f"2001:{n:x}::1"), {}),
    "programs": lambda n: (execed(n, path=f"/tmp/{n}"), {}),
    "listeners": lambda n: (listen(n, address=peers(n), port=n % 60_000 + 1), {}),
}  # fmt: skip
MOST = {
    "programs": graph_share.MAX_BINARIES,
    "listeners": graph_share.MAX_LISTENERS,
    "services": graph_share.MAX_FLOWS + graph_share.MAX_SERVICES,
}
FLOWS = graph_share.MAX_FLOWS + graph_share.MAX_NETWORKS


def batches(flood, host="h", day=0, many=MANY):
    for start in range(0, many, 1000):
        found = [FLOODS[flood](n) for n in range(start + 1, start + 1001)]
        events = tuple(Enriched(event, Context(**context)) for event, context in found)
        yield EnrichedBatch(host_id=host, boot_id="b", received_ns=NOON + day * DAY_NS, events=events)


def put(told, *given):
    """What is put in when there is a flush after each batch."""
    found = Upserts()
    for batch in given:
        sights = Sights(told)
        sights.see([batch])
        for _ in sights.put(found):
            continue
    return found


@pytest.mark.parametrize("flood", FLOODS)
def test_edges_of_a_host_have_a_bound_however_often_they_are_put_in(flood):
    told: dict[str, Told] = {}
    found = put(told, *batches(flood))
    assert len(found.edges) <= MOST.get(flood, FLOWS) + 3
    assert len(found.nodes) <= MOST.get(flood, FLOWS) + 3
    assert told["h"].folded > 0


def test_what_was_told_first_and_what_others_tell_is_told_as_it_is():
    told: dict[str, Told] = {}
    first = put(told, next(batches("peers")))
    put(told, *batches("peers"))
    assert put(told, next(batches("peers"))) == first
    other = put(told, next(batches("peers", host="other")))
    assert len(other.edges) == len(first.edges) == 1000


def test_traffic_is_added_up_where_its_peers_are_told_together():
    found = put({}, *batches("peers"))
    traffic = [given for edge, given in found.edges.items() if edge.name == "COMMUNICATES"]
    assert sum(given["allowed"] + given["blocked"] for given in traffic) == MANY
    networks = {ref.key for ref in found.nodes if ref.label == "Endpoint" and "/" in str(ref.key)}
    assert networks == {"172.16.0.0/16"}


def test_the_next_day_has_places_again():
    told: dict[str, Told] = {}
    put(told, *batches("peers"))
    told["h"].folded = 0
    put(told, next(batches("peers", day=1)))
    assert told["h"].folded == 0


NETWORKS = {
    "192.0.2.7": "192.0.0.0/16",
    "2001:db8:1::7": "2001:db8::/32",
    "2001::7": "2001:0::/32",
    "::1": "0:0::/32",
    "fe80::1": "fe80:0::/32",
    "::ffff:192.0.2.7": "192.0.0.0/16",
}


@pytest.mark.parametrize("address", NETWORKS)
def test_the_network_of_an_address(address):
    assert network_of(address) == NETWORKS[address]


def test_a_host_that_says_nothing_for_days_takes_no_room():
    told = {name: Told() for name in ("today", "yesterday", "released")}
    for name, day in (("today", 20_000), ("yesterday", 19_999), ("released", 19_998)):
        told[name].begin(day)
        told[name].place("flow", name)
    graph_share.forget_earlier(told)
    assert list(told) == ["today", "yesterday"]
    graph_share.forget_earlier({})
