#!/usr/bin/env python3
"""The segmenter's figures: what mining finds in synthetic fleets whose truth is known, and how fast.

    script/bench segment [--quick] [--only quality,poison,speed] [--seeds 5]

Fleets are made by `aegisflux.domain.segment.fleets`; those on which community detection, at its best of ten
settings, does better than an adjusted Rand index of 0.4 are passed over, and named.
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lib import mining, simulation
from bench.lib.report import TARGETS, Report, Target, add_only, parser, run

from aegisflux.domain.segment.fleets import Plan, make
from aegisflux.domain.segment.propose import propose

FORECAST_SEEDS = 20
OURS = {
    **TARGETS,
    "mining_ari": Target(">=", 0.96),
    "cover_later": Target(">=", 0.985),
    "over_permission": Target("<=", 0.02),
    "poison_learned": Target("<=", 0.02),
    "forecast_calibration": Target(">=", 0.85),
    "forecast_width_ratio": Target("<=", 3.0),
    "propose_s": Target("<=", 30.0),
    "simulate_flows_s": Target(">=", 2_000_000.0),
}


def quality(report, args):
    rows = []
    for seed, fleet, community in mining.fleets(Plan(), args.seeds, args.first):
        found = mining.mined(fleet)
        row = (
            mining.grouping_ari(fleet, found),
            mining.cover_later(fleet, found),
            mining.over_permission(fleet, mining.allowed_keys(fleet, found)),
        )
        rows.append((*row, community))
        report.say(
            f"seed {seed}: ARI {row[0]:.4f} (community detection {community:.3f}), "
            f"cover_later {row[1]:.4f}, over_permission {row[2]:.4f}"
        )
    middle = np.median(rows, axis=0)
    for name, value in zip(
        ("mining_ari", "cover_later", "over_permission", "community_ari"), middle, strict=True
    ):
        report.add(name, round(float(value), 4))


def poison(report, args):
    shares = []
    for seed, fleet, _ in mining.fleets(Plan(poison=0.05), args.seeds, args.first):
        found = mining.mined(fleet)
        shares.append(float(np.isin(fleet.poison, mining.allowed_keys(fleet, found)).mean()))
        report.say(f"seed {seed}: {shares[-1]:.4f} of {len(fleet.poison)} poisoned tuples learned")
    report.add("poison_learned", round(float(np.median(shares)), 4))


def speed(report, args):
    records = 100_000 if args.quick else 1_000_000
    fleet = make(Plan(hosts=2000, roles=600, environments=4, records=records), args.first)
    begin = time.perf_counter()
    found = propose(mining.recorded(fleet))
    remark = f"{len(fleet.window)} records of {fleet.hosts} hosts, {len(found.rules)} rules"
    report.add("propose_s", round(time.perf_counter() - begin, 2), remark)
    rate, flows, allowed = simulation.rate(fleet, mining.mined(fleet))
    report.add("simulate_flows_s", round(rate), f"{flows} flow reports, {allowed:.4f} allowed, one thread")


def forecasts(report, args):
    """On twenty fleets, as the target says; `--quick` on one."""
    rows = []
    for seed, fleet, _ in mining.fleets(Plan(), 1 if args.quick else FORECAST_SEEDS, args.first):
        found = mining.mined(fleet)
        said = mining.forecast_of(fleet, found)
        later = 1 - mining.cover_later(fleet, found)
        rows.append((said.low <= later <= said.high, said.high - said.low, abs(later - said.rate)))
        report.say(f"seed {seed}: forecast {said.rate:.5f}, up to {said.high:.5f}; later {later:.5f}")
    inside, width, error = (np.array(column, float) for column in zip(*rows, strict=True))
    ratio = width.mean() / max(np.median(error), 1e-9)
    report.add("forecast_calibration", round(float(inside.mean()), 4), f"of {len(rows)} fleets")
    words = f"mean width {width.mean():.5f} over median error {np.median(error):.5f}"
    report.add("forecast_width_ratio", round(float(ratio), 2), words)


PARTS = {"quality": quality, "forecast": forecasts, "poison": poison, "speed": speed}


def main() -> int:
    arguments = parser(__doc__, quick="one seed, fewer records")
    add_only(arguments, PARTS)
    arguments.add_argument("--seeds", type=int, default=5, help="how many fleets")
    arguments.add_argument("--first", type=int, default=0, help="the first seed")
    args = arguments.parse_args()
    if args.quick:
        args.seeds = 1

    def measure(report: Report) -> None:
        for name in args.only:
            PARTS[name](report, args)

    return run(Report("segment", quick=args.quick, targets=OURS), measure)


if __name__ == "__main__":
    sys.exit(main())
