"""What every datapath promises: one suite for the kernel and for its simulation."""

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from aegisflux.adapters.datapath.simulated import SimulatedDatapath
from aegisflux.domain import snapshot
from aegisflux.domain.compile import compile_tables
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.flow import FailsafeRule, Flow, Own
from aegisflux.domain.net import TCP, UDP, parse_address, parse_cidr
from aegisflux.ports.datapath import Binding, Datapath, Generation
from support.netns import enter

HOUR_NS = 3600 * 10**9
INSIDE, OUTSIDE = "10.1.2.3", "192.0.2.9"


def flow(peer: str, port: int = 443, proto: int = TCP, direction: str = "egress") -> Flow:
    return Flow(direction, proto, parse_address(peer), port, 40_000)


class Bench:
    """A datapath, a tree of two cgroups, and how to make another process's view of the same kernel."""

    def __init__(self, make: Callable[[], Datapath], cgroups: dict[str, int]) -> None:
        self.make, self.cgroups = make, cgroups
        self.datapath = make()
        self.datapath.open()

    def generation(self, version: int = 1, left_ns: int = HOUR_NS, **fields) -> Generation:
        edges = fields.pop("edges", [{"dst_cidr": "10.0.0.0/8", "proto": "tcp", "port": 443}])
        body = {"version": version, "service_id": 101, "ttl_seconds": 600, "edges": edges, **fields}
        rules = snapshot.ruleset(snapshot.from_builtins(body))
        tables = compile_tables(rules)
        digest = "sha256:" + f"{version:064x}"
        deadline = self.datapath.boot_ns() + left_ns
        return Generation(
            101,
            version,
            digest,
            tables,
            tables.digest(),
            rules.mode,
            rules.on_expiry,
            rules.established,
            deadline,
        )

    def enforce(self, generation: Generation, slot: int = 3, role: str = "active") -> None:
        self.datapath.flip(self.datapath.load(slot, role, generation))

    def adds(self, own: Own) -> None:
        """The simulated host gets these addresses and local routes, beside what it has."""
        self.datapath.has = self.datapath.has.joined(own)
        os.eventfd_write(self.datapath.addresses_fd, 1)

    def held(self) -> list[tuple[int, str, int]]:
        return [(h.slot, h.role, h.version) for h in self.datapath.held()]

    def word(self, peer: str, slot: int = 3, **kwargs) -> str:
        verdict = self.datapath.why(slot, flow(peer, **kwargs))
        return f"{verdict.word} {verdict.reason}"


class KernelBench(Bench):
    """The same where a process of the first cgroup lives in a network namespace of its own."""

    def lives_apart(self, netns: str, cgroup: Path) -> None:
        subprocess.run(["ip", "netns", "add", netns], check=True)
        self.netns = netns
        subprocess.run(["ip", "-n", netns, "link", "set", "lo", "up"], check=True)
        self.process = subprocess.Popen(["sleep", "600"], preexec_fn=lambda: enter(netns, cgroup))  # noqa: PLW1509

    def adds(self, own: Own) -> None:
        for address in own.addresses:
            subprocess.run(["ip", "-n", self.netns, "addr", "add", str(address), "dev", "lo"], check=True)
        for prefix in own.prefixes:
            command = ["ip", "-n", self.netns, "route", "add", "local", str(prefix), "dev", "lo"]
            subprocess.run(command, check=True)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        subprocess.run(["ip", "netns", "del", self.netns], check=True)


