#!/usr/bin/env python3
"""The pipeline's figures, over `aegisflux up` as its users start it: telemetry to stored and enriched.

    script/bench pipeline [--quick] [--rate 51000] [--seconds 120]

Everything is on this machine: the sending hosts, NATS, ingest, enrich with its graph, PostgreSQL with fsync.
Every event is a row of its own. Leaves nothing behind.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncpg
from bench.lib.pipeline_source import BASE, EVENTS, Template
from bench.lib.plane import CONTROL, Plane
from bench.lib.report import Report, parser, run
from tests.support.netns import Lab

from aegisflux.bootstrap import existing
from aegisflux.ports.bus import Message
from aegisflux.services.ingest.intake import check
from aegisflux.settings import load
from aegisflux.wire import subjects
from aegisflux.wire.events import decode_enriched

HOSTS = 50
SEEN = "select coalesce(sum(upper(r) - lower(r)), 0)::bigint from sources, unnest(seen) r"


class Bench:
    """A running plane, and a look into its store and its bus."""

    def __init__(self, report: Report, plane: Plane) -> None:
        self.report, self.plane = report, plane
        self.place = existing(load(None, {}, data_dir=str(plane.data), port_base=plane.port))

    def source(self, rate: float, seconds: float) -> "subprocess.Popen[str]":
        """Hosts that send at the rate; they begin when this returns."""
        argv = [sys.executable, "-m", "bench.lib.pipeline_source", str(self.plane.data), str(self.plane.port)]
        root = Path(__file__).resolve().parent.parent
        argv += [str(rate), str(seconds), str(HOSTS)]
        source = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root)
        assert source.stdout
        source.stdout.readline()
        return source

    async def sustained(self, rate: float, seconds: float) -> None:
        """Send at the rate; events stored a second, and how far the store is behind at each quarter."""
        store = await asyncpg.connect(self.place.dsn)
        source, behind = self.source(rate, seconds), list[int]()
        before, cpu, began = await store.fetchval(SEEN), self.cpu(), time.monotonic()
        while source.poll() is None:
            await asyncio.sleep(0.05)
            if time.monotonic() - began < (len(behind) + 1) * seconds / 8:
                continue
            stored, at = await store.fetchval(SEEN) - before, time.monotonic() - began
            behind.append(int(rate * min(at, seconds) - stored))
            self.report.say(f"{stored:>9} stored, {behind[-1]} behind the rate")
        told = json.loads(source.communicate()[0])
        while (
            await store.fetchval(SEEN) - before < told["sent"] and time.monotonic() - began < 3 * seconds + 30
        ):
            await asyncio.sleep(0.1)
        took = time.monotonic() - began
        stored, used = await store.fetchval(SEEN) - before, self.cpu() - cpu
        rows = await store.fetchval("select (select count(*) from flows) + (select count(*) from events)")
        await store.close()
        remark = f"{stored} of {told['sent']} in {took:.1f} s, sent in {told['seconds']} s; behind {behind}"
        self.report.add("pipeline_events_s", stored / took, remark)
        self.report.add("events_per_cpu_second", stored / used, "NATS, PostgreSQL and our services together")
        self.report.add("lost_or_doubled", told["sent"] - rows, "rows against events sent")

    async def latency(self, rate: float, seconds: float) -> None:
        """From an event's time to its enriched form on the bus, which comes after its row."""
        bus = self.place.bus(self.place.accounts.control_creds)
        waits: list[float] = []

        began = time.time_ns()

        async def heard(message: Message) -> None:
            """Of this run: what was stored at the end of the one before may still be on its way."""
            now = time.time_ns()
            times = [batch.events[0].event.time_ns for batch in decode_enriched(message.payload)]
            waits.extend((now - at) / 1e6 for at in times if at >= began)

        bus.open()
        await bus.ready(10)
        await bus.watch(subjects.ENRICHED, heard)
        source = self.source(rate, seconds)
        while source.poll() is None:
            await asyncio.sleep(0.2)
        source.communicate()
        await asyncio.sleep(2)
        await bus.close()
        waits.sort()
        remark = f"median {waits[len(waits) // 2]:.0f}, worst {waits[-1]:.0f}; {len(waits)} batches"
        self.report.add("pipeline_p99_ms", waits[int(len(waits) * 0.99)], remark)

    def cpu(self) -> float:
        """CPU seconds of the plane's cgroup."""
        text = (self.plane.lab.cgroup / CONTROL / "cpu.stat").read_text()
        found = dict(line.split() for line in text.splitlines())
        return int(found.get("usage_usec", 0)) / 1e6 or _busy()


def _busy() -> float:
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def decode_validate(report: Report, seconds: float) -> None:
    """Ingest's own check of batches in which all is well, on one core."""
    import random

    data = Template("bench-0", random.Random(1)).filled(BASE, time.time_ns())
    done, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        assert check(data, "bench-0", time.time_ns()).payload is data
        done += EVENTS
    rate = done / (time.process_time() - began)
    report.add("decode_validate_events_s", rate, f"{len(data) / EVENTS:.0f} bytes an event")


async def measure(report: Report, plane: Plane, args: argparse.Namespace) -> None:
    bench = Bench(report, plane)
    await bench.sustained(args.rate, 15 if args.quick else args.seconds)
    await bench.latency(10_000, 5 if args.quick else 30)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--rate", type=float, default=51_000, help="events a second")
    arguments.add_argument("--seconds", type=float, default=120, help="how long")
    args = arguments.parse_args()

    def all_of_it(report: Report) -> None:
        decode_validate(report, 1 if args.quick else 5)
        with Lab() as lab, tempfile.TemporaryDirectory() as folder, Plane(lab, Path(folder)) as plane:
            asyncio.run(measure(report, plane, args))

    return run(Report("pipeline", quick=args.quick), all_of_it)


if __name__ == "__main__":
    sys.exit(main())
