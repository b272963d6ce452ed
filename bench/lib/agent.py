"""What an agent costs: a real agent process on the real datapath, hearing a control plane in miniature.

The host is idle and has 1,000 packages: the agent sees a prepared `/var/lib` in a mount namespace of its own.
Telemetry is on, and the bench fails where a source of it is not open or the packages were not counted. CPU
time is that of all threads, living and ended, and of children, from a minute after the start.
"""

import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from bench.lib.entries import RANDOM, entries
from bench.lib.miniature import Miniature, miniature
from bench.lib.plane import COMMAND, clean_environment
from bench.lib.report import Report
from tests.support.netns import Host, Lab, cgroup_root

from aegisflux.adapters.datapath.bpf.datapath import BPFFS
from aegisflux.adapters.datapath.bpf.pins import mounted_bpffs
from aegisflux.domain.snapshot import from_builtins
from aegisflux.wire.canonical import content_of

COUNT: Final = 100_000
REFUSED: Final = ("192.0.2.1", 9)
TICKS: Final = os.sysconf("SC_CLK_TCK")
PACKAGES: Final = 1000
FILES_EACH: Final = 100
SETTLED, WINDOW = 60.0, 60.0
PROC_CLOCK: Final = 2  # CPUCLOCK_SCHED of a process, as clock_getcpuclockid makes its number
ALONE: Final = 'mount --bind "$0" /var/lib && exec "$@"'


def measure(report: Report) -> None:
    """Two minutes, or 20 seconds when quick."""
    mounted_bpffs(BPFFS)
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(report, lab, Path(folder)))


async def _measure(report: Report, lab: Lab, folder: Path) -> None:
    host = lab.host("web")
    host.below("unit-here.service")  # what matches nothing is not in force
    units = (f"cgroup:{lab.cgroup.relative_to(cgroup_root())}/web/unit-*",)
    async with miniature(folder, "web") as control:
        state = folder / "state"
        control.enrolled(state)
        process, began = start_agent(state, lab, _packages(folder / "lib")), time.monotonic()
        try:
            await put(control, state, 10, units, 1, report)
            small = _memory(process.pid)
            await _gaps(report, host, 10 if report.quick else 100)
            await put(control, state, COUNT, units, 2, report)
            after, _ = _memory(process.pid)
            report.add("agent_rss_mb", after, f"after {COUNT} entries; {small[0]:.1f} with 10")
            await _idle(report, process.pid, state, began)
            report.add("agent_rss_peak_mb", _memory(process.pid)[1], "the highest it ever was")
        finally:
            end_agent(process, state, lab)


def _settings(state: Path, lab: Lab) -> dict[str, str]:
    found = {"STATE_DIR": str(state), "ATTACH_CGROUP": str(lab.cgroup), "INSTANCE": f"bench-{lab.name}"}
    return {**clean_environment(), **{f"AEGISFLUX_AGENT_{name}": text for name, text in found.items()}}


def _packages(folder: Path) -> Path:
    """A `/var/lib` with a package database of Debian's form."""
    info = folder / "dpkg" / "info"
    info.mkdir(parents=True)
    programs = sorted(Path("/usr/bin").iterdir())
    entries = []
    for number in range(PACKAGES):
        name = f"bench-{number:04}"
        entries.append(
            f"Package: {name}\nStatus: install ok installed\nPriority: optional\nSection: misc\n"
            f"Architecture: amd64\nVersion: 1.{number}-1\nDescription: package {number} of the bench\n"
        )
        files = [f"/usr/share/{name}/{i}" for i in range(FILES_EACH - 1)]
        files.append(str(programs[number % len(programs)]))
        (info / f"{name}.list").write_text("".join(f"{file}\n" for file in files))
    (folder / "dpkg" / "status").write_text("\n".join(entries))
    return folder


