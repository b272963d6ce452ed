#!/usr/bin/env python3
"""The control plane's figures, over `aegisflux up` as its users start it.

    script/bench control [--quick] [--only onehost,fleet] [--fleet 1000]

Times run from a request to what it is for: a version in the kernel's own map, acks stored. `--fleet 100`
names its figures after its size. Needs root and BPF. Leaves nothing behind.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lib import fleet, onehost
from bench.lib.plane import Plane
from bench.lib.report import Report, add_only, parser, run
from tests.support.netns import Lab

PARTS = ("onehost", "fleet")


def main() -> int:
    arguments = parser(__doc__)
    add_only(arguments, PARTS)
    arguments.add_argument("--fleet", type=int, help="agents of the fleet; 1000, or 50 when quick")
    args = arguments.parse_args()
    size = args.fleet or (50 if args.quick else 1000)
    return run(Report("control", quick=args.quick), lambda report: measure(report, args.only, size))


def measure(report: Report, parts: Sequence[str], size: int) -> None:
    with Lab() as lab, tempfile.TemporaryDirectory() as folder, Plane(lab, Path(folder)) as plane:
        report.say("the control plane is ready")
        for name in parts:
            if name == "onehost":
                onehost.measure(report, plane)
            else:
                fleet.measure(report, plane, size)


if __name__ == "__main__":
    sys.exit(main())
