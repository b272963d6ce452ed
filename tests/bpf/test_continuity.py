"""Swapping snapshots under load: no allowed flow stalls, no denied one gets through."""

import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.denied import rule_of
from aegisflux.domain.net import Cidr, address_of
from aegisflux.domain.snapshot import Entry
from aegisflux.ports.datapath import Generation
from aegisflux.wire import layout
from tests.bpf.test_sockets import SLOT, rules
from tests.support import probes
from tests.support.kernel import HOUR_NS, Kernel, generation_of
from tests.support.netns import Lab

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SECONDS = 4.0
SWAPS_A_SECOND = 10

# Talks to an allowed port over one TCP connection, new connections and one UDP socket, and tries a denied
# port, until it is told to stop; prints the longest silence of each and how often the denied one answered.
LOAD = """
import errno, json, select, socket, sys, time
peer, allowed, denied = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def family(): return socket.AF_INET6 if ":" in peer else socket.AF_INET
live = socket.create_connection((peer, allowed), 2)
live.settimeout(5)
udp = socket.socket(family(), socket.SOCK_DGRAM); udp.connect((peer, allowed)); udp.settimeout(5)
worst = {"live": 0.0, "new": 0.0, "udp": 0.0}
through, tries, rounds = 0, 0, 0
print("ready", flush=True)
def timed(name, act):
    t = time.monotonic(); act(); worst[name] = max(worst[name], time.monotonic() - t)
def echo(s):
    s.send(b"x"); assert s.recv(9) == b"x"
def new():
    with socket.create_connection((peer, allowed), 5) as s:
        echo(s)
while not select.select([sys.stdin], [], [], 0)[0]:
    timed("live", lambda: echo(live)); timed("udp", lambda: echo(udp)); timed("new", new)
    with socket.socket(family(), socket.SOCK_STREAM) as s:
        s.setblocking(False)
        tries += 1
        try:
            s.connect((peer, denied))
        except BlockingIOError:
            through += 1
        except OSError as err:
            through += err.errno != errno.EPERM
    rounds += 1
print(json.dumps({"worst": worst, "through": through, "tries": tries, "rounds": rounds}), flush=True)
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Lab() as lab, Kernel(lab) as kernel:
        app, db = lab.host("app"), lab.host("db")
        kernel.served(db, "server", probes.echo_argv(5432, 5433))
        kernel.bind(app.below("svc"), SLOT)
        yield kernel


@pytest.mark.parametrize("peer", ["10.77.0.3", "fd77::3"])
def test_live_connections_are_told_as_their_initiations(kernel: Kernel, peer: str) -> None:
    """At the caller as egress, at the server as ingress, each once, without touching them."""
    kernel.bind(kernel.lab.hosts["db"].below("server"), SLOT + 1)
    load = kernel.served(
        kernel.lab.hosts["app"], "svc", [sys.executable, "-S", "-c", LOAD, peer, "5432", "5433"]
    )

    def told(slot: int) -> set[tuple[str, int, str, int | None]]:
        return {(f.direction, f.proto, str(f.peer), f.port) for f in kernel.datapath.live(slot)}

    try:
        caller = told(SLOT)
        assert {("egress", 6, peer, 5432), ("egress", 17, peer, 5432)} <= caller
        assert {one[0] for one in caller} == {"egress"}
        server = told(SLOT + 1)
        own = "10.77.0.2" if "." in peer else "fd77::2"
        assert ("ingress", 6, own, 5432) in server
    finally:
        load.stdin.write(b"x")
        load.stdin.close()
        assert json.loads(load.stdout.readline())["rounds"] > 0


@pytest.mark.parametrize("peer", ["10.77.0.3", "fd77::3"])
def test_swaps_under_load_stall_nothing_and_let_nothing_through(kernel: Kernel, peer: str) -> None:
    """Two snapshots that agree on these flows and on nothing else, ten times a second."""
    one = rules(edges="10.77.0.3/32 any 5432; fd77::3/128 any 5432; 192.0.2.0/24 tcp 1")
    other = rules(
        edges="10.77.0.0/24 any 5432; fd77::/64 any 5432",
        deny="198.51.100.0/24 any 0 both",
        established="cut",
    )
    kernel.enforce(SLOT, one)
    load = kernel.served(
        kernel.lab.hosts["app"], "svc", [sys.executable, "-S", "-c", LOAD, peer, "5432", "5433"]
    )
    swaps, began = 0, time.monotonic()
    while time.monotonic() - began < SECONDS:
        kernel.enforce(SLOT, (one, other)[swaps % 2])
        swaps += 1
        time.sleep(max(0.0, began + swaps / SWAPS_A_SECOND - time.monotonic()))
    seen = finished(load)
    assert swaps >= SECONDS * SWAPS_A_SECOND * 0.7
    assert seen["through"] == 0, seen
    assert seen["tries"] == seen["rounds"] > 100
    assert max(seen["worst"].values()) < 1.0, seen


def test_enforcement_outlives_the_agent(kernel: Kernel) -> None:
    """What is pinned judges on when the process that loaded it lets go, and another takes it over."""
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 5432"))
    app = kernel.lab.hosts["app"]
    before = [held.generation_id for held in kernel.datapath.held()]
    kernel.datapath.close()
    assert app.call(probes.tcp, "10.77.0.3", 5433, cgroup="svc") == "EPERM"
    assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "connected"
    kernel.datapath.open()
    assert [held.generation_id for held in kernel.datapath.held()] == before
    assert app.call(probes.tcp, "10.77.0.3", 5433, cgroup="svc") == "EPERM"


# A little agent: takes the datapath over, says what it holds, swaps two snapshots until it is killed.
AGENT = """
import pickle, sys
from pathlib import Path
from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath
versions, slot = pickle.loads(Path(sys.argv[3]).read_bytes()), int(sys.argv[4])
datapath = BpfDatapath(Path(sys.argv[1]), sys.argv[2])
datapath.open()
for held in datapath.held():
    print("held", held.generation_id, held.version, held.digest, held.tables_digest, flush=True)
