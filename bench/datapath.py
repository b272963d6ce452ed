#!/usr/bin/env python3
"""The datapath's figures: what a packet costs, what a snapshot costs, what an agent costs.

    script/bench datapath [--quick] [--only flows,apply,agent,addresses]

Costs of packets are BPF_PROG_TEST_RUN over the programs' judging core, in rounds of all cases, each with
an empty program; every figure is a median of rounds. For new flows every packet of a run is another flow,
in random order; `new_flow_hot_ratio` repeats one, `new_flow_cold_ratio` is of single packets after other
work. Needs root and BPF. Leaves nothing behind.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lib import addresses, agent, apply, flows
from bench.lib.report import Report, add_only, parser, run

PARTS = {
    "flows": flows.measure,
    "apply": apply.measure,
    "agent": agent.measure,
    "addresses": addresses.measure,
}


def main() -> int:
    arguments = parser(__doc__)
    add_only(arguments, PARTS)
    args = arguments.parse_args()

    def measure(report: Report) -> None:
        for name in args.only:
            PARTS[name](report)

    return run(Report("datapath", quick=args.quick), measure)


if __name__ == "__main__":
    sys.exit(main())
