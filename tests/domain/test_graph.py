"""What events say of the graph."""

import pytest

from aegisflux.domain.enriched import Context, Enriched, EnrichedBatch
from aegisflux.domain.event import VerdictSeen
from aegisflux.domain.graph import Edge, Ref, facts_of
from tests.support.facts import NOON, execed, flow, listen

WEB = Context(service_id=1, service="web")
HOST, SERVICE = Ref("Host", "h"), Ref("Service", 1)


def of(*given):
    events = tuple(Enriched(event, context) for event, context in given)
    return facts_of([EnrichedBatch(host_id="h", boot_id="b", received_ns=NOON, events=events)])


def verdict(**fields):
    values = {
        "seq": 1,
        "time_ns": NOON,
        "service_id": 1,
        "direction": "egress",
        "proto": 6,
        "peer": "192.0.2.1",
    }
    return VerdictSeen(**{**values, "verdict": "blocked", "reason": "no_match", "peer_port": 443, **fields})


def test_what_is_seen_again_is_added_up():
    found = of((flow(1), WEB), (flow(2), WEB), (flow(3), WEB))
    (edge,) = [e for e in found.edges if e.name == "COMMUNICATES"]
    one = flow(1)
    assert found.edges[edge]["allowed"] == 3 * max(1, one.connections)
    assert found.edges[edge]["bytes"] == 3 * (one.bytes_in + one.bytes_out)
    assert edge.start == SERVICE
    assert found.edges[Edge("RUNS", HOST, SERVICE)]["last_ns"] == one.last_ns


@pytest.mark.parametrize(
    ("event", "start", "end", "port"),
    [
        (verdict(), SERVICE, Ref("Endpoint", "192.0.2.1"), 443),
        (verdict(direction="ingress", local_port=80), Ref("Endpoint", "192.0.2.1"), SERVICE, 80),
    ],
)
def test_a_refusal_at_the_call_is_an_edge_although_no_packet_went(event, start, end, port):
    found = of((event, WEB))
    (edge,) = [e for e in found.edges if e.name == "COMMUNICATES"]
    assert edge == Edge("COMMUNICATES", start, end, (6, port))
    assert (found.edges[edge]["allowed"], found.edges[edge]["blocked"]) == (0, 1)


def test_what_would_be_refused_is_no_refusal():
    assert not of((verdict(verdict="would block"), WEB)).edges


def test_the_callees_sight_of_a_known_caller_is_not_counted_again():
    context = Context(service_id=1, service="web", peer_host="other")
    assert not [e for e in of((flow(1, direction="ingress"), context)).edges if e.name == "COMMUNICATES"]
    assert [e for e in of((flow(1, direction="egress"), context)).edges if e.name == "COMMUNICATES"]


def test_programs_and_listeners_belong_to_their_service_or_to_the_host():
    found = of((execed(1), WEB), (execed(2), WEB), (execed(3), Context()), (listen(4), WEB))
    runs = {e.start: p["runs"] for e, p in found.edges.items() if e.name == "EXECUTES"}
    assert runs == {SERVICE: 2, HOST: 1}
    (edge,) = [e for e in found.edges if e.name == "LISTENS"]
    assert edge.start == SERVICE
