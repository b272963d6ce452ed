#!/usr/bin/env python3
"""What enforcement adds to real traffic, in CPU time, beside what nft adds.

    script/bench traffic [--quick] [--seed N]

Two namespaces and a veth between them, three times alike: with nothing in between; with the programs
attached, 100,000 entries in force and accounts on; with nft, the same 100,000 addresses in an interval set
behind connection tracking, on the client's side. Each has a process, pinned to one core, that holds both
ends: the client's sockets are governed (or filtered), the server's are not, like those of another host.

    connect     socket(), connect(), accept() and both closes; `open` is the same without the closes
    round_trip  64 bytes there and 64 bytes back, on one of 512 open connections after the other
    datagram    64 bytes from an unconnected socket that is never answered, to one peer after the other
    answered    the same where every datagram is answered; each way counts as one

Peers are 1,024 of the entries by chance, nine hosts for each prefix, on eight ports. Counted is the CPU
time of that process (calls of both ends, and the softirqs of the veth, which run inside of them) and of
its core's ksoftirqd, less what its loop costs with calls that do nothing. Each figure is the median of
the ratios of interleaved rounds. Needs root, BPF and nft. Leaves nothing behind.
"""

import os
import random
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lib.between import Policy, load_nft, pair, place, policy
from bench.lib.report import Report, parser, run
from bench.lib.talkers import BURST, Place, Talker
from tests.support.kernel import Kernel
from tests.support.netns import Lab, cgroup_root

from aegisflux.adapters.datapath.bpf.programs import CgroupNames, Programs
from aegisflux.adapters.datapath.bpf.traffic import Traffic

ENTRIES, PEERS, SLOT = 100_000, 1024, 1
TURN_SECONDS: Final = 5.0
WHAT: Final = {"connect": 1024, "round_trip": 4096, "datagram": 8192, "answered": 8192, "open": 1024}
Costs = dict[str, dict[str, list[float]]]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--seed", type=int, default=1, help="of the entries, the peers and the order of rounds"
    )
    args = arguments.parse_args()

    def measure(report: Report) -> None:
        with ExitStack() as stack:
            _measure(report, stack, args.seed)

    return run(Report("traffic", quick=args.quick), measure)


def _measure(report: Report, stack: ExitStack, seed: int) -> None:
    made = policy(ENTRIES, PEERS, seed)
    governed, plain = stack.enter_context(Lab()), stack.enter_context(Lab())
    kernel = stack.enter_context(Kernel(governed))
    talkers = _talkers(stack, governed, plain, kernel, made, report)
    traffic = Traffic(kernel.datapath._pins.top, Programs(), CgroupNames(cgroup_root()))
    traffic.open()
    stack.callback(traffic.remove)
    rng, rounds, turn = random.Random(seed), 4 if report.quick else 40, time.monotonic()
    costs: Costs = {}
    for number in range(rounds):
        if number % 10 == 0:
            report.say(f"round {number + 1} of {rounds}")
        if time.monotonic() - turn > TURN_SECONDS:
            turn = time.monotonic()
            report.say(f"a turn of {_end_turn(traffic)} flows")
        for what, count in WHAT.items():
            _round(talkers, what, count, rng, costs.setdefault(what, {}))
    for what in WHAT:
        _tell(report, what, costs[what])


def _talkers(
    stack: ExitStack, governed: Lab, plain: Lab, kernel: Kernel, made: Policy, report: Report
) -> dict[str, Talker]:
    """By what is in between, each with its connections open."""
    core = max(os.sched_getaffinity(0))
    outside = place(plain, "", "outside").cgroup
    found = {}
    for name in ("nothing", "ours", "nft"):
        client, server = pair(plain, name)
        if name == "nft":
            load_nft(client, made.nft())
        if name == "ours":
            at = place(governed, client, "service")
            kernel.bind(at.cgroup, SLOT)
            kernel.enforce(SLOT, made.ruleset())
        else:
            at = Place(client, outside)
        talker = Talker(core, at, Place(server, outside), made.tcp, made.udp)
        found[name] = stack.enter_context(talker)
        report.say(f"{name}: talks")
    kernel.datapath.refresh_addresses()
    return found


def _round(
    talkers: Mapping[str, Talker], what: str, count: int, rng: random.Random, costs: dict[str, list[float]]
) -> None:
    names = list(talkers)
    rng.shuffle(names)
    costs.setdefault("loop", []).append(talkers[names[0]].cost(what, count, real=False))
    for name in names:
        talkers[name].cost(what, BURST)  # caches forget the one before
        costs.setdefault(name, []).append(talkers[name].cost(what, count))


def _end_turn(traffic: Traffic) -> int:
    """What the agent does every five seconds; how many flows were counted."""
    reading = traffic.read(1, 100_000)
    traffic.done(reading.cursor)
    return len(reading.events)


def _tell(report: Report, what: str, costs: Mapping[str, list[float]]) -> None:
    loop = median(costs["loop"])
    ns = {name: [cost - loop for cost in costs[name]] for name in ("nothing", "ours", "nft")}
    for name, figure in (("ours", f"traffic_{what}_ratio"), ("nft", f"nft_{what}_ratio")):
        ratios = [a / b for a, b in zip(ns[name], ns["nothing"], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        remark = (
            f"{median(ns[name]):.0f} ns / {median(ns['nothing']):.0f} ns, quartiles {low:.3f} to {high:.3f}"
        )
        report.add(figure, median(ratios), remark)
    report.say(f"{what}: the loop itself {loop:.0f} ns")


if __name__ == "__main__":
    sys.exit(main())