@pytest.fixture(params=["simulated", pytest.param("bpf", marks=pytest.mark.bpf)])
def bench(request) -> Iterator[Bench]:
    if request.param == "simulated":
        one = SimulatedDatapath(lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        one.addresses_fd = os.eventfd(0, os.EFD_NONBLOCK)
        yield Bench(lambda: one, {"contract/a": 71, "contract/b": 72})
        os.close(one.addresses_fd)
        return
    yield from _kernel()


def _kernel() -> Iterator[Bench]:
    from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath
    from aegisflux.runtime.cgroupfs import v2_root

    top = v2_root() / f"aegisflux-contract-{os.getpid()}"
    children = [top / "a", top / "b"]
    for folder in (top, *children):
        folder.mkdir()
    try:
        paths = {str(p.relative_to(v2_root())): p.stat().st_ino for p in children}
        bench = KernelBench(lambda: BpfDatapath(attach=top, instance=f"test-contract-{os.getpid()}"), paths)
        try:
            bench.lives_apart(f"af{os.getpid()}-0-contract", children[0])
            yield bench
        finally:
            bench.datapath.panic()
            bench.datapath.close()
            bench.end()
    finally:
        for folder in (*children, top):
            Path.rmdir(folder)


def test_what_is_loaded_does_not_judge_before_the_flip(bench):
    loaded = bench.datapath.load(3, "active", bench.generation())
    assert loaded.tables_digest == bench.generation().tables_digest
    assert bench.held() == []
    assert bench.word(OUTSIDE) == "allowed unmanaged"
    bench.datapath.flip(loaded)
    assert bench.word(OUTSIDE) == "blocked no_match"


def test_what_is_discarded_never_judges(bench):
    bench.datapath.discard(bench.datapath.load(3, "active", bench.generation()))
    assert bench.held() == []


def test_held_is_read_from_what_judges(bench):
    generation = bench.generation(7, mode="observe", on_expiry="closed", established="cut")
    bench.enforce(generation)
    (held,) = bench.datapath.held()
    assert (held.slot, held.role, held.service_id, held.version) == (3, "active", 101, 7)
    assert (held.digest, held.tables_digest) == (generation.digest, generation.tables_digest)
    assert (held.mode, held.on_expiry, held.established) == ("observe", "closed", "cut")
    assert held.deadline_ns == generation.deadline_ns


def test_held_follows_every_change_however_often_it_is_read(bench):
    """What was read of a generation once may be remembered: a change is seen all the same."""
    datapath = bench.datapath
    bench.enforce(bench.generation(1))
    assert datapath.held() == datapath.held()
    datapath.renew(3, datapath.boot_ns() + 5 * HOUR_NS)
    assert datapath.held()[0].deadline_ns > datapath.boot_ns() + 4 * HOUR_NS
    bench.enforce(bench.generation(2, edges=[{"dst_cidr": "10.1.0.0/16", "proto": "tcp", "port": 1}]))
    bench.enforce(bench.generation(9), role="candidate")
    assert bench.held() == [(3, "active", 2), (3, "candidate", 9)]
    (active, _) = datapath.held()
    assert active.tables_digest != bench.generation(1).tables_digest
    assert datapath.flip_back(3)
    assert bench.held() == [(3, "active", 1), (3, "candidate", 9)]
    datapath.remove(3, "candidate")
    datapath.remove(3, "active")
    assert bench.held() == []
    bench.enforce(bench.generation(3))
    assert bench.held() == [(3, "active", 3)]


def test_verdicts_and_their_rules(bench):
    ingress = [{"src_cidr": "2001:db8::/32", "proto": "udp", "port": 53}]
    deny = [{"cidr": "10.9.0.0/16", "proto": "any", "port": 0, "direction": "both"}]
    bench.enforce(bench.generation(ingress=ingress, deny=deny))
    verdict = bench.datapath.why(3, flow(INSIDE))
    assert (verdict.word, verdict.rule) == ("allowed", "edges 10.0.0.0/8 tcp/443")
    assert verdict.digest == bench.generation().digest
    assert bench.word(INSIDE, port=80) == "blocked no_match"
    assert bench.word("10.9.1.1") == "blocked deny"
    assert bench.word("2001:db8::1", port=53, proto=UDP, direction="ingress") == "allowed allow"
    assert bench.word("2001:db9::1", port=53, proto=UDP, direction="ingress") == "blocked no_match"


def test_each_generation_has_a_number_of_its_own(bench):
    numbers = [bench.datapath.load(3, "active", bench.generation(v)).generation_id for v in (1, 2, 3)]
    assert len(set(numbers)) == 3


def test_flip_back_returns_to_what_was_replaced(bench):
    bench.enforce(bench.generation(1))
    bench.enforce(bench.generation(2, edges=[]))
    assert bench.word(INSIDE) == "blocked no_match"
    assert bench.datapath.flip_back(3)
    assert bench.held() == [(3, "active", 1)]
    assert bench.word(INSIDE) == "allowed allow"
    assert not bench.datapath.flip_back(3)


def test_flip_back_to_nothing(bench):
    bench.enforce(bench.generation())
    assert bench.datapath.flip_back(3)
    assert bench.held() == []


def test_what_is_forgotten_cannot_return(bench):
    bench.enforce(bench.generation(1))
    bench.enforce(bench.generation(2))
    bench.datapath.forget(3)
    assert not bench.datapath.flip_back(3)
    assert bench.held() == [(3, "active", 2)]


def test_renewal_moves_only_the_deadline(bench):
    bench.enforce(bench.generation())
    (before,) = bench.datapath.held()
    bench.datapath.renew(3, before.deadline_ns + 5_000_000)
    assert bench.datapath.held() == [replace(before, deadline_ns=before.deadline_ns + 5_000_000)]


@pytest.mark.parametrize(
    ("on_expiry", "word"), [("open", "allowed expired_open"), ("closed", "blocked expired_closed")]
)
def test_a_lease_that_is_over(bench, on_expiry, word):
    bench.enforce(bench.generation(left_ns=0, on_expiry=on_expiry))
    time.sleep(0.01)
    assert bench.word(INSIDE) == word
    bench.datapath.renew(3, bench.datapath.boot_ns() + HOUR_NS)
    assert bench.word(INSIDE) == "allowed allow"


def test_candidate_and_active_are_apart(bench):
    bench.enforce(bench.generation(1))
    bench.enforce(bench.generation(2, edges=[]), role="candidate")
    assert sorted(bench.held()) == [(3, "active", 1), (3, "candidate", 2)]
    assert bench.word(INSIDE) == "allowed allow"
    assert bench.datapath.why(3, flow(INSIDE), "candidate").action == "deny"
    bench.datapath.remove(3, "candidate")
    assert bench.held() == [(3, "active", 1)]


def test_slots_are_apart_and_removal_is_of_one(bench):
    bench.enforce(bench.generation(1), slot=0)
    bench.enforce(bench.generation(2, edges=[]), slot=255)
    assert (bench.word(INSIDE, slot=0), bench.word(INSIDE, slot=255)) == ("allowed allow", "blocked no_match")
    bench.datapath.remove(0, "active")
    assert bench.held() == [(255, "active", 2)]
    assert bench.word(OUTSIDE, slot=0) == "allowed unmanaged"
    bench.datapath.remove(0, "active")


def test_bindings_are_what_was_bound_last(bench):
    (a, first), (b, second) = bench.cgroups.items()
    bench.datapath.bind([Binding(first, a, 3), Binding(second, b, 4)])
    assert {(x.cgroup_id, x.slot) for x in bench.datapath.bindings()} == {(first, 3), (second, 4)}
    bench.datapath.bind([Binding(first, a, 4)])
    assert {(x.cgroup_id, x.slot) for x in bench.datapath.bindings()} == {(first, 4)}


def test_the_root_cannot_be_bound(bench):
    with pytest.raises(Unavailable):
        bench.datapath.bind([Binding(1, "/", 3)])


def test_the_hosts_list_is_never_denied(bench):
    bench.enforce(bench.generation(ingress=[]))
    assert bench.word(OUTSIDE, port=22, direction="ingress") == "allowed failsafe"
    bench.datapath.failsafe([FailsafeRule("egress", "tcp", 9)], None)
    assert bench.word(OUTSIDE, port=22, direction="ingress") == "blocked no_match"
    assert bench.word(OUTSIDE, port=9) == "allowed failsafe"


def test_literals_may_be_set_again(bench):
    path = next(iter(bench.cgroups)) + "-later"
    bench.datapath.literals({path: 3})
    bench.datapath.literals({})


def test_what_is_held_survives_the_agent(bench):
    bench.enforce(bench.generation(5))
    (before,) = bench.datapath.held()
    bench.datapath.close()
    bench.datapath = bench.make()
    bench.datapath.open()
    assert bench.datapath.held() == [before]
    assert bench.word(OUTSIDE) == "blocked no_match"


def test_panic_leaves_nothing_and_may_be_repeated(bench):
    bench.enforce(bench.generation())
    bench.datapath.panic()
    bench.datapath.panic()
    bench.datapath.open()
    assert bench.held() == []
    assert bench.datapath.bindings() == []


def test_panic_by_a_process_that_did_not_open_it(bench):
    bench.enforce(bench.generation())
    bench.datapath.close()
    bench.make().panic()
    bench.datapath = bench.make()
    bench.datapath.open()
    assert bench.held() == []


def test_open_twice_is_once(bench):
    bench.enforce(bench.generation())
    bench.datapath.open()
    assert bench.held() == [(3, "active", 1)]


def test_it_tells_of_itself(bench):
    bench.enforce(bench.generation())
    assert isinstance(dict(bench.datapath.counters(3)), dict)
    assert bench.datapath.drain_denied(10) == []
    assert bench.datapath.doctor()
    bench.datapath.refresh_addresses()
    assert bench.datapath.cut(3) == 0
    assert bench.datapath.live(3) == []


@pytest.mark.parametrize(
    ("added", "inside", "beside"),
    [
        (Own(frozenset({parse_address("192.0.2.9")})), "192.0.2.9", "192.0.2.8"),
        (Own(frozenset({parse_address("2001:db8::9")})), "2001:db8::9", "2001:db8::8"),
        (Own(prefixes=(parse_cidr("198.51.100.0/25"),)), "198.51.100.127", "198.51.100.128"),
        (Own(prefixes=(parse_cidr("2001:db8:1::/48"),)), "2001:db8:1:ffff::1", "2001:db8:2::1"),
        (Own(prefixes=(parse_cidr("203.0.113.7/32"),)), "203.0.113.7", "203.0.113.6"),
    ],
)
def test_what_is_added_is_told_and_own_when_it_is_heeded(bench, added, inside, beside):
    path, number = next(iter(bench.cgroups.items()))
    bench.datapath.bind([Binding(number, path, 3)])
    bench.enforce(bench.generation())
    fd = bench.datapath.watch_addresses()
    assert bench.datapath.watch_addresses() == fd
    bench.datapath.refresh_addresses()
    assert bench.word(inside) == "blocked no_match"
    bench.adds(added)
    assert select.select([fd], [], [], 1)[0]
    assert bench.datapath.heed_addresses() == []
    assert bench.word(inside) == "allowed failsafe"
    assert bench.word(inside, direction="ingress") == "allowed failsafe"
    assert bench.word(beside) == "blocked no_match"
    assert bench.datapath.own(3).covers(parse_address(inside))
    assert added.addresses <= set(bench.datapath.addresses())


def test_what_changes_during_a_panic_does_not_pile_up(bench):
    path, number = next(iter(bench.cgroups.items()))
    bench.datapath.bind([Binding(number, path, 3)])
    bench.datapath.refresh_addresses()
    fd = bench.datapath.watch_addresses()
    bench.datapath.panic()
    bench.adds(Own(prefixes=(parse_cidr("198.51.100.0/25"),)))
    assert select.select([fd], [], [], 1)[0]
    assert bench.datapath.heed_addresses() == []
    assert not select.select([fd], [], [], 0)[0]
