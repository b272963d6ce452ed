"""Nobody without a token takes a service away: each way to try it, on real services, while others work.

A row for each attack of bench/lib/attacks_http.py. Meanwhile /healthz and an operator's panic, from the same
address as the attacker, are answered in time, memory stays bounded, and the attack is cut off for its reason.
"""

import json
import os
import signal
import stat

import pytest
from bench.lib import attacks_http
from tests.support.floods import counters, felt_during
from tests.support.rows import by_day
from tests.support.up import running_up

pytestmark = pytest.mark.engines
OUTSIDE = "127.0.0.2"  # TLS is on every address but 127.0.0.1
SECONDS = 2.5
HEALTHZ, PANIC = 1.0, 2.0  # seconds; the targets of bench/neighbour.py, there as p99
WORST = 6.0  # of one answer, on a machine that does other things too
MEMORY = 500  # MiB


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with running_up(tmp_path_factory.mktemp("network"), AEGISFLUX_LISTEN=OUTSIDE) as up:
        yield up


CUT = {
    "silent": "connection_limit",
    "slow_heads": "connection_limit",
    "half_requests": "connection_limit",
    "large_bodies": "large_body",
    "slow_bodies": "connection_limit",
    "slow_readers": "connection_limit",
    "giant_heads": "large_head",
    "invented": "malformed",
    "enrolments": "enrolment",
    "bearers": "unknown",
    "h2": "malformed",
    "pipelined": "pipelined",
    "probes": "",
}


def test_every_attack_has_its_row():
    assert {*CUT, "tls_garbage", "token_reads", "token_bodies"} == set(attacks_http.ATTACKS)


def cut_off(up, reason: str) -> float:
    found = counters(up, "aegisflux_http_refused_total") | counters(up, "aegisflux_http_unauthorized_total")
    return sum(count for labels, count in found.items() if f'"{reason}"' in labels)


def in_time(felt) -> None:
    assert not felt.wrong, felt.wrong[:5]
    assert felt.median("healthz") <= HEALTHZ, felt.seconds
    assert felt.median("panic") <= PANIC, felt.seconds
    assert felt.median("write") <= PANIC, felt.seconds
    assert max(felt.seconds["healthz"] + felt.seconds["panic"]) <= WORST, felt.seconds
    assert felt.memory <= MEMORY


# Relatives of the others: at night.
NIGHTLY = {"slow_heads", "half_requests", "slow_bodies", "giant_heads", "h2", "pipelined"}


@pytest.mark.parametrize("name", by_day(CUT, CUT.keys() - NIGHTLY))
def test_others_are_answered_in_time_during(up, name):
    before = cut_off(up, CUT[name])
    series = len(counters(up, "aegisflux_http_requests_total"))
    felt, told = felt_during(up, name, SECONDS)
    in_time(felt)
    assert told["made"] > 0
    if CUT[name]:
        assert cut_off(up, CUT[name]) > before
    assert len(counters(up, "aegisflux_http_requests_total")) <= series + 8


def test_tls_that_is_none_takes_no_service_away(up):
    felt, told = felt_during(up, "tls_garbage", SECONDS, host=OUTSIDE)
    in_time(felt)
    assert told["made"] > 0


def test_made_up_enrolments_take_no_lock_and_leave_no_line(up):
    before = audit_lines(up)
    felt, told = felt_during(up, "enrolments", 1.5)
    assert set(told["answers"]) <= {"403", "429", "none"}
    assert told["answers"]["403"] > 0
    assert audit_lines(up) - before == len(felt.seconds["write"])


def audit_lines(up) -> int:
    return up.call("GET", "/api/v1/audit?limit=1").json["items"][0]["seq"]


def test_what_a_client_invents_is_no_label(up):
    known = set(up.call("GET", "/schema/openapi.json").json["paths"]) | {
        "none",
        "/schema",
        "/schema/openapi.json",
    }
    for labels in counters(up, "aegisflux_http_requests_total"):
        parts = dict(part.split("=", 1) for part in labels.strip("{}").split(","))
        assert json.loads(parts["method"]) in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "other"}
        assert json.loads(parts["route"]) in known
        assert json.loads(parts["status"]).isdigit()


@pytest.mark.parametrize("service", ["ingest", "orchestrator"])
def test_a_service_that_is_stopped_is_restarted_and_counted(up, service):
    """Its sockets still take connections: only its event loop says nothing."""
    pid = up.pid(service)
    os.kill(pid, signal.SIGSTOP)
    up.until(lambda: up.pid(service) != pid, 30)
    up.wait_ready()
    assert f"{service}: hung" in up.log.read_text()
    assert f'service="{service}"' in str(counters(up, "aegisflux_service_restarts_total"))
    assert (
        sum(n for labels, n in counters(up, "aegisflux_service_restarts_total").items() if "hung" in labels)
        >= 1
    )


def test_no_attack_made_the_supervisor_restart_anything(up):
    """Runs after the floods: what was restarted is what was stopped above."""
    lines = [line for line in up.log.read_text().splitlines() if ": hung" in line or ": died" in line]
    assert len(lines) <= 2, lines


def test_nobody_else_reads_what_the_control_plane_writes(up):
    """Logs hold what hosts and clients chose; the kind is every file of the data folder."""
    open_to_others = [
        str(path)
        for path in up.data.rglob("*")
        if not path.is_symlink() and stat.S_IMODE(path.lstat().st_mode) & 0o077
    ]
    assert not open_to_others
    assert (up.data / "log" / "orchestrator.log").stat().st_size > 0
