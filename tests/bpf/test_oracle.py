"""The programs in the kernel against the oracle, by BPF_PROG_TEST_RUN."""

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from aegisflux.domain.flow import DEFAULT_FAILSAFE, Flow, Host
from aegisflux.domain.net import ICMPV6, TCP, UDP, Address
from aegisflux.domain.snapshot import Ruleset, ruleset
from aegisflux.domain.verdict import judge
from tests.bpf.bench_kernel import Bench, same
from tests.bpf.frames import CB_EXPIRED
from tests.support.cases import CASES, load_cases
from tests.support.snapshots import random_flow, random_ruleset, seeds

pytestmark = pytest.mark.bpf
HOST = Host(failsafe=DEFAULT_FAILSAFE)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


@settings(max_examples=int(os.environ.get("AEGISFLUX_SNAPSHOTS", "500")))
@given(seed=seeds)
def test_random_snapshots_and_probes_agree_with_the_oracle(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    rules = random_ruleset(rng, rng.choice((3, 8, 40)))
    bench.use(rules)
    for _ in range(50):
        flow = random_flow(rng, rules)
        expired = rng.random() < 0.05
        verdict = judge(rules, flow, replace(HOST, expired=expired))
        seen = bench.judge(flow, extra=CB_EXPIRED if expired else 0)
        assert same(verdict, seen), f"{flow}: oracle {verdict}, kernel {seen}, rules {rules}"


@pytest.mark.skipif(not CASES.exists(), reason="../shared/data is not here")
def test_the_conformance_cases_hold_in_the_kernel(bench: Bench) -> None:
    wrong = []
    for number, (snapshot, flow, host, (action, reason)) in enumerate(load_cases()):
        bench.use(ruleset(snapshot))
        local = flow.peer in host.addresses
        passed, why, _ = bench.judge(replace(flow, local=local))
        if passed != (action == "allow") or why != reason:
            wrong.append(f"line {number + 1}: {flow}: expected {action} {reason}, saw {passed} {why}")
    assert not wrong, "\n".join(wrong[:20])


OPEN = Ruleset(1, 1, (), (), (), (), "enforce", "open", "cut")


@pytest.mark.parametrize(
    "flow",
    [
        Flow("egress", ICMPV6, Address(6, 0xFF02 << 112 | 1), icmp_type=135, hop_limit=255),
        Flow("ingress", ICMPV6, Address(6, 0xFE80 << 112 | 1), icmp_type=134, hop_limit=255),
        Flow("egress", ICMPV6, Address(6, 0xFF02 << 112 | 22), icmp_type=143, hop_limit=1),
        Flow("egress", UDP, Address(4, 0xFFFFFFFF), 67, 68),
        Flow("ingress", UDP, Address(4, 0x0A000001), 68, 67),
        Flow("egress", UDP, Address(6, 0xFF02 << 112 | 0x10002), 547, 546),
        Flow("ingress", 1, Address(4, 0x0A000001), icmp_type=3),
        Flow("ingress", 1, Address(4, 0x0A000001), icmp_type=0),
        Flow("ingress", ICMPV6, Address(6, 0xFE80 << 112 | 1), icmp_type=2),
        Flow("ingress", TCP, Address(4, 0x0A000001), 22, 40_000),
        Flow("egress", TCP, Address(4, 0x7F000001), 80, 40_000),
        # and what only looks like it
        Flow("egress", ICMPV6, Address(6, 0xFF02 << 112 | 1), icmp_type=135, hop_limit=254),
        Flow("egress", UDP, Address(4, 0x0A000001), 68, 67),
        Flow("ingress", 1, Address(4, 0x0A000001), icmp_type=8),
        Flow("egress", TCP, Address(4, 0x0A000001), 22, 40_000),
    ],
    ids=str,
)
def test_the_failsafe_is_what_the_oracle_says(bench: Bench, flow: Flow) -> None:
    bench.use(OPEN)
    verdict = judge(OPEN, flow, HOST)
    assert same(verdict, bench.judge(flow)), (verdict, bench.judge(flow))