print("ready", flush=True)
while True:
    for generation in versions:
        loaded = datapath.load(slot, "active", generation)
        print("flip", loaded.generation_id, generation.version, flush=True)
        datapath.flip(loaded)
        datapath.forget(slot)
"""

# Begins flows to ports by UDP and TCP until it is told to stop; how often each was refused. A call
# beside a change of the mapping (an agent begins) is left to its packet: the last port, which is never
# open, is asked for that.
PAIRS = """
import collections, json, select, socket, struct, sys
seen = collections.Counter()
def begin(kind, port):
    with socket.socket(socket.AF_INET, kind) as s:
        s.setblocking(False)
        if kind == socket.SOCK_STREAM:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            s.connect(("10.77.0.3", port))
        except BlockingIOError:
            pass
        except PermissionError:
            return "refused"
        return "open" if port != int(sys.argv[-1]) or arrives(s, kind) else "refused"
def arrives(s, kind):
    if kind == socket.SOCK_STREAM:
        return bool(select.select([], [s], [], 0.2)[1])
    try:
        return bool(s.send(b"x"))
    except PermissionError:
        return False
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for port in map(int, sys.argv[1:]):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            seen[f"{port} {begin(kind, port)}"] += 1
print(json.dumps(seen), flush=True)
"""
BOTH, ONLY_A, ONLY_B, NEITHER = 5432, 5441, 5442, 5443
A, B = 1, 2


class Told(NamedTuple):
    """A denial as the kernel told it: the port, the deciding entry, the version by its generation."""

    port: int
    rule: str | None
    version: int


class Denials(threading.Thread):
    """Reads the kernel's records while agents come and go; each is (generation, port, rule, protocol)."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.stop, self.seen = threading.Event(), Counter[tuple[int, int, str | None]]()
        self._fd = libbpf.obj_get(str(home / "maps" / "events"))
        self._ring = libbpf.Ring(self._fd, self._take)

    def _take(self, record: bytes) -> bool:
        _, generation, slot, word, peer, _, port, _, proto, *_ = layout.DENIED.unpack_from(record)
        rule = rule_of(word, address_of(peer), proto, port)
        if slot == SLOT:
            self.seen[generation, port, rule and rule.replace("tcp/", "any/").replace("udp/", "any/")] += 1
        return True

    def run(self) -> None:
        while not self.stop.wait(0.005):
            self._ring.consume()
        self._ring.consume()
        self._ring.close()
        os.close(self._fd)


