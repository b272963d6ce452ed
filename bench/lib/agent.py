"""What an agent costs: a real agent process on the real datapath, hearing a control plane in miniature."""

import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from bench.lib.entries import RANDOM, entries
from bench.lib.miniature import Miniature, miniature
from bench.lib.plane import COMMAND, clean_environment
from bench.lib.report import Report
from tests.support.netns import Host, Lab, cgroup_root

from aegisflux.domain.snapshot import from_builtins
from aegisflux.wire.canonical import content_of

COUNT: Final = 100_000
REFUSED: Final = ("192.0.2.1", 9)
TICKS: Final = os.sysconf("SC_CLK_TCK")


def measure(report: Report) -> None:
    """About a minute, or ten seconds when quick."""
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(report, lab, Path(folder)))


async def _measure(report: Report, lab: Lab, folder: Path) -> None:
    host = lab.host("web")
    units = (f"cgroup:{lab.cgroup.relative_to(cgroup_root())}/web/unit-*",)
    async with miniature(folder, "web") as control:
        state = folder / "state"
        control.enrolled(state)
        process = start_agent(state, lab)
        try:
            await put(control, state, 10, units, 1, report)
            small = _memory(process.pid)
            await _gaps(report, host, 10 if report.quick else 100)
            await put(control, state, COUNT, units, 2, report)
            after, peak = _memory(process.pid)
            report.add("agent_rss_mb", after, f"after {COUNT} entries; {small[0]:.1f} with 10")
            report.add("agent_rss_peak_mb", peak, "the highest it ever was")
            await _idle(report, process.pid, 5 if report.quick else 30)
        finally:
            end_agent(process, state, lab)


def _settings(state: Path, lab: Lab) -> dict[str, str]:
    found = {"STATE_DIR": str(state), "ATTACH_CGROUP": str(lab.cgroup), "INSTANCE": f"bench-{lab.name}"}
    return {**clean_environment(), **{f"AEGISFLUX_AGENT_{name}": text for name, text in found.items()}}


def start_agent(state: Path, lab: Lab) -> subprocess.Popen[bytes]:
    """The agent as its command line runs it. Its log is in the state folder."""
    with (state / "log").open("wb") as log:
        return subprocess.Popen([COMMAND, "agent", "run"], env=_settings(state, lab), stdout=log, stderr=log)


def end_agent(process: subprocess.Popen[bytes], state: Path, lab: Lab) -> None:
    """End the agent, and its enforcement with it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for word in ("panic", "resume"):  # the second leaves no panic behind
        subprocess.run([COMMAND, "agent", word], env=_settings(state, lab), check=False, capture_output=True)


async def put(
    control: Miniature,
    state: Path,
    count: int,
    selectors: tuple[str, ...],
    version: int,
    report: Report | None = None,
) -> None:
    """Put a snapshot in force, and wait until the agent says so."""
    body = entries(count, RANDOM).body(version=version)
    content = await asyncio.to_thread(lambda: content_of(from_builtins(body)))
    began = time.perf_counter()
    await control.put(content, "web", selectors)
    deadline = time.monotonic() + 60
    while not any(s["digest"] == content.digest and s["state"] == "in_force" for s in _status(state)):
        if time.monotonic() > deadline:
            log = (state / "log").read_text()[-2000:]
            raise RuntimeError(f"{count} entries are not in force after 60 s; the agent's log ends:\n{log}")
        await asyncio.sleep(0.01)
    if report is not None:
        report.say(f"{count} entries in force {time.perf_counter() - began:.3f} s after their manifest")


def _status(state: Path) -> list[dict[str, Any]]:
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(state / "agent.sock"))
            line.sendall(b'{"do": "status"}\n')
            with line.makefile("rb") as answers:
                return list(json.loads(answers.readline()).get("services", []))
    except (OSError, ValueError):
        return []


def _memory(pid: int) -> tuple[float, float]:
    """(resident now, its peak) in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(fields["VmRSS"]) / 1024, int(fields["VmHWM"]) / 1024


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def _idle(report: Report, pid: int, seconds: int) -> None:
    await asyncio.sleep(3)
    before, began = _cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    used = _cpu_seconds(pid) - before
    share = 100 * used / (time.monotonic() - began)
    report.add("agent_idle_cpu_pct", share, f"{used:.2f} s of CPU in {seconds} s, heartbeat every 5 s")


async def _gaps(report: Report, host: Host, count: int) -> None:
    """A unit's cgroup is made anew; from then until its process is refused what was never allowed."""
    found: list[float] = []
    for number in range(count):
        await asyncio.sleep(0.05)
        found.append(1000 * await asyncio.to_thread(_gap, host, f"unit-{number}.service"))
    worst = quantiles(found, n=100)[98] if count >= 100 else max(found)
    remark = f"p99 of {count} restarts; median {median(found):.2f}, worst {max(found):.2f}"
    report.add("rebind_gap_ms", worst, remark)


def _gap(host: Host, unit: str) -> float:
    began = time.monotonic()
    refused = host.call(_until_refused, cgroup=unit)
    (host.cgroup / unit).rmdir()
    return refused - began


def _until_refused() -> float:
    """When the first connect was refused (on the clock that all processes share)."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                s.connect(REFUSED)
            except PermissionError:
                return time.monotonic()
            except OSError:
                continue
