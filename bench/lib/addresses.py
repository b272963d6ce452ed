"""How soon an added address is the host's own: a real agent process, whose service was refused before.

Agent, bus and control plane live in a network namespace that stands for the host; the service has a process
there and one in a namespace of its own, as containers have. A poll of its connect takes a millisecond.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from bench.lib.agent import end_agent, put, start_agent
from bench.lib.miniature import miniature
from bench.lib.report import Report
from tests.support.netns import Host, Lab, cgroup_root

PORT: Final = 9
POLL: Final = 0.001
WAIT: Final = 12.0
UNIT: Final = "unit-a.service"
POLLER: Final = """
import socket, sys, time
for line in sys.stdin:
    address, port, until = line.split()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    word, refused = "silent", 0
    while time.monotonic() < float(until):
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            try:
                s.connect((address, int(port)))
            except PermissionError:
                if not refused:
                    refused = 1
                    print("refused", flush=True)
            except OSError:
                pass
            else:
                word = str(time.monotonic())
                break
        time.sleep({poll})
    print(word, flush=True)
"""
KINDS: Final = (
    ("addr add 10.251.{0}.{1}/32 dev lo", "10.251.{0}.{1}"),
    ("addr add fd25:{0}::{1}/128 dev lo", "fd25:{0}::{1}"),
    ("route add local 10.252.{1}.0/24 dev lo", "10.252.{1}.{0}"),
    ("addr add 10.253.{0}.{1}/24 dev eth9", "10.253.{0}.{1}"),
)


def measure(report: Report) -> None:
    """About ten seconds."""
    count = 4 if report.quick else 20
    with Lab() as lab:
        container = lab.host("web")
        for host in (lab.hub, container):
            for command in ("link add eth9 type bridge", "link set eth9 up"):
                subprocess.run(["ip", "-n", host.netns, *command.split()], check=True)
        found = lab.hub.call(_inside, lab, count, cgroup="bench", timeout=300)
    parts = []
    for where, times in found.items():
        parts.append(f"{where}: median {median(times):.1f}, worst {max(times):.1f}")
    every = [took for times in found.values() for took in times]
    worst = quantiles(every, n=100, method="inclusive")[98]
    report.add("own_address_ms", worst, f"p99 of {len(every)} additions; {'; '.join(parts)}")


def _inside(lab: Lab, count: int) -> dict[str, list[float]]:
    """Milliseconds from the start of `ip` to the first connect that is let through, by namespace."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measured(lab, Path(folder), count))


async def _measured(lab: Lab, folder: Path, count: int) -> dict[str, list[float]]:
    below = lab.cgroup.relative_to(cgroup_root())
    hosts = {"host": lab.hub, "container": lab.hosts["web"]}
    async with miniature(folder, "web") as control:
        state = folder / "state"
        control.enrolled(state)
        pollers = {where: _poller(host) for where, host in hosts.items()}
        process = start_agent(state, lab)
        try:
            selectors = tuple(f"cgroup:{below}/{host.name}/{UNIT}" for host in hosts.values())
            await put(control, state, 10, selectors, 1)
            return {where: _times(host, pollers[where], count) for where, host in hosts.items()}
        finally:
            end_agent(process, state, lab)


def _poller(host: Host) -> "subprocess.Popen[bytes]":
    code = POLLER.replace("{poll}", str(POLL))
    return host.start([sys.executable, "-S", "-c", code], UNIT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _times(host: Host, poller: "subprocess.Popen[bytes]", count: int) -> list[float]:
    return [_time(host, poller, *(text.format(i // 200 + 1, i % 200 + 1) for text in KINDS[i % len(KINDS)]))
            for i in range(count)]  # fmt: skip


def _time(host: Host, poller: "subprocess.Popen[bytes]", command: str, address: str) -> float:
    assert poller.stdin
    assert poller.stdout
    poller.stdin.write(f"{address} {PORT} {time.monotonic() + WAIT}\n".encode())
    poller.stdin.flush()
    if (word := poller.stdout.readline().strip()) != b"refused":
        raise RuntimeError(
            f"{host.name}: a connect to {address} before it is added: expected refused, got {word!r}"
        )
    began = time.monotonic()
    subprocess.run(["ip", "-n", host.netns, *command.split()], check=True)
    word = poller.stdout.readline().strip()
    if word == b"silent":
        raise RuntimeError(f"{host.name}: {address} is refused {WAIT:.0f} s after {command}")
    return 1000 * (float(word) - began)
