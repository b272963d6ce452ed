"""What counting flows adds to a packet."""

import random
from statistics import median

from bench.lib.entries import RANDOM, RANDOM_V6, entries, hit
from bench.lib.report import Report
from tests.bpf.bench_kernel import SLOT, Bench
from tests.bpf.frames import cb_of, frame
from tests.support.netns import cgroup_root

from aegisflux.adapters.datapath.bpf.programs import CgroupNames, Programs
from aegisflux.adapters.datapath.bpf.traffic import Traffic
from aegisflux.wire.layout import CB_STORAGE, CB_TCP


def measure(report: Report) -> None:
    """Both families, on and off in turns."""
    rounds, runs = (3, 50_000) if report.quick else (25, 1_000_000)
    with Bench() as bench:
        traffic = Traffic(bench.datapath._pins.top, Programs(), CgroupNames(cgroup_root()))
        costs: dict[tuple[str, bool], list[float]] = {}
        for family, shape in (("v4", RANDOM), ("v6", RANDOM_V6)):
            made = entries(10, shape)
            bench.use(made.ruleset())
            flow = hit(random.Random(1), made.hosts)
            packet, words = frame(flow, False), cb_of(SLOT, flow, CB_TCP | CB_STORAGE)
            for number in range(2 * rounds):
                on = bool(number % 2)
                if on:
                    traffic.open()
                passed, ns = bench.datapath.test_run("aegis_test_egress", packet, words, runs)
                if not passed:
                    raise RuntimeError(f"refused: {flow}")
                costs.setdefault((family, on), []).append(ns)
                if on:
                    counted = sum(event.packets_out for event in traffic.read(1, 1000).events)
                    if counted < runs:
                        raise RuntimeError(f"{runs} packets were sent, {counted} counted")
                    traffic.remove()
            report.say(f"{family}: {rounds} rounds")
    for family, name in (("v4", "flow_accounting_ns"), ("v6", "flow_accounting_v6_ns")):
        on, off = (median(costs[family, which]) for which in (True, False))
        report.add(name, on - off, f"{on:.0f} ns with, {off:.0f} ns without; a packet of an established flow")