def start_agent(state: Path, lab: Lab, packages: Path | None = None) -> subprocess.Popen[bytes]:
    """The agent as its command line runs it, but for `/var/lib`. Its log is in the state folder."""
    alone = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ALONE, str(packages)]
    with (state / "log").open("wb") as log:
        return subprocess.Popen(
            [*(alone if packages else ()), COMMAND, "agent", "run"],
            env=_settings(state, lab),
            stdout=log,
            stderr=log,
        )


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
    while not any(
        s["digest"] == content.digest and s["state"] == "in_force" for s in _status(state).get("services", [])
    ):
        if time.monotonic() > deadline:
            log = (state / "log").read_text()[-2000:]
            raise RuntimeError(f"{count} entries are not in force after 60 s; the agent's log ends:\n{log}")
        await asyncio.sleep(0.01)
    if report is not None:
        report.say(f"{count} entries in force {time.perf_counter() - began:.3f} s after their manifest")


def _status(state: Path) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(state / "agent.sock"))
            line.sendall(b'{"do": "status"}\n')
            with line.makefile("rb") as answers:
                return dict(json.loads(answers.readline()))
    except (OSError, ValueError):
        return {}


def _memory(pid: int) -> tuple[float, float]:
    """(resident now, its peak) in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(fields["VmRSS"]) / 1024, int(fields["VmHWM"]) / 1024


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(~pid << 3 | PROC_CLOCK) + (int(fields[13]) + int(fields[14])) / TICKS


async def _idle(report: Report, pid: int, state: Path, began: float) -> None:
    settled, window = (10.0, 5.0) if report.quick else (SETTLED, WINDOW)
    await asyncio.sleep(max(0.0, began + settled - time.monotonic()))
    told = _told(state)
    report.say(f"telemetry is on: {told}")
    before, at = _cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(window)
    used, seconds = _cpu_seconds(pid) - before, time.monotonic() - at
    remark = f"{1000 * used:.0f} ms of CPU in {seconds:.0f} s, {at - began:.0f} s after the start; {told}"
    report.add("agent_idle_cpu_pct", 100 * used / seconds, remark)


def _told(state: Path) -> str:
    """What the agent tells of its host; raises RuntimeError where that is not all."""
    told = _status(state).get("telemetry") or {}
    sources, inventory = told.get("sources", {}), str(told.get("inventory", "no inventory"))
    if not sources or set(sources.values()) != {"open"} or int(inventory.split(maxsplit=1)[0]) < PACKAGES:
        raise RuntimeError(f"expected open sources and {PACKAGES} packages, got {sources}, {inventory}")
    return f"{', '.join(sources)}, {inventory}"


async def _gaps(report: Report, host: Host, count: int) -> None:
    """A unit's cgroup is made anew; from then until its process is refused what was never allowed. A restart
    has a path that was selected before, and is bound by the kernel; a new path waits for the agent."""
    known = await _all_gaps(host, ["unit-again.service"] * (count + 1))
    fresh = await _all_gaps(host, [f"unit-{number}.service" for number in range(count)])
    for name, found, what in (("rebind_gap_ms", known[1:], "restarts"), ("bind_gap_ms", fresh, "new paths")):
        worst = quantiles(found, n=100)[98] if count >= 100 else max(found)
        remark = f"p99 of {count} {what}; median {median(found):.2f}, worst {max(found):.2f}"
        report.add(name, worst, remark)


async def _all_gaps(host: Host, units: Sequence[str]) -> list[float]:
    """ms of each unit, one after the other."""
    found: list[float] = []
    for unit in units:
        await asyncio.sleep(0.05)
        found.append(1000 * await asyncio.to_thread(_gap, host, unit))
    return found


def _gap(host: Host, unit: str) -> float:
    gap = host.call(_until_refused, cgroup=unit)
    (host.cgroup / unit).rmdir()
    return gap


def _until_refused() -> float:
    """Seconds that this process runs until a connect of its own is refused; none where the first one is."""
    began, passed = time.monotonic(), 0
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                s.connect(REFUSED)
            except PermissionError:
                return time.monotonic() - began if passed else 0.0
            except OSError:
                pass
            passed += 1
