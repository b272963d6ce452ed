"""Users who change the addresses of their namespaces all the time keep nobody else's from being known."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aegisflux.adapters.datapath.bpf import addresses as module
from aegisflux.adapters.datapath.bpf.addresses import REST, Addresses, Seen, Way
from aegisflux.adapters.datapath.bpf.routes import Read
from aegisflux.adapters.datapath.bpf.watch import Changed
from tests.bpf.test_own_of_users import cookie_of, entries, kernel  # noqa: F401 - a fixture
from tests.support.kernel import Kernel
from tests.support.netns import NETNS
from tests.support.unprivileged import GOVERNED

READING = 1 / 64
TURN = 4 * READING
ALL = Changed(everything=True)
ROOT, USERS = range(3), range(100, 140)


class Paper:
    """Watches and a map `own` in one, and readings that each take a quarter of a turn."""

    without_room = ()

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.readings = 0.0, list[int]()
        self.written_after: dict[int, int] = {}
        self.root, self.users, self.rested, self.rests = Changed(), Changed(), list[float](), False
        ways = {n: Way([f"/proc/{n}/ns/net"], True, "ours") for n in ROOT}
        ways |= {n: Way([f"/proc/{n}/ns/net"], True, "user") for n in USERS}
        monkeypatch.setattr(module, "ways_in", lambda *_: (ways, {}))
        monkeypatch.setattr(module, "TURN_SECONDS", TURN)
        monkeypatch.setattr(module, "OwnMap", lambda _: self)
        self.own = Addresses(0, lambda: (), False, self, lambda: self.now)  # type: ignore[arg-type]
        monkeypatch.setattr(self.own, "_read_one", self.read_one)

    def read_one(self, inode: int, way: Way) -> Seen:
        self.now += READING
        self.readings.append(inode)
        return Seen(way, inode, inode, Read(), self.now, True)

    def drain(self) -> Changed:
        return self.root

    def drain_users(self, *, at_once: bool = False) -> Changed | None:
        return None if self.rests and not at_once else self.users

    def rest(self, seconds: float) -> None:
        self.rested.append(seconds)

    def read(self) -> None:
        """Nobody else writes."""

    def put(self, own: dict[int, object], _share: str) -> "Paper":
        self.written_after |= dict.fromkeys(own, len(self.readings))
        return self

    def keep_only(self, living: object) -> None:
        """Nothing went."""

    drop = keep_only


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    """All was read once, in turns."""
    made = Paper(monkeypatch)
    made.own.refresh()
    assert made.readings[:3] == list(ROOT)
    assert [made.written_after[n] for n in ROOT] == [3, 3, 3], "before any of users' is read"
    while len(made.readings) < len(ROOT) + len(USERS):
        made.own.heed()
    assert sorted(made.readings) == [*ROOT, *USERS]
    made.readings.clear(), made.rested.clear(), made.written_after.clear()
    return made


ONE_OF_ROOT = Changed(numbers=frozenset({1}))
SOME_OF_USERS = Changed(numbers=frozenset(USERS[:20]))


@pytest.mark.parametrize("users", [SOME_OF_USERS, ALL, Changed()], ids=["some", "all", "none"])
@pytest.mark.parametrize("root", [ONE_OF_ROOT, ALL], ids=["one of root's", "all"])
def test_roots_are_read_and_written_before_users_whatever_these_do(
    paper: Paper, root: Changed, users: Changed
) -> None:
    paper.root, paper.users = root, users
    wanted = list(ROOT) if root is ALL else [1]
    for _ in range(5):
        paper.readings.clear()
        before = paper.now
        paper.own.heed()
        assert paper.readings[: len(wanted)] == wanted
        assert [paper.written_after[n] for n in wanted] == [len(wanted)] * len(wanted)
        assert paper.now - before <= len(wanted) * READING + TURN, "and the thread is free again"


def test_a_turn_is_followed_by_a_rest_that_grows_with_it_and_none_without_work(paper: Paper) -> None:
    paper.own.heed()
    assert paper.rested == []
    paper.users = Changed(numbers=frozenset({100}))
    paper.own.heed()
    paper.users = ALL
    paper.own.heed()
    assert paper.rested == pytest.approx([REST * READING, REST * TURN])
    paper.readings.clear()
    paper.rests = True
    paper.own.heed()
    assert paper.readings == []


def test_who_changes_all_the_time_waits_behind_the_others(paper: Paper) -> None:
    paper.users = Changed(numbers=frozenset(USERS[:-1]))
    paper.own.heed()
    paper.users = Changed(numbers=frozenset(USERS))
    for _ in range(10):
        paper.own.heed()
    assert USERS[-1] in paper.readings
    assert paper.readings.count(USERS[0]) <= 2


# Each of these namespaces changes an address, again and again.
FLAP = """
import ctypes, os, socket, struct, sys, time
libc, (number, pause) = ctypes.CDLL(None), (int(sys.argv[1]), float(sys.argv[2]))
for _ in range(number):
    if not os.fork():
        uid, gid = os.getuid(), os.getgid()
        assert libc.unshare(0x10000000 | 0x40000000) == 0
        open("/proc/self/setgroups", "w").write("deny")
        open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
        open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        def ask(kind, flags, body):
            s.send(struct.pack("=IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body)
            s.recv(65536)
        ask(16, 0, struct.pack("=BBHiII", 0, 0, 0, 1, 1, 1))
        os.write(1, b".")
        for k in range(10**9):
            raw = socket.inet_aton(f"10.200.{k >> 1 & 255}.1")
            body = struct.pack("=BBBBi", 2, 32, 0, 0, 1) + struct.pack("=HH", 8, 2) + raw
            ask(21 if k & 1 else 20, 0 if k & 1 else 0x600, body)
            time.sleep(pause)
time.sleep(600)
"""


@contextmanager
def flapping(kernel: Kernel, number: int, pause: float) -> Iterator[None]:  # noqa: F811
    home = kernel.lab.hosts["app"].below(GOVERNED)
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", sys.executable, "-I", "-S"]
    join = f'echo $$ > {home}/cgroup.procs; exec "$@"'
    argv = ["sh", "-c", join, "sh", *argv, "-c", FLAP, str(number), str(pause)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, process_group=0)
    try:
        assert process.stdout
        for _ in range(number):
            assert process.stdout.read(1) == b".", "users may make no user namespaces here"
        yield
    finally:
        os.killpg(process.pid, 9)
        process.communicate()


@pytest.mark.bpf
@pytest.mark.netns
@pytest.mark.parametrize(("number", "pause"), [(64, 0.01), (200, 0.3)])
def test_an_address_of_roots_is_own_within_a_second(
    kernel: Kernel,  # noqa: F811
    number: int,
    pause: float,
) -> None:
    app = kernel.lab.hosts["app"]
    fd = kernel.datapath.watch_addresses()
    assert fd is not None
    with flapping(kernel, number, pause):
        kernel.datapath.refresh_addresses()
        for turn in range(8):
            before = entries(kernel)[cookie_of(NETNS / app.netns)]
            ip = ["ip", "-n", app.netns, "addr", "add", f"10.66.{number}.{turn + 1}/32", "dev", "lo"]
            subprocess.run(ip, check=True)
            until = time.monotonic() + 1
            while entries(kernel)[cookie_of(NETNS / app.netns)] <= before:
                assert time.monotonic() < until, "not known within a second"
                select.select([fd], [], [], 0.1)
                kernel.datapath.heed_addresses()
    kernel.datapath.refresh_addresses()
