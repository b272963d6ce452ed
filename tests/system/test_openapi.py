"""The published OpenAPI document against the running product, with an admin's token.

Every operation is called with generated input: no answer may be a 5xx, or of a status, type or shape that
the document does not name; and at least 60 % of the operations must have given a 2xx, so that a service
that refuses everything does not pass.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.support.engines import free_base

pytestmark = [pytest.mark.engines]
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
SHARE = 0.6
SERVICE, PLAN = 101, 1
MINIMAL = b'{"version":1,"service_id":101,"ttl_seconds":3600}'


@dataclass
class Running:
    """The control plane as `aegisflux up` starts it; `url` is the orchestrator's."""

    port: int
    token: str
    source: str = ""

    @property
    def url(self) -> str:
        return self.at(0)

    def at(self, offset: int) -> str:
        """The service that listens so many ports after the orchestrator."""
        return f"http://127.0.0.1:{self.port + offset}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data, port = tmp_path_factory.mktemp("openapi"), free_base()
    log = data / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "aegisflux",
                "up",
                "--data-dir",
                str(data / "data"),
                "--port-base",
                str(port),
            ],
            stdout=out,
            stderr=out,
            env={k: v for k, v in os.environ.items() if not k.startswith("AEGISFLUX_")},
        )
    try:
        wait_until_up(process, log)
        token = (data / "data/secrets/admin-token").read_text().strip()
        found = Running(port, token)
        request = urllib.request.Request(f"{found.url}/seg/maps", MINIMAL, found.headers)
        urllib.request.urlopen(request, timeout=10).close()
        found.source = source_of(found)
        made_plan(found)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def source_of(running: Running) -> str:
    """A token that may post the events of a host."""
    headers = {**running.headers, "Content-Type": "application/json"}
    body = b'{"name": "source", "role": "source", "host_id": "web-1"}'
    request = urllib.request.Request(f"{running.url}/api/v1/tokens", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["token"])


def made_plan(running: Running) -> None:
    """The plan that a generated case can speak of: its number is 1."""
    headers = {**running.headers, "Content-Type": "application/json"}
    url, body = f"{running.at(6)}/segment", b'{"policy": "policy: 1\\nrules: []\\n"}'
    with urllib.request.urlopen(urllib.request.Request(f"{url}/plan", body, headers), timeout=10) as answer:
        operation = json.load(answer)["id"]
    until = time.monotonic() + 60
    while True:
        asked = urllib.request.Request(f"{url}/operations/{operation}", headers=running.headers)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            found = json.load(answer)
        if found["state"] != "running":
            assert found["result"] == f"/segment/plans/{PLAN}", found
            return
        assert time.monotonic() < until, found
        time.sleep(0.05)


def wait_until_up(process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 60
    while "AegisFlux is up" not in log.read_text():
        if process.poll() is not None or time.monotonic() > until:
            raise AssertionError(log.read_text())
        time.sleep(0.05)


SERVICES = [
    pytest.param(0, 25, id="orchestrator"),
    pytest.param(2, 10, id="enrich"),
    pytest.param(5, 7, id="ingest"),
    pytest.param(6, 16, id="segmenter"),
]


@pytest.mark.parametrize(("offset", "least"), SERVICES)
def test_every_operation_answers_as_documented(running: Running, offset: int, least: int) -> None:
    url = f"{running.at(offset)}/schema/openapi.json"
    document = schemathesis.openapi.from_url(url, headers=running.headers)
    operations = [found.ok() for found in document.get_all_operations()]
    operations.sort(key=lambda each: each.method.lower() == "delete")  # what others speak of goes last
    succeeded: set[str] = set()
    wrong = [failure for each in operations for failure in failures_of(each, running, succeeded)]
    assert not wrong, "\n\n".join(wrong)
    assert len(operations) >= least
    never = sorted({each.label for each in operations} - succeeded)
    assert len(succeeded) >= SHARE * len(operations), f"never a 2xx: {never}"


def failures_of(operation: Any, running: Running, succeeded: set[str]) -> Iterator[str]:
    """Call one operation with generated input; what it answered wrongly."""

    posting = operation.label == "POST /api/v1/events"
    headers = {"Authorization": f"Bearer {running.source}"} if posting else running.headers

    @seed(1)
    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(), known=st.booleans())
    def calls(case: schemathesis.Case, known: bool) -> None:
        if known:
            aim(case)
        response = case.call(headers=headers)
        case.validate_response(response, checks=CHECKS)
        if 200 <= response.status_code < 300:
            succeeded.add(operation.label)

    try:
        calls()
    except Exception as error:
        yield f"{operation.label}: {error}"


def aim(case: schemathesis.Case) -> None:
    """Let a generated case speak of the service and the plan that exist."""
    if case.path.startswith("/segment/plans/{number}"):
        case.path_parameters["number"] = PLAN
    if "service_id" in (case.path_parameters or {}):
        case.path_parameters["service_id"] = SERVICE
    if case.path == "/seg/maps/promote":
        case.body = {"service_id": SERVICE}
    if case.path == "/seg/maps/rollback":
        case.body = {"service_id": SERVICE, "to_version": 1}
    if case.path == "/seg/maps/{service_id}/why":
        case.query = {"peer": "10.0.0.1"}
    if case.path == "/api/v1/services/{service_id}/health":
        case.body = {"healthy": True}
