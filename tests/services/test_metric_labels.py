"""No client, host or file chooses the value of a label: the series of a metric are those of the program.

A metric with a label that is not in the table fails here: add what its values are, and who can choose them.
"""

import json
from typing import get_args

import msgspec
import pytest
from litestar.testing import TestClient

from aegisflux.domain.manifest import Nack, NackReason
from aegisflux.domain.stages import Stage
from aegisflux.runtime import http, metrics
from aegisflux.services.enrich import api as enrich
from aegisflux.services.ingest import api as ingest
from aegisflux.services.orchestrator import api as orchestrator
from aegisflux.services.segmenter import api as segmenter
from aegisflux.wire import subjects

APPLICATIONS = {one.__name__: one.application(None) for one in (orchestrator, ingest, enrich, segmenter)}
METHODS = {
    method for app in APPLICATIONS.values() for methods in http.table(app).values() for method in methods
}
ROUTES = {path for app in APPLICATIONS.values() for path in http.table(app)}
REFUSED = {
    "busy", "connection_limit", "files", "handshake", "large_body", "large_head", "malformed", "memory",
    "pipelined", "silent", "slow_body", "slow_head", "slow_reader", "token_limit",
}  # fmt: skip
STATUS = {str(status) for status in range(100, 600)}
# Subjects as the program subscribes them, streams as it reads them, and who buries dead letters.
QUEUES = {text for text in vars(subjects).values() if isinstance(text, str)}
QUEUES |= {f"dead letters of {name}" for name in (*metrics.CHILDREN, "consumers")}
VALUES = {
    "aegisflux_http_requests": {
        "method": METHODS | {http.OTHER}, "route": ROUTES | {http.NO_ROUTE}, "status": STATUS
    },
    "aegisflux_http_refused": {"reason": REFUSED},
    "aegisflux_http_connections": {"kind": {"anonymous", "authenticated"}},
    "aegisflux_http_unauthorized": {"kind": {"unknown", "enrolment"}},
    "aegisflux_service_restarts": {
        "service": set(metrics.CHILDREN), "reason": set(metrics.WHY_RESTARTED)
    },
    "aegisflux_snapshots": {"outcome": {"accepted"}},
    "aegisflux_rollout_steps": {"stage": set(get_args(Stage))},
    "aegisflux_nacks": {"reason": set(get_args(NackReason))},
    "aegisflux_hosts": {"state": {"silent", "heard"}},
    "aegisflux_over_share": {"queue": QUEUES},
    "aegisflux_join_misses": {"join": {"host", "package", "peer_host", "process"}},
    "aegisflux_intake_batches": {"outcome": {"whole", "remade", "refused"}},
}  # fmt: skip


def labelled() -> dict[str, set[str]]:
    """The metrics that have labels, with them."""
    found = {}
    for collector in list(metrics.REGISTRY._collector_to_names):
        names = getattr(collector, "_labelnames", ())
        if names:
            found[collector._name] = set(names)
    return found


def test_every_label_is_in_the_table():
    assert labelled() == {name: set(labels) for name, labels in VALUES.items()}


@pytest.mark.parametrize("name", [name for name in VALUES if name != "aegisflux_http_requests"])
def test_what_was_counted_in_this_process_is_in_the_table(name):
    """Whatever other tests of this process have asked for; some of them have routes of their own."""
    for metric in metrics.REGISTRY.collect():
        if metric.name == name:
            for sample in metric.samples:
                for label, value in sample.labels.items():
                    assert value in VALUES[name][label], sample


ODD = ["M0f3a", "get", "GET ", "PROPFIND", "\N{LATIN SMALL LETTER E WITH ACUTE}"]
PATHS = [
    "/nowhere",
    "/healthz/",
    "/healthz/x",
    "/api/v1/hosts/invented",
    "//healthz",
    "/api/v1/rollouts/7",
    "/%00",
]


@pytest.mark.parametrize("name", APPLICATIONS)
def test_invented_methods_and_paths_make_no_series(name):
    app, before = APPLICATIONS[name], series()
    client = TestClient(http.accounted(app, http.table(app)), raise_server_exceptions=False)
    for method in (*ODD, "GET", "POST", "DELETE"):
        for path in PATHS:
            client.request(method.encode("ascii", "replace").decode(), path)
    new = series() - before
    assert {method for method, _ in new} <= METHODS | {http.OTHER}
    assert {route for _, route in new} <= ROUTES | {http.NO_ROUTE}
    assert (http.OTHER, http.NO_ROUTE) in series()


def series() -> set[tuple[str, str]]:
    """The methods and routes that were counted."""
    return {
        (sample.labels["method"], sample.labels["route"])
        for metric in metrics.requests.collect()
        for sample in metric.samples
        if "method" in sample.labels
    }


def test_a_host_cannot_invent_a_reason():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"reason": "invented"}, Nack)


@pytest.mark.parametrize(
    "rows",
    [
        [["invented", "hung", 1]], [["ingest", "invented", 1]], [["ingest", "hung"]], {"ingest": 1}, 7,
        [[{}, [], 1]], [["ingest", "hung", "many"]],
    ],
)  # fmt: skip
def test_a_file_cannot_invent_a_series(tmp_path, rows):
    before = list(metrics.restarts.collect())
    path = tmp_path / "restarts.json"
    path.write_text(json.dumps(rows))
    metrics.read_restarts(path)
    try:
        metrics.page()
    finally:
        metrics._files.clear()
    assert list(metrics.restarts.collect()) == before
