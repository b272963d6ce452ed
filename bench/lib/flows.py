"""What a packet costs: new flows by the size of the tables, established flows against an empty program."""

import random
from collections.abc import Mapping
from statistics import median
from typing import Final

from bench.lib.entries import CLUSTERED, PREFIXES, RANDOM, RANDOM_V6, Entries, Shape, entries, hit, miss
from bench.lib.report import Report
from tests.bpf.bench_kernel import Bench
from tests.bpf.frames import cb_of, frame
from tests.support.kernel import HOUR_NS, generation_of

from aegisflux.domain.flow import Flow
from aegisflux.ports.datapath import Generation
from aegisflux.wire.layout import CB_STORAGE, CB_TCP

SHAPES: Final[Mapping[str, Shape]] = {
    "random": RANDOM, "clustered": CLUSTERED, "prefixes": PREFIXES, "v6": RANDOM_V6,
}  # fmt: skip
MANY, FEW = 100_000, 10
Costs = dict[str, list[float]]


def measure(report: Report) -> None:
    """All of it: about a minute, or ten seconds when quick."""
    rounds, runs = (3, 50_000) if report.quick else (9, 1_000_000)
    with Bench() as bench:
        loaded = _loaded(bench, report)
        costs = _rounds(bench, loaded, report, rounds, runs)
        _tell_new(report, costs)
        _tell_established(report, costs)
        _tell_single(bench, loaded, report, 500 if report.quick else 4000)


def _loaded(bench: Bench, report: Report) -> dict[str, tuple[int, Entries, Generation]]:
    """Every (shape, size) in a slot of its own."""
    found: dict[str, tuple[int, Entries, Generation]] = {}
    for shape in SHAPES:
        for size in (FEW, MANY):
            made = entries(size, SHAPES[shape])
            generation = generation_of(made.ruleset(), bench.datapath.boot_ns() + HOUR_NS)
            slot = len(found)
            bench.datapath.flip(bench.datapath.load(slot, "active", generation))
            bench.datapath.forget(slot)
            found[f"{shape}/{size}"] = slot, made, generation
            report.say(f"slot {slot}: {shape}, {size} entries, {generation.tables.size()} bytes")
    return found


def _rounds(
    bench: Bench, loaded: dict[str, tuple[int, Entries, Generation]], report: Report, rounds: int, runs: int
) -> Costs:
    """ns of each case, a value a round; each round draws its own addresses."""
    rng, costs = random.Random(7), Costs()

    def run(case: str, program: str, flow: Flow, slot: int, extra: int = 0) -> None:
        passed, ns = bench.datapath.test_run(program, frame(flow, False), cb_of(slot, flow, extra), runs)
        if passed == case.endswith("/miss"):
            raise RuntimeError(f"{case}: the wrong verdict about {flow}")
        costs.setdefault(case, []).append(ns)

    for number in range(rounds):
        report.say(f"packets, round {number + 1} of {rounds}")
        for case, (slot, made, generation) in loaded.items():
            chosen = _chosen(rng, made, generation)
            for kind, flow in chosen.items():
                run(f"{case}/{kind}", "aegis_test_egress", flow, slot)
            if case.startswith(("random", "v6")):
                first = next(iter(chosen.values()))
                run(f"{case}/established", "aegis_test_egress", first, slot, CB_TCP | CB_STORAGE)
                run(f"{case}/empty", "aegis_empty", first, slot)
        bench.datapath.drain_denied(100_000)
    return costs


def _chosen(rng: random.Random, made: Entries, generation: Generation) -> dict[str, Flow]:
    found = {"host": hit(rng, made.hosts)} if made.hosts else {}
    found["prefix"] = hit(rng, made.prefixes)
    found["miss"] = miss(rng, generation.tables, made.space)
    return found


def _mixed(costs: Costs, case: str) -> float:
    """Hits (hosts and prefixes as their numbers are) and misses in equal parts."""
    share = 0.9 if f"{case}/host" in costs else 0.0
    hits = (share * median(costs[f"{case}/host"]) if share else 0) + (1 - share) * median(
        costs[f"{case}/prefix"]
    )
    return (hits + median(costs[f"{case}/miss"])) / 2


def _tell_new(report: Report, costs: Costs) -> None:
    for shape, name, what in (
        ("random", "new_flow_ratio_100k", "hosts and prefixes over all of IPv4"),
        ("clustered", "new_flow_ratio_100k_clustered", "the same inside 10.0.0.0/8"),
        ("prefixes", "new_flow_ratio_100k_prefixes", "100,000 prefixes, no host"),
        ("v6", "new_flow_ratio_100k_v6", "IPv6 inside 2000::/4"),
    ):
        many, few = _mixed(costs, f"{shape}/{MANY}"), _mixed(costs, f"{shape}/{FEW}")
        report.add(name, many / few, f"{many:.0f} ns / {few:.0f} ns; {what}")
    for kind in ("host", "prefix", "miss"):
        many, few = median(costs[f"random/{MANY}/{kind}"]), median(costs[f"random/{FEW}/{kind}"])
        report.add(f"new_flow_{kind}_ratio", many / few, f"{many:.0f} ns / {few:.0f} ns; over all of IPv4")


def _tell_established(report: Report, costs: Costs) -> None:
    cached, empty = median(costs[f"random/{MANY}/established"]), median(costs[f"random/{MANY}/empty"])
    report.add("established_ratio", cached / empty, f"{cached:.0f} ns / {empty:.0f} ns, an empty program")
    cached, empty = median(costs[f"v6/{MANY}/established"]), median(costs[f"v6/{MANY}/empty"])
    report.add("established_ratio_v6", cached / empty, f"{cached:.0f} ns / {empty:.0f} ns, an empty program")


def _tell_single(
    bench: Bench, loaded: dict[str, tuple[int, Entries, Generation]], report: Report, count: int
) -> None:
    """Every packet another flow, once: caches as cold as a new flow finds them."""
    rng, costs = random.Random(8), Costs()
    for number in range(count):
        if number % (count // 4) == 0:
            report.say(f"single packets, {number} of {count}")
        for size in (FEW, MANY):
            slot, made, generation = loaded[f"random/{size}"]
            flow = hit(rng, made.hosts) if number % 2 else miss(rng, generation.tables, made.space)
            for case, program, extra in (
                (f"empty/{size}", "aegis_empty", 0),
                (f"verdict/{size}", "aegis_test_egress", 0),
                (f"storage/{size}", "aegis_test_egress", CB_TCP | CB_STORAGE),
            ):
                _, ns = bench.datapath.test_run(program, frame(flow, False), cb_of(slot, flow, extra))
                costs.setdefault(case, []).append(ns)
        if number % 256 == 0:
            bench.datapath.drain_denied(100_000)
    few, many, empty = (
        median(costs[case]) for case in (f"verdict/{FEW}", f"verdict/{MANY}", f"empty/{MANY}")
    )
    report.add(
        "new_flow_cold_ratio", many / few, f"{many:.0f} ns / {few:.0f} ns; one packet each of {count} flows"
    )
    report.add("empty_cold_ns", empty, "an empty program over one packet, the call's own cost")
    first = median(costs[f"storage/{MANY}"])
    report.add(
        "first_packet_ns", first, "the same creating its socket storage: the first packet of a connection"
    )
