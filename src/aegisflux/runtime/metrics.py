"""Metrics of the control plane: names, meanings, one registry. No host, address or CVE is ever a label.

No client, host or file chooses the value of a label: each is of a set that the program has.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REGISTRY = CollectorRegistry()
CHILDREN: Final = ("nats", "postgres", "orchestrator", "ingest", "enrich", "segmenter")
WHY_RESTARTED: Final = ("died", "unhealthy", "hung")
_files: list[Path] = []
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

requests = Counter(
    "aegisflux_http_requests_total",
    "Requests answered, by method, route and status; what no route has is other and none.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
request_seconds = Histogram(
    "aegisflux_http_request_seconds",
    "Time from a request's head to its answer.",
    buckets=SECONDS,
    registry=REGISTRY,
)
http_refused = Counter(
    "aegisflux_http_refused_total",
    "Connections and requests that were ended or refused before their route, by what they passed.",
    ["reason"],
    registry=REGISTRY,
)
http_connections = Gauge(
    "aegisflux_http_connections",
    "Open connections, by whether a valid token was shown on them.",
    ["kind"],
    registry=REGISTRY,
)
http_unauthorized = Counter(
    "aegisflux_http_unauthorized_total",
    "Tokens that were refused: of the API (unknown), or of an enrolment.",
    ["kind"],
    registry=REGISTRY,
)
restarts = Counter(
    "aegisflux_service_restarts_total",
    "How often the supervisor has restarted a child since it began: it died, was unhealthy, or hung.",
    ["service", "reason"],
    registry=REGISTRY,
)
tokens_doubted = Counter(
    "aegisflux_tokens_doubted_total",
    "Requests refused because the row of their token in the store is not believed.",
    registry=REGISTRY,
)
sessions_ended = Counter(
    "aegisflux_sessions_ended_total",
    "Sessions of other services in the database, ended since the orchestrator waited for their locks.",
    registry=REGISTRY,
)
posts = Counter("aegisflux_snapshots_total", "Snapshots by outcome.", ["outcome"], registry=REGISTRY)
compile_seconds = Histogram(
    "aegisflux_compile_seconds", "Time to read and compile a snapshot.", buckets=SECONDS, registry=REGISTRY
)
rollouts = Counter(
    "aegisflux_rollout_steps_total", "Steps of rollouts, by stage.", ["stage"], registry=REGISTRY
)
manifests = Counter("aegisflux_manifests_total", "Manifests signed and published.", registry=REGISTRY)
announcements = Counter("aegisflux_announcements_total", "Announcements published.", registry=REGISTRY)
renewals = Counter("aegisflux_lease_renewals_total", "Leases renewed.", registry=REGISTRY)
acks = Counter("aegisflux_acks_total", "Acks stored.", registry=REGISTRY)
nacks = Counter("aegisflux_nacks_total", "Nacks stored, by reason.", ["reason"], registry=REGISTRY)
heartbeats = Counter("aegisflux_heartbeats_total", "Heartbeats stored.", registry=REGISTRY)
heartbeats_replaced = Counter(
    "aegisflux_heartbeats_replaced_total",
    "Heartbeats that were not read, since a newer one of the same host was there already.",
    registry=REGISTRY,
)
identity_clashes = Counter(
    "aegisflux_host_identity_clashes_total",
    "Heartbeats that showed two live agents with one identity.",
    registry=REGISTRY,
)
dead_letters = Counter(
    "aegisflux_dead_letters_total", "Messages refused to the dead-letter stream.", registry=REGISTRY
)
over_share = Counter(
    "aegisflux_over_share_total",
    "Messages and requests put off or dropped, and edges of the graph told together, because their host used "
    "up its share, by queue; the log names the hosts with most.",
    ["queue"],
    registry=REGISTRY,
)
confirms = Counter("aegisflux_confirms_total", "Commit-confirms sent.", registry=REGISTRY)
content_chunks = Counter("aegisflux_content_chunks_total", "Chunks of content served.", registry=REGISTRY)
hosts = Gauge("aegisflux_hosts", "Hosts by whether they are heard.", ["state"], registry=REGISTRY)
dirty_hosts = Gauge(
    "aegisflux_dirty_hosts", "Hosts whose newest manifest is not published.", registry=REGISTRY
)
events_taken = Counter("aegisflux_events_taken_total", "Events that ingest let through.", registry=REGISTRY)
events_clamped = Counter(
    "aegisflux_events_clamped_total", "Events whose time lay in the future.", registry=REGISTRY
)
events_stored = Counter("aegisflux_events_stored_total", "Events that became rows.", registry=REGISTRY)
events_repeated = Counter(
    "aegisflux_events_repeated_total", "Events that came again and were known.", registry=REGISTRY
)
gaps_closed = Counter(
    "aegisflux_sequence_gaps_closed_total",
    "Gaps in the sequences of a source that left too many; what comes late for them is not stored.",
    registry=REGISTRY,
)
join_misses = Counter(
    "aegisflux_join_misses_total",
    "Joins that found nothing, by what was missing.",
    ["join"],
    registry=REGISTRY,
)
graph_dropped = Counter(
    "aegisflux_graph_edges_dropped_total",
    "Edges that the graph could not take in time; the store has their events.",
    registry=REGISTRY,
)
enrich_seconds = Histogram(
    "aegisflux_enrich_seconds",
    "Time from a pull of raw batches to their rows and their enriched form.",
    buckets=SECONDS,
    registry=REGISTRY,
)
intake_batches = Counter(
    "aegisflux_intake_batches_total",
    "Batches of hosts, by what became of them: whole, remade, refused.",
    ["outcome"],
    registry=REGISTRY,
)
intake_refused = Counter("aegisflux_intake_refused_total", "Events that ingest refused.", registry=REGISTRY)
intake_lag = Gauge(
    "aegisflux_intake_lag_messages", "Messages of hosts that ingest has not handled.", registry=REGISTRY
)
intake_waits = Counter(
    "aegisflux_intake_waits_total", "Times that the bus would not take a checked batch.", registry=REGISTRY
)


def count_over_share(queue: str, count: int) -> None:
    """So many more that were put off, dropped or told together."""
    over_share.labels(queue).inc(count)


def read_restarts(path: Path) -> None:
    """Let the pages tell what the supervisor of this process has written into a file about restarts."""
    _files[:] = [path]


def page() -> bytes:
    """All metrics in Prometheus's text format."""
    for path in _files:
        _count_restarts(path)
    return generate_latest(REGISTRY)


def _set(counter: Counter, count: int) -> None:
    """Bring a counter to what another process has counted. One that began again is a reset, as of any
    process that ended: readers of counters know those."""
    known = counter._value.get()  # the library has no other way
    if count < known:
        counter.reset()
        known = 0
    counter.inc(count - known)


def _count_restarts(path: Path) -> None:
    with suppress(OSError, ValueError, TypeError):
        for service, reason, count in json.loads(path.read_text()):
            if service in CHILDREN and reason in WHY_RESTARTED and isinstance(count, int):
                _set(restarts.labels(service, reason), count)
