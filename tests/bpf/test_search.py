"""The search inside one first-level bucket guesses where a leaf is; here it is wrong in every way."""

import random

import pytest

from aegisflux.domain.flow import Flow
from aegisflux.domain.net import TCP, Address, Cidr
from aegisflux.domain.snapshot import Entry, Ruleset
from aegisflux.domain.tables import EGRESS, find
from tests.bpf.bench_kernel import SLOT, Bench
from tests.bpf.frames import cb_of, frame
from tests.support.kernel import HOUR_NS, generation_of

BASE = 10 << 24
SPREADS = {
    "low": [BASE + 2 * i for i in range(3000)],
    "high": [BASE + (1 << 16) - 1 - 2 * i for i in range(3000)],
    "both ends": [BASE + 2 * i for i in range(900)] + [BASE + (1 << 16) - 1 - 2 * i for i in range(900)],
    "even": [BASE + 21 * i for i in range(3000)],
    "powers": sorted({BASE + round(1.004**i) for i in range(2700)}),
}


@pytest.mark.parametrize("name", SPREADS)
def test_every_leaf_is_found_however_the_leaves_lie(name: str) -> None:
    rng, hosts = random.Random(5), SPREADS[name]
    ports = [rng.choice((80, 443)) for _ in hosts]
    entries = tuple(Entry(Cidr(4, h, 32), "tcp", port) for h, port in zip(hosts, ports, strict=True))
    rules = Ruleset(1, 1, entries, (), None, (), "enforce", "open", "keep")
    with Bench() as bench:
        generation = generation_of(rules, bench.datapath.boot_ns() + HOUR_NS)
        bench.datapath.flip(bench.datapath.load(SLOT, "active", generation))
        for value in sorted({h + step for h in hosts for step in (-1, 0, 1)} | {0x01000000, 0xDF000000}):
            flow = Flow("egress", TCP, Address(4, value), 443, source_port=40_000)
            wanted = find(generation.tables, EGRESS, TCP, flow.peer, 443) is not None
            passed, _ = bench.datapath.test_run("aegis_test_egress", frame(flow, False), cb_of(SLOT, flow))
            assert bool(passed) == wanted, flow
