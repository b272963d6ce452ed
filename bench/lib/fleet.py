"""A fleet on one machine: one post to all acks stored, a restart of the bus, manifests a second."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Final

from bench.lib.entries import RANDOM, entries
from bench.lib.plane import Plane, clean_environment, until
from bench.lib.report import Report
from tests.support.netns import enter

SERVICE, LABEL, ENTRIES = 202, "many", 1000
WORKERS: Final = 2
ROOT: Final = Path(__file__).resolve().parent.parent.parent


def measure(report: Report, plane: Plane, size: int) -> None:
    """About two minutes with 1,000 agents."""
    rounds = 2 if report.quick else 5
    plane.service(SERVICE, LABEL, f"cgroup:{LABEL}/app.service")
    hosts = [f"fleet-{number:04}" for number in range(size)]
    with _agents(report, plane, hosts):
        version = _posts(report, plane, size, rounds)
        version = _storm(report, plane, size, version)
    _renewals(report, plane, size, version, rounds)


def _posts(report: Report, plane: Plane, size: int, rounds: int) -> int:
    """The first post is a warm-up: it gives every agent its service."""
    seconds = []
    for version in range(1, rounds + 2):
        began = _posted(plane, version)
        _acked(plane, size, version, 120)
        seconds.append(time.perf_counter() - began)
        report.say(f"version {version}: {size} acks stored after {seconds[-1]:.2f} s")
        time.sleep(2)
    remark = f"median of {rounds} posts of {ENTRIES} entries; worst {max(seconds[1:]):.2f}; {size} agents"
    report.add(f"fleet_{size}_s", median(seconds[1:]), remark)
    return version


def _storm(report: Report, plane: Plane, size: int, version: int) -> int:
    """NATS is killed, a version is posted while it is away: from the kill to all acks of that version."""
    began = time.perf_counter()
    pid = plane.kill("nats-server")
    _posted(plane, version + 1)
    report.say(f"killed nats-server (process {pid}), posted version {version + 1}")
    _acked(plane, size, version + 1, 120)
    took = time.perf_counter() - began
    report.add(
        f"reconnect_storm_{size}_s", took, f"kill -9 of NATS to {size} acks of a version posted meanwhile"
    )
    return version + 1


def _renewals(report: Report, plane: Plane, size: int, version: int, rounds: int) -> None:
    """Manifests of all hosts, signed, stored and published; their agents are gone."""
    rates = []
    for number in range(1, rounds + 1):
        before, counter = time.perf_counter(), "aegisflux_manifests_total"
        start = plane.metric(counter)
        _posted(plane, version + number)
        while plane.metric(counter) < start + size:
            time.sleep(0.01)
        rates.append(size / (time.perf_counter() - before))
        report.say(f"{rates[-1]:.0f} manifests a second")
    report.add("renewals_s", median(rates), f"median of {rounds} rounds of {size} hosts, the post included")


def _posted(plane: Plane, version: int) -> float:
    """When the post began."""
    body = entries(ENTRIES, RANDOM, version).body(SERVICE, version)
    began = time.perf_counter()
    plane.call("POST", "/seg/maps", body)
    return began


def _acked(plane: Plane, size: int, version: int, seconds: float) -> None:
    def count() -> int:
        return plane.in_force(SERVICE, version)

    until(lambda: count() >= size, seconds, lambda: f"{count()} of {size} acks of version {version}", 0.1)


@contextmanager
def _agents(report: Report, plane: Plane, hosts: list[str]) -> Iterator[None]:
    """Agents of these names, enrolled and connected, in a process for each core."""
    began = time.monotonic()
    workers: list[subprocess.Popen[bytes]] = []
    (plane.lab.cgroup / LABEL).mkdir()
    try:
        workers.extend(_worker(plane, number) for number in range(WORKERS))
        for number, worker in enumerate(workers):
            assert worker.stdin
            for host in hosts[number::WORKERS]:
                worker.stdin.write(f"{host} {plane.token(LABEL, host)}\n".encode())
            worker.stdin.write(b"\n")
            worker.stdin.flush()
        for worker in workers:
            assert worker.stdout
            if worker.stdout.readline() != b"ready\n":
                raise RuntimeError(f"a worker ended; its log: {_log(plane)}")
        report.say(f"{len(hosts)} agents enrolled and connected after {time.monotonic() - began:.1f} s")
        yield
    finally:
        for worker in workers:
            _ended(worker)


def _worker(plane: Plane, number: int) -> "subprocess.Popen[bytes]":
    with (plane.folder / f"fleet-{number}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.lib.fleet_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=clean_environment(),
            preexec_fn=lambda: enter(None, plane.lab.cgroup / LABEL),  # noqa: PLW1509
        )  # fmt: skip


def _ended(worker: "subprocess.Popen[bytes]") -> None:
    with suppress(OSError):
        if worker.stdin:
            worker.stdin.close()
    try:
        worker.wait(15)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _log(plane: Plane) -> str:
    return "".join(path.read_text()[-1000:] for path in sorted(plane.folder.glob("fleet-*.log")))
