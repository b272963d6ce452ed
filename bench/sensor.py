#!/usr/bin/env python3
"""The sensor's figures: what counting flows adds to a packet, and what telling of processes adds to an exec.

    script/bench sensor [--quick] [--only flows,exec,agent]

Packets are BPF_PROG_TEST_RUN of an established flow, with accounting on and off in turns. Execs are a paced
loop of spawn and wait, in blocks with the programs attached and not; meanwhile a process of its own reads,
encodes and spools what they tell, as the agent does. The agent is a real one, whose host sends datagrams to
25,000 places. Needs root and BPF. Leaves nothing behind.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lib import accounting, execs, telling
from bench.lib.report import TARGETS, Report, Target, add_only, parser, run

PARTS = {"flows": accounting.measure, "exec": execs.measure, "agent": telling.measure}
OURS = {**TARGETS, "agent_rss_mb": Target("<=", 80.0)}  # while it tells 5,000 events a second


def main() -> int:
    arguments = parser(__doc__)
    add_only(arguments, PARTS)
    args = arguments.parse_args()

    def measure(report: Report) -> None:
        for name in args.only:
            PARTS[name](report)

    return run(Report("sensor", quick=args.quick, targets=OURS), measure)


if __name__ == "__main__":
    sys.exit(main())
