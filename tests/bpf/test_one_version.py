"""A verdict is of one version: while snapshots of many entries replace each other, none is a mixture."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from aegisflux.domain.flow import Flow
from aegisflux.domain.net import TCP, Cidr, parse_address, parse_cidr
from aegisflux.domain.snapshot import Entry, Ruleset
from aegisflux.ports.datapath import Generation
from tests.bpf.bench_kernel import SLOT, Bench
from tests.bpf.frames import cb_of, frame
from tests.bpf.test_sockets import rules
from tests.support.kernel import HOUR_NS, generation_of

pytestmark = [pytest.mark.bpf]
BOTH, ONLY_A, ONLY_B, NEITHER = "10.1.0.9", "10.2.0.9", "10.3.0.9", "10.4.0.9"


class Judged(NamedTuple):
    """What the kernel did with a flow, and the snapshot that it named for a denial."""

    peer: str
    passed: bool
    digest: str | None


def many(seed: int, count: int, own: str) -> Ruleset:
    """Hosts all over 0.0.0.0/0 beside our own, which lie elsewhere in the tables of each seed."""
    rng = random.Random(seed)
    hosts = {Entry(parse_cidr(f"{peer}/32"), "tcp", 443, "both") for peer in (BOTH, own)}
    while len(hosts) < count:
        value = rng.getrandbits(32)
        if value >> 24 != 10:
            hosts.add(Entry(Cidr(4, value, 32), "tcp", rng.choice((80, 443, 8443)), "both"))
    return replace(rules(), edges=tuple(sorted(hosts)))


class Judge(threading.Thread):
    """Judges the four flows again and again; `seen` counts what came."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench, self.stop = bench, threading.Event()
        self.seen: Counter[Judged] = Counter()

    def run(self) -> None:
        packets = {}
        for peer in (BOTH, ONLY_A, ONLY_B, NEITHER):
            flow = Flow("egress", TCP, parse_address(peer), 443, source_port=40_000)
            packets[peer] = frame(flow, False), cb_of(SLOT, flow)
        datapath = self.bench.datapath
        while not self.stop.is_set():
            for peer, (packet, cb) in packets.items():
                passed, _ = datapath.test_run("aegis_test_egress", packet, cb)
                told = datapath.drain_denied(64)
                assert len(told) <= 1
                self.seen[Judged(peer, bool(passed), told[0].digest if told else None)] += 1


def swap(bench: Bench, generation: Generation) -> None:
    bench.datapath.flip(bench.datapath.load(SLOT, "active", generation))
    bench.datapath.forget(SLOT)


def test_no_verdict_mixes_two_versions(scale: Callable[[str, int], int]) -> None:
    count, swaps = scale("entries", 20_000), scale("swaps", 40)
    with Bench() as bench:
        bench.datapath._control.words.events_per_tick = 1_000_000
        deadline = bench.datapath.boot_ns() + HOUR_NS
        a, b = (
            generation_of(many(seed, count, own), deadline, seed) for seed, own in ((1, ONLY_A), (2, ONLY_B))
        )
        swap(bench, a)
        judge = Judge(bench)
        judge.start()
        try:
            for number in range(swaps):
                swap(bench, (b, a)[number % 2])
        finally:
            judge.stop.set()
            judge.join()
    possible = {
        Judged(BOTH, True, None),
        Judged(ONLY_A, True, None),
        Judged(ONLY_A, False, b.digest),
        Judged(ONLY_B, True, None),
        Judged(ONLY_B, False, a.digest),
        Judged(NEITHER, False, a.digest),
        Judged(NEITHER, False, b.digest),
    }
    assert set(judge.seen) == possible, judge.seen
    assert min(judge.seen.values()) > swaps