class Swapper:
    """Agents one after the other; `numbers` has the version of each generation that one put in force."""

    def __init__(self, kernel: Kernel, generations: list[Generation], at: Path) -> None:
        self.kernel, self.generations, self.at = kernel, generations, at
        self.numbers: dict[int, int] = {}
        self.process: subprocess.Popen[str] | None = None
        at.write_bytes(pickle.dumps(generations))

    def begin(self) -> list[str]:
        """Start one; gives what it says the kernel holds of our slot before it does anything."""
        lab = self.kernel.lab
        argv = [sys.executable, "-c", AGENT, str(lab.cgroup), f"test-{lab.name}", str(self.at), str(SLOT)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        (held,) = iter(self.process.stdout.readline, "ready\n")
        return held.split()[1:]

    def swaps(self, count: int) -> None:
        assert self.process
        assert self.process.stdout
        for _ in range(count):
            self._note(self.process.stdout.readline())

    def kill(self) -> None:
        """kill -9, wherever it is."""
        assert self.process
        assert self.process.stdout
        self.process.kill()
        self.process.wait()
        for line in self.process.stdout:
            self._note(line)
        self.process.stdout.close()

    def _note(self, line: str) -> None:
        word, number, version = line.split()
        assert word == "flip"
        self.numbers[int(number)] = int(version)


def pair(count: int, deadline_ns: int) -> list[Generation]:
    """A allows ONLY_A and denies ONLY_B, B the other way round, by entries of other lengths, among many."""
    found = []
    for version, mine, theirs, plen in ((A, ONLY_A, ONLY_B, 32), (B, ONLY_B, ONLY_A, 24)):
        own = "10.77.0.3/32" if plen == 32 else "10.77.0.0/24"
        made = rules(
            edges="; ".join(f"{own} any {port}" for port in (BOTH, mine)), deny=f"{own} any {theirs} both"
        )
        chance, many = random.Random(version), set(made.edges)
        while len(many) < count:
            many.add(Entry(Cidr(4, 11 << 24 | chance.getrandbits(24), 32), "tcp", chance.choice((80, 443))))
        found.append(generation_of(replace(made, edges=tuple(sorted(many))), deadline_ns, version))
    return found


def opened(port: int) -> bool:
    return probes.udp_connected("10.77.0.3", port, 0.05) != "EPERM"


def test_a_flow_is_judged_by_one_version_while_agents_swap_and_are_killed(
    kernel: Kernel, tmp_path: Path, scale: Callable[[str, int], int]
) -> None:
    """What each denial names is a version that denies this flow, by that version's own entry."""
    seed = int(os.environ.get("AEGISFLUX_SEED", str(time.time_ns() % 10**9)))
    print(f"seed {seed} (AEGISFLUX_SEED repeats it)")
    chance, app = random.Random(seed), kernel.lab.hosts["app"]
    generations = pair(scale("entries", 20_000), kernel.datapath.boot_ns() + HOUR_NS)
    kernel.datapath.flip(kernel.datapath.load(SLOT, "active", generations[0]))
    kernel.datapath.drain_denied(1_000_000)
    home = kernel.datapath._pins.home
    kernel.datapath.close()
    denials, agents = Denials(home), Swapper(kernel, generations, tmp_path / "versions")
    agents.numbers[int(agents.begin()[0])] = A
    ports = [str(port) for port in (BOTH, ONLY_A, ONLY_B, NEITHER)]
    load = kernel.served(app, "svc", [sys.executable, "-S", "-c", PAIRS, *ports])
    denials.start()
    try:
        for _ in range(scale("swap_kills", 1)):
            agents.swaps(chance.randint(2, 8))
            time.sleep(chance.random() * 0.05)
            agents.kill()
            judged = [port for port in (ONLY_A, ONLY_B) if app.call(opened, port, cgroup="svc")]
            number, version, *digests = agents.begin()
            of = generations[int(version) - 1]
            assert (agents.numbers[int(number)], digests) == (int(version), [of.digest, of.tables_digest])
            assert judged == [ONLY_A if of.version == A else ONLY_B]
        agents.swaps(8)
    finally:
        agents.kill()
        seen: Any = finished(load)
        denials.stop.set()
        denials.join()
        kernel.datapath.open()
    check_pairs(seen, denials, agents.numbers)


def check_pairs(seen: dict[str, int], denials: Denials, numbers: dict[int, int]) -> None:
    told = Counter[Told]()
    for (number, port, rule), count in denials.seen.items():
        told[Told(port, rule, numbers[number])] += count
    possible = {
        Told(ONLY_A, f"deny 10.77.0.0/24 any/{ONLY_A}", B),
        Told(ONLY_B, f"deny 10.77.0.3/32 any/{ONLY_B}", A),
        Told(NEITHER, None, A),
        Told(NEITHER, None, B),
    }
    assert set(told) == possible, told
    words = {f"{BOTH} open", f"{NEITHER} refused"}
    words |= {f"{port} {word}" for port in (ONLY_A, ONLY_B) for word in ("open", "refused")}
    assert set(seen) == words, seen
    assert min(*told.values(), *seen.values()) > 20, (told, seen)


def finished(load: "subprocess.Popen[bytes]") -> dict[str, object] | object:
    out, _ = load.communicate(b"stop\n", timeout=15)
    return json.loads(out)
