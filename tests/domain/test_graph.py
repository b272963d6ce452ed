"""What events say of the graph."""

from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.enriched import Context, Enriched, EnrichedBatch
from aegisflux.domain.event import VerdictSeen
from aegisflux.domain.graph import Edge, Ref, Upserts
from tests.support.facts import NOON, execed, facts_of, flow, listen

WEB = Context(service_id=1, service="web")
HOST, SERVICE = Ref("Host", "h"), Ref("Service", 1)


def of(*seen):
    events = tuple(Enriched(event, context) for event, context in seen)
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


def test_a_refusal_at_the_call_is_an_edge_although_no_packet_went():
    found = of((verdict(), WEB))
    (edge,) = [e for e in found.edges if e.name == "COMMUNICATES"]
    assert edge == Edge("COMMUNICATES", SERVICE, Ref("Endpoint", "192.0.2.1"), (6, 443))
    assert (found.edges[edge]["allowed"], found.edges[edge]["blocked"]) == (0, 1)


def test_a_refusal_of_packets_is_told_by_their_flow_alone():
    assert not [e for e in of((verdict(direction="ingress", local_port=80), WEB)).edges if e.keys]


def test_what_would_be_refused_is_no_refusal():
    assert not of((verdict(verdict="would block"), WEB)).edges


def test_the_callees_sight_of_a_known_caller_is_not_counted_again():
    context = Context(service_id=1, service="web", peer_host="other")
    assert not [e for e in of((flow(1, direction="ingress"), context)).edges if e.name == "COMMUNICATES"]
    assert [e for e in of((flow(1, direction="egress"), context)).edges if e.name == "COMMUNICATES"]


def test_what_the_callee_refused_is_its_own_to_tell():
    """The caller's kernel let it out, and heard no answer."""
    unanswered = flow(1, direction="egress", proto=6, port=5432, packets_in=0, bytes_in=0, connections=0)
    refused = flow(
        2, direction="ingress", proto=6, port=5432, verdict="blocked", packets_out=0, connections=0
    )
    callee = Context(peer_host="db-1", peer_service_id=2, peer_service="db")
    caller = Context(service_id=2, service="db", peer_host="h")
    (edge,) = [e for e in of((unanswered, callee)).edges if e.keys]
    said, told = of((unanswered, callee)).edges[edge], of((refused, caller)).edges
    assert (said["allowed"], said["blocked"]) == (0, 0)
    (edge,) = [e for e in told if e.keys]
    assert edge == Edge("COMMUNICATES", HOST, Ref("Service", 2), (6, 5432))
    assert (told[edge]["allowed"], told[edge]["blocked"]) == (0, 1)


def test_programs_and_listeners_belong_to_their_service_or_to_the_host():
    found = of((execed(1), WEB), (execed(2), WEB), (execed(3), Context()), (listen(4), WEB))
    runs = {e.start: p["runs"] for e, p in found.edges.items() if e.name == "EXECUTES"}
    assert runs == {SERVICE: 2, HOST: 1}
    (edge,) = [e for e in found.edges if e.name == "LISTENS"]
    assert edge.start == SERVICE


@given(
    told=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 9)), max_size=20),
    cut=st.integers(0, 20),
)
def test_it_is_the_same_whether_put_in_together_or_batch_by_batch(told, cut):
    batches = [
        EnrichedBatch(
            host_id=f"h{host}", boot_id="b", received_ns=NOON,
            events=(Enriched(flow(seq, peer=f"192.0.2.{peer}", bytes_in=size), WEB),),
        )
        for seq, (host, peer, size) in enumerate(told)
    ]  # fmt: skip
    twice, each = Upserts(), Upserts()
    for part in (batches[:cut], batches[cut:]):
        facts_of(part, twice)
    for one in batches:
        facts_of([one], each)
    assert twice == each == facts_of(batches)


@given(nodes=st.integers(0, 9), edges=st.integers(0, 9), most=st.integers(1, 12))
def test_parts_hold_all_of_it_in_order(nodes, edges, most):
    whole = Upserts()
    for number in range(nodes):
        whole.node(Ref("Endpoint", str(number)), name=str(number))
    for number in range(edges):
        whole.edge(Edge("RUNS", Ref("Host", str(number)), SERVICE), last_ns=number)
    parts = list(whole.parts(most))
    assert all(0 < len(part.nodes) + len(part.edges) <= most for part in parts)
    assert [n for part in parts for n in part.nodes.items()] == list(whole.nodes.items())
    assert [e for part in parts for e in part.edges.items()] == list(whole.edges.items())
    first = next((i for i, part in enumerate(parts) if part.edges), len(parts))
    assert not any(part.nodes for part in parts[first + 1 :]), "nodes come first"
    assert len(parts) <= 1 or nodes + edges > most, "what fits into one is one"
