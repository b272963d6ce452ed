"""What a packet costs: new flows by the size of the tables, established flows against an empty program."""

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Final

from bench.lib import rotation
from bench.lib.entries import CLUSTERED, PREFIXES, RANDOM, RANDOM_V6, Entries, Shape, entries, hit, miss
from bench.lib.report import Report
from tests.bpf.bench_kernel import Bench
from tests.bpf.frames import cb_of, frame
from tests.support.kernel import HOUR_NS, generation_of

from aegisflux.adapters.datapath.bpf.control import EVENTS_PER_TICK
from aegisflux.domain.flow import Flow
from aegisflux.ports.datapath import Generation
from aegisflux.wire.layout import CB_STORAGE, CB_TCP

SHAPES: Final[Mapping[str, Shape]] = {
    "random": RANDOM, "clustered": CLUSTERED, "prefixes": PREFIXES, "v6": RANDOM_V6,
}  # fmt: skip
MANY, FEW = 100_000, 10
Costs = dict[str, list[float]]


def measure(report: Report) -> None:
    """All of it: about two minutes, or ten seconds when quick."""
    rounds, runs = (3, 50_000) if report.quick else (9, 1_000_000)
    passes = 2 if report.quick else 15
    with tempfile.TemporaryDirectory() as folder, Bench(rotation.programs(Path(folder))) as bench:
        bench.datapath._control.words.events_per_tick = EVENTS_PER_TICK
        loaded = _loaded(bench, report)
        _tell_new(report, _rotated(bench, loaded, report, rounds, passes))
        costs = _rounds(bench, loaded, report, rounds, runs)
        _tell_hot(report, costs)
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


def _rotated(
    bench: Bench, loaded: dict[str, tuple[int, Entries, Generation]], report: Report, rounds: int, passes: int
) -> Costs:
    """ns of each case where every packet is another flow, both sizes in each round."""
    costs, lists = Costs(), {}
    for case, (_, made, generation) in loaded.items():
        for kind in rotation.KINDS if case.startswith("random") else ("mixed",):
            chosen = rotation.flows(kind, made, generation, 3)
            lists[f"{case}/{kind}"] = chosen, rotation.packed(chosen)
    for number in range(rounds):
        report.say(f"new flows, round {number + 1} of {rounds}")
        for case, (chosen, listed) in lists.items():
            shape, size, kind = case.split("/")
            rotation.fill(bench, listed)
            ns = rotation.cost(bench, loaded[f"{shape}/{size}"][0], chosen, kind, passes)
            costs.setdefault(case, []).append(ns)
        costs.setdefault("fetching", []).append(rotation.fetching(bench, chosen[0], passes))
        bench.datapath.drain_denied(100_000)
    return costs


def _tell_new(report: Report, costs: Costs) -> None:
    fetching = median(costs["fetching"])

    def tell(name: str, shape: str, kind: str, what: str) -> tuple[float, float]:
        many, few = (median(costs[f"{shape}/{size}/{kind}"]) - fetching for size in (MANY, FEW))
        report.add(name, many / few, f"{many:.0f} ns / {few:.0f} ns; {what}")
        return many, few

    what = f"{rotation.FLOWS} flows in random order; 90,000 hosts and 10,000 prefixes over all of IPv4"
    many, few = tell("new_flow_ratio_100k", "random", "mixed", what)
    report.add("new_flow_100k_ns", many, "of it, with 100,000 entries")
    report.add("new_flow_10_ns", few, "of it, with 10")
    for kind in ("host", "prefix", "miss"):
        tell(f"new_flow_{kind}_ratio", "random", kind, f"the same, but each flow a {kind}")
    for shape, what in (
        ("clustered", "hits and misses as above, all inside 10.0.0.0/8"),
        ("prefixes", "100,000 prefixes, no host"),
        ("v6", "IPv6 inside 2000::/4"),
    ):
        tell(f"new_flow_ratio_100k_{shape}", shape, "mixed", what)


def _tell_hot(report: Report, costs: Costs) -> None:
    kinds = ("host", "prefix", "miss")
    many, few = (sum(median(costs[f"random/{size}/{kind}"]) for kind in kinds) / 3 for size in (MANY, FEW))
    report.add("new_flow_hot_ratio", many / few, f"{many:.0f} ns / {few:.0f} ns; one flow again and again")


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
            for case, program, extra in (
                (f"empty/{size}", "aegis_empty", 0),
                (f"verdict/{size}", "aegis_test_egress", 0),
                (f"storage/{size}", "aegis_test_egress", CB_TCP | CB_STORAGE),
            ):
                flow = hit(rng, made.hosts) if number % 2 else miss(rng, generation.tables, made.space)
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
    report.add("storage_creation_ns", first - many, "of it, creating the storage")
