"""What an agent costs that tells 5,000 events a second of the real kernel."""

import asyncio
import sys
import tempfile
from pathlib import Path

from bench.lib.agent import TICKS, _memory, end_agent, start_agent
from bench.lib.miniature import miniature
from bench.lib.report import Report
from tests.support.netns import Lab

from aegisflux.wire import subjects
from aegisflux.wire.events import decode_batch

RATE = 5000
SETTLED = 2  # turns of five seconds
SENDER = """
import socket, sys, time
rate, seconds = int(sys.argv[1]), float(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    began, sent = time.monotonic(), 0
    while sent < rate * seconds:
        for _ in range(rate // 50):
            n = sent % 50_000
            s.sendto(b"x", (f"10.77.0.{3 + n // 10_000}", 10_000 + n % 10_000))
            sent += 1
        time.sleep(max(0, began + sent / rate - time.monotonic()))
"""


def measure(report: Report) -> None:
    """A minute, or twenty seconds when quick: each flow is one event of a turn of five seconds."""
    seconds = 20 if report.quick else 60
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        host = lab.host("web")
        for name in ("a", "b", "c", "d", "e"):
            lab.host(name)
        asyncio.run(_measure(report, lab, host, Path(folder), seconds))


async def _measure(report: Report, lab: Lab, host, folder: Path, seconds: int) -> None:
    heard, lost = 0, {}
    async with miniature(folder, "web") as control:
        state = folder / "state"
        control.enrolled(state)

        async def take(messages) -> None:
            nonlocal heard, lost
            for message in messages:
                batch = decode_batch(message.payload)
                heard, lost = heard + len(batch.events), batch.lost

        await control.bus.consume(subjects.stream_of(subjects.ALL_TELEMETRY).name, "ingest", take)
        process = start_agent(state, lab)
        sender = None
        try:
            await asyncio.sleep(8)  # its start, and its look at the packages
            sender = host.start([sys.executable, "-S", "-c", SENDER, str(RATE), str(seconds)], "sender")
            used, most, counts = _cpu(process.pid), 0.0, []
            for _ in range(2 * seconds):
                await asyncio.sleep(0.5)
                most = max(most, _memory(process.pid)[0])
                counts.append(heard)
            used = _cpu(process.pid) - used
            turns = 10 * SETTLED  # half seconds before the rate is steady
            told = (counts[-1] - counts[turns - 1]) / ((len(counts) - turns) / 2)
        finally:
            if sender is not None:
                sender.kill()
            end_agent(process, state, lab)
    words = f"the most while {told:.0f} events a second were told, {sum(lost.values())} lost"
    report.add("agent_rss_mb", most, words)
    report.add("agent_telling_cpu_pct", 100 * used / seconds, "of one core")


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
