"""What a benchmark prints: progress on stderr, a table, and one JSON object as the last line."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct
from tests.support import leftovers

Better = Literal["<=", ">="]
QUICK: Final = "short runs, to see that everything works"


class Target(Struct, frozen=True):
    """The figure is good when `figure better value`."""

    better: Better
    value: float

    def met(self, figure: float) -> bool:
        return figure <= self.value if self.better == "<=" else figure >= self.value

    def __str__(self) -> str:
        return f"{self.better} {self.value:g}"


TARGETS: Final = {
    "own_address_ms": Target("<=", 1000.0),
    "new_flow_ratio_100k": Target("<=", 2.0),
    "established_ratio": Target("<=", 2.5),
    "apply_ratio_nft": Target("<=", 0.25),
    "post_100k_s": Target("<=", 5.0),
    "enforce_p99_ms": Target("<=", 250.0),
    "fleet_1000_s": Target("<=", 5.0),
    "reconnect_storm_1000_s": Target("<=", 30.0),
    "renewals_s": Target(">=", 500.0),
    "rebind_gap_ms": Target("<=", 50.0),
    "agent_rss_mb": Target("<=", 60.0),
    "agent_rss_peak_mb": Target("<=", 60.0),
    "agent_idle_cpu_pct": Target("<=", 0.5),
    "pipeline_events_s": Target(">=", 50_000.0),
    "pipeline_p99_ms": Target("<=", 2000.0),
    "decode_validate_events_s": Target(">=", 500_000.0),
    "flow_accounting_ns": Target("<=", 150.0),
    "exec_overhead_pct": Target("<=", 5.0),
    "traffic_connect_ratio": Target("<=", 1.15),
    "traffic_round_trip_ratio": Target("<=", 1.15),
    "traffic_datagram_ratio": Target("<=", 1.15),
    "neighbour_p99_ms": Target("<=", 2000.0),
    "neighbour_healthz_ms": Target("<=", 1000.0),
    "panic_ms": Target("<=", 2000.0),
    "neighbour_rss_mb": Target("<=", 500.0),
    "neighbour_nats_rss_mb": Target("<=", 500.0),
    "foreign_bytes": Target("<=", 0.0),
    "forged_nacks": Target("<=", 0.0),
    "suppressed_batches": Target("<=", 0.0),
    "unapproved_enforced": Target("<=", 0.0),
    "lost_or_doubled": Target("<=", 0.0),
}


class Report:
    """Figures with their units and remarks; a figure that could not be measured says why, and is null."""

    def __init__(self, name: str, *, quick: bool, targets: Mapping[str, Target] = TARGETS) -> None:
        self.name, self.quick, self.targets = name, quick, targets
        self._rows: list[tuple[str, float | None, str]] = []
        self._began = time.monotonic()
        self._busy, self._ours = _busy_seconds(), _our_seconds()

    def add(self, name: str, value: float | None, remark: str = "") -> None:
        """One figure, or (None) why there is none."""
        self._rows.append((name, value, remark))
        self.say(f"{name} = {_shown(value)}  {remark}")

    def say(self, text: str) -> None:
        """Progress."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)

    def print(self) -> None:
        """The table, then the JSON object."""
        print(f"\nbench/{self.name}.py{' --quick (short runs: not for comparing)' if self.quick else ''}\n")
        for line in _table([("figure", "measured", "target", "", "remark"), *map(self._row, self._rows)]):
            print(line)
        print(f"\nother programs used {self.elsewhere():.2f} of {os.cpu_count()} cores meanwhile")
        print(json.dumps(self.as_json()))

    def _row(self, row: tuple[str, float | None, str]) -> tuple[str, ...]:
        name, value, remark = row
        target = self.targets.get(name)
        word = "" if target is None or value is None else "met" if target.met(value) else "MISSED"
        return name, _shown(value), str(target or ""), word, remark

    def elsewhere(self) -> float:
        """Cores that programs which are not ours used since the start, once ours have ended."""
        used = (_busy_seconds() - self._busy) - (_our_seconds() - self._ours)
        return max(0.0, used / (time.monotonic() - self._began))

    def as_json(self) -> dict[str, Any]:
        """Figures by name, their targets, and those that were missed or not measured."""
        figures = {name: None if v is None else round(v, 4) for name, v, _ in self._rows}
        targets = {name: str(self.targets[name]) for name in figures if name in self.targets}
        return {
            "bench": self.name,
            "quick": self.quick,
            "figures": figures,
            "targets": targets,
            "missed": [n for n in targets if (v := figures[n]) is not None and not self.targets[n].met(v)],
            "cores": os.cpu_count(),
            "cores_used_elsewhere": round(self.elsewhere(), 2),
            "unmeasured": {name: remark for name, v, remark in self._rows if v is None},
        }


def parser(said: str | None, quick: str = QUICK) -> argparse.ArgumentParser:
    """The arguments of every benchmark, whose docstring is its help."""
    found = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--quick", action="store_true", help=quick)
    return found


def add_only(to: argparse.ArgumentParser, parts: Collection[str]) -> None:
    """Let `--only` name some of these parts; it is a list of names, all of them where it is absent."""

    def chosen(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(parts):
            got = ", ".join(sorted(unknown))
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(parts)}, got {got}")
        return text.split(",")

    to.add_argument("--only", type=chosen, default=list(parts), help="some of: " + ", ".join(parts))


def run(report: Report, measure: Callable[[Report], object]) -> int:
    """Measure, and print what was measured however that ends; the exit status of the benchmark.

    SIGTERM ends it as an exception, so that whatever it started and made is taken away. What is still there
    after that is a failure; it is named and removed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        measure(report)
    except KeyboardInterrupt:
        report.say("interrupted")
        return 130
    finally:
        left = leftovers.of_this_process()
        leftovers.remove(left)
        if left:
            report.say(f"left behind, and removed now: {', '.join(map(str, left))}")
        report.print()
    return 1 if left else 0


def _busy_seconds() -> float:
    """Seconds of all cores that were neither idle nor waiting."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _our_seconds() -> float:
    """CPU time of this process and of all that ended below it."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    kept = list(rows)
    widths = [max(len(row[i]) for row in kept) for i in range(5)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in kept
    ]
