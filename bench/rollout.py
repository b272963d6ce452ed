#!/usr/bin/env python3
"""How fast a harmful rollout takes itself back: real kernels, agents, NATS, PostgreSQL, `aegisflux up`.

    script/bench rollout [--quick] [--times 5]

A canary is pushed past the observing onto a snapshot that cuts a flow which was seen before; its agent has
just started, so that its own pre-flight knows nothing of that flow. The clock runs from the first call that
the kernel refuses until it lets the same call through again: event, ingest, enrichment, store, look, step,
manifest, flip. Leaves nothing behind.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lib.report import Report, Target, parser, run
from tests.support.site import SERVICE, Site, until
from tests.support.staged import Staged

OURS = {"rollback_s": Target("<=", 5.0)}
HELD = {"least_seconds": 3600, "silent_seconds": 60}
LOST = 30.0


def pushed(staged: Staged) -> int:
    """A harmful rollout, in force on the canary; its number."""
    site = staged.site
    number = staged.begin(staged.plan(7001, gate=HELD))
    site.end_agent("alpha")
    site.start_agent("alpha")
    staged.move(number, "promote")
    part = staged.told(number)["rollout"]["parts"][0]
    until(lambda: site.confirmed("alpha", part["version"]), 30, site.machine("alpha").tail_of_log)
    return number


def back(staged: Staged) -> float:
    """Seconds from the first refused call until it is let through."""
    word = staged.call("alpha", 7002)
    began = time.monotonic()
    assert word == "EPERM", f"expected the kernel to refuse the call, got {word}"
    while (word := staged.call("alpha", 7002)) != "connected":
        assert time.monotonic() - began < LOST, f"still {word} after {LOST} s"
        time.sleep(0.01)
    return time.monotonic() - began


def measure(report: Report, times: int) -> None:
    with Site(("alpha", "beta")) as site:
        site.machine("peer").serve("world", 7001, 7002)
        staged = Staged(site)
        staged.recorded(7001, 7002)
        first = staged.begin(staged.plan(7001, 7002))
        staged.goes_on(first, "promoted", 7001, 7002)
        report.say("version 1 is promoted on both hosts")
        found = []
        for _ in range(times):
            number = pushed(staged)
            found.append(back(staged))
            told = staged.at(number, "rolled_back")
            reason = told["rollout"]["run"]["reason"]
            assert "legitimate flows denied" in reason, reason
            report.say(f"{found[-1]:.2f} s; {reason}")
        status = site.api.get(f"/seg/maps/{SERVICE}/status").body["states"]
        assert status == {"in_force": 2}, status
    spread = f"worst of {times}: {max(found):.2f} s, best {min(found):.2f} s"
    report.add("rollback_s", round(statistics.median(found), 2), spread)


def main() -> int:
    arguments = parser(__doc__, quick="twice")
    arguments.add_argument("--times", type=int, default=5, help="how many rollouts")
    args = arguments.parse_args()
    report = Report("rollout", quick=args.quick, targets=OURS)
    return run(report, lambda report: measure(report, 2 if args.quick else args.times))


if __name__ == "__main__":
    sys.exit(main())
