#!/usr/bin/env python3
"""The datapath's figures: what a packet costs, what a snapshot costs, what an agent costs.

    script/bench datapath [--quick] [--only flows,apply,agent,addresses]

Costs of packets are BPF_PROG_TEST_RUN over the programs' judging core, in rounds of all cases, each with
an empty program; every figure is a median of rounds. For new flows every packet of a run is another flow,
in random order; `new_flow_hot_ratio` repeats one, `new_flow_cold_ratio` is of single packets after other
work. Needs root and BPF. Leaves nothing behind.
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lib import addresses, agent, apply, flows
from bench.lib.report import Report

PARTS = {
    "flows": flows.measure,
    "apply": apply.measure,
    "agent": agent.measure,
    "addresses": addresses.measure,
}


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
    report = Report("datapath", quick=args.quick)
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
