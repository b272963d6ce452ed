#!/usr/bin/env python3
"""The control plane's figures, over `aegisflux up` as its users start it.

    script/bench control [--quick] [--only onehost,fleet] [--fleet 1000]

Times run from a request to what it is for: a version in the kernel's own map, acks stored. `--fleet 100`
names its figures after its size. Needs root and BPF. Leaves nothing behind.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lib import fleet, onehost
from bench.lib.plane import Plane
from bench.lib.report import Report
from tests.support.netns import Lab

PARTS = ("onehost", "fleet")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short runs, to see that everything works")
    parser.add_argument("--only", default=",".join(PARTS), help="some of: " + ", ".join(PARTS))
    parser.add_argument("--fleet", type=int, help="agents of the fleet; 1000, or 50 when quick")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(PARTS):
        parser.error(f"expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    size = args.fleet or (50 if args.quick else 1000)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("control", quick=args.quick)
    try:
        with Lab() as lab, tempfile.TemporaryDirectory() as folder, Plane(lab, Path(folder)) as plane:
            report.say("the control plane is ready")
            for name in args.only.split(","):
                if name == "onehost":
                    onehost.measure(report, plane)
                else:
                    fleet.measure(report, plane, size)
    except KeyboardInterrupt:
        report.say("interrupted")
        return 130
    finally:
        report.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
