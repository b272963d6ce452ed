#!/usr/bin/env python3
"""The sensor's figures: what counting flows adds to a packet, and what telling of processes adds to an exec.

    script/bench sensor [--quick] [--only flows,exec,agent]

Packets are BPF_PROG_TEST_RUN of an established flow, with accounting on and off in turns. Execs are a paced
loop of spawn and wait, in blocks with the programs attached and not; meanwhile a process of its own reads,
encodes and spools what they tell, as the agent does. The agent is a real one, whose host sends datagrams to
25,000 places. Needs root and BPF. Leaves nothing behind.
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lib import accounting, execs, telling
from bench.lib.report import TARGETS, Report, Target

PARTS = {"flows": accounting.measure, "exec": execs.measure, "agent": telling.measure}
OURS = {**TARGETS, "agent_rss_mb": Target("<=", 80.0)}  # while it tells 5,000 events a second


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short runs, to see that everything works")
    parser.add_argument("--only", default=",".join(PARTS), help="some of: " + ", ".join(PARTS))
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(PARTS):
        parser.error(f"expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("sensor", quick=args.quick, targets=OURS)
    try:
        for name in args.only.split(","):
            PARTS[name](report)
    except KeyboardInterrupt:
        report.say("interrupted")
        return 130
    finally:
        report.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
