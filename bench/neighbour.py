#!/usr/bin/env python3
"""What an honest host and an operator notice of hostile neighbours, over `aegisflux up`.

    script/bench neighbour [--quick] [--only acks-in-range,content-requests]

Each attack runs for 30 s (5 s when quick) in a process of its own, with the credentials of an enrolled host,
while another host acks, beats, fetches contents and sends events, and an operator asks for health and panic.
Before that, random histories of posts, promotions, rollouts and all that undoes them, by four people.
Times run until PostgreSQL has what was said. Leaves nothing behind.
"""

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncpg
from bench.lib.attacks import ATTACKS
from bench.lib.honest import KINDS, SERVICE, Honest, Times
from bench.lib.report import Report, add_only, parser, run
from tests.support import histories
from tests.support.neighbours import Neighbour, Site, enrolled, speaking, within
from tests.support.up import Up, running_up

from aegisflux.bootstrap import existing
from aegisflux.settings import load

ROOT = Path(__file__).resolve().parent.parent
ATTACK_SECONDS, QUICK_SECONDS = 30.0, 5.0
CALM_SECONDS = 2.0
HISTORIES, QUICK_HISTORIES, STEPS = 100_000, 2_000, 14


def main() -> int:
    arguments = parser(__doc__)
    add_only(arguments, tuple(ATTACKS))
    args = arguments.parse_args()
    seconds = QUICK_SECONDS if args.quick else ATTACK_SECONDS

    def all_of_it(report: Report) -> None:
        unapproved(report, QUICK_HISTORIES if args.quick else HISTORIES)
        measure(report, args.only, seconds)

    return run(Report("neighbour", quick=args.quick), all_of_it)


def unapproved(report: Report, count: int) -> None:
    """Random histories after which a host enforces what nobody approved for it; seeds from 0."""
    found = 0
    for seed in range(count):
        try:
            histories.play(random.Random(seed).randrange, STEPS)
        except histories.Wrong as wrong:
            found += 1
            report.say(f"seed {seed}: {wrong}")
    report.add("unapproved_enforced", found, f"of {count} histories of {STEPS} steps")


def measure(report: Report, names: Sequence[str], seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder, running_up(Path(folder)) as up:
        report.say("the control plane is ready")
        prepare(up)
        honest, attacker = enrolled(up, "honest"), armed(up, enrolled(up, "attacker"))
        path = attacker.write(Path(folder) / "attacker.site")
        asyncio.run(measured(report, up, honest, path, names, seconds))


def prepare(up: Up) -> None:
    """A service that every neighbour runs, with a snapshot."""
    body = {"id": SERVICE, "name": "web", "selectors": [], "host_labels": {"role": "neighbour"}}
    assert up.call("POST", "/api/v1/services", body).status in (200, 201)
    edges = [{"dst_cidr": "10.0.0.0/8", "proto": "tcp", "port": 443}]
    posted = up.call(
        "POST", "/seg/maps", {"version": 1, "service_id": SERVICE, "ttl_seconds": 86_400, "edges": edges}
    )
    assert posted.status == 200, posted.body


def armed(up: Up, site: Site) -> Site:
    """With the token of a source of events."""
    asked = {"name": "attacker-events", "role": "source", "host_id": site.host}
    made = up.call("POST", "/api/v1/tokens", asked)
    assert made.status == 201, made.body
    return Site(
        **{name: getattr(site, name) for name in site.__struct_fields__[:-1]}, source_token=made.json["token"]
    )


async def measured(
    report: Report, up: Up, site: Site, attacker: Path, names: Sequence[str], seconds: float
) -> None:
    dsn = existing(load(None, {}, data_dir=str(up.data), port_base=up.port)).dsn
    store = await asyncpg.create_pool(dsn, min_size=2, max_size=6)
    try:
        async with speaking(site) as host:
            await host.follow()
            await until_in_force(host)
            honest = Honest(up, host, store)
            rounds = await attacked(report, honest, attacker, names, seconds)
            await summed(report, honest, host, rounds)
    finally:
        await store.close()


async def until_in_force(host: Neighbour) -> None:
    """Until a manifest names a content."""

    async def named() -> bool:
        return bool(host.digest)

    await within(30, named)


async def attacked(
    report: Report, honest: Honest, attacker: Path, names: Sequence[str], seconds: float
) -> dict[str, Times]:
    """Times by attack; `calm` is before the first."""
    rounds = {"calm": Times()}
    await honest.work(rounds["calm"], time.monotonic() + CALM_SECONDS)
    for name in names:
        times = rounds[name] = Times()
        argv = [sys.executable, "-m", "bench.lib.attacks", name, str(attacker), str(seconds)]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                await asyncio.to_thread(process.stdout.readline)
                await honest.work(times, time.monotonic() + seconds)
                out, err = await asyncio.to_thread(process.communicate, timeout=120)
            finally:
                process.kill()
        said = ", ".join(f"{kind} {times.p99(kind):.0f}" for kind in (*KINDS, "healthz", "panic"))
        tries = out.decode().strip() or f"it failed: {err.decode()[-300:]}"
        size, largest = times.largest()
        rss = f"{largest} has {size:.0f} MB"
        report.say(f"{name}: {tries} tries; p99 in ms: {said}; not stored: {times.lost}; {rss}")
    return rounds


async def summed(report: Report, honest: Honest, host: Neighbour, rounds: dict[str, Times]) -> None:
    """The figures: the worst of all attacks, and under which it was."""
    under = {name: times for name, times in rounds.items() if name != "calm"}
    for figure, kinds in (
        ("neighbour_p99_ms", KINDS),
        ("neighbour_healthz_ms", ("healthz", "healthz of ingest")),
        ("panic_ms", ("panic",)),
    ):
        worst = max(under, key=lambda name, of=kinds: under[name].p99(*of))  # type: ignore[misc]
        kind = max(kinds, key=under[worst].p99)
        calm = rounds["calm"].p99(*kinds)
        report.add(figure, under[worst].p99(*kinds), f"{kind} under {worst}; {calm:.0f} without an attack")
    size, name = max(times.largest() for times in rounds.values())
    report.add("neighbour_rss_mb", size, f"{name}, the largest of our services")
    report.add("neighbour_nats_rss_mb", max(times.rss.get("nats", 0.0) for times in rounds.values()))
    report.add("foreign_bytes", host.foreign, "on the subjects of the honest host, not of the control plane")
    report.add("forged_nacks", await honest.forged())
    report.add("suppressed_batches", await honest.suppressed(), f"of {len(honest.batches)}")


if __name__ == "__main__":
    sys.exit(main())
