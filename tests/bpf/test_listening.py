"""What each account gets of the room and the work of a look at the sockets, and ways to take more."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf import listeners as module
from aegisflux.adapters.datapath.bpf import namespaces as spaces
from aegisflux.adapters.datapath.bpf.listeners import Listeners
from aegisflux.adapters.datapath.bpf.listening import (
    FOR_ACCOUNT,
    FOR_ROOT,
    FOR_USERS,
    ROOT,
    WORK,
    Key,
    Look,
    Origin,
    account_of_uid,
)
from aegisflux.adapters.datapath.bpf.programs import CgroupNames, Programs
from aegisflux.domain.event import Listen
from tests.support.netns import cgroup_root

USER = Origin(7, "uid 1000")


def key(n: int, address: str = "10.0.0.1") -> Key:
    return Key(17, address, n, "web")


def looked(known: dict[Key, Origin], found: list[tuple[Origin, int]]) -> Look:
    look = Look(known)
    for at, (origin, n) in enumerate(found):
        if look.may_go_on(origin):
            look.take(origin, key(n), at)
    return look


@pytest.mark.parametrize(
    ("account", "most"),
    [(ROOT, FOR_ROOT), ("uid 1000", FOR_ACCOUNT), ("uids 2", FOR_ACCOUNT), ("user namespace 5", FOR_ACCOUNT)],
)
def test_each_account_has_its_share_and_root_its_own(account: str, most: int) -> None:
    look = looked({}, [(Origin(1, account), n) for n in range(most + 5)])
    assert (len(look.found), look.over) == (most, 5)
    other = Origin(2, "uid 5")
    look.take(other, Key(6, "10.0.0.9", 80, "db"), 1)
    assert look.found[Key(6, "10.0.0.9", 80, "db")] == (other, 1), "who comes last has room"


def test_all_users_together_leave_root_its_room() -> None:
    look = looked({}, [(Origin(1, f"uid {n % 50 + 1}"), n) for n in range(50 * FOR_ACCOUNT)])
    assert len(look.found) == FOR_USERS
    look.take(Origin(2, ROOT), key(1, "10.0.0.2"), 1)
    assert key(1, "10.0.0.2") in look.found


def test_what_is_known_keeps_its_place() -> None:
    known = {key(n): USER for n in range(60_000, 60_000 + FOR_ACCOUNT)}
    look = looked(known, [(USER, n) for n in (*range(50), *(one.port for one in known))])
    assert set(look.found) == set(known)
    assert not any(map(look.is_gone, known))


def left(look: Look) -> None:
    look.leave(USER.namespace)


def worked(look: Look) -> None:
    while look.may_go_on(USER):
        pass


@pytest.mark.parametrize(("cut", "gone"), [(left, False), (worked, False), (lambda _: None, True)])
def test_what_was_cut_is_never_said_to_be_closed(cut, gone) -> None:
    look = Look({key(1): USER, key(2): Origin(8, ROOT)})
    cut(look)
    assert look.is_gone(key(1)) is gone
    assert look.is_gone(key(2)), "of another account and namespace, which was read to its end"


def test_work_ends_also_where_nothing_is_told() -> None:
    look = Look({})
    answers = iter(lambda: look.may_go_on(USER), False)
    assert sum(1 for _ in answers) == WORK * FOR_ACCOUNT
    assert look.may_go_on(Origin(7, ROOT))


@pytest.mark.parametrize(
    ("uid", "account"),
    [(0, ROOT), (1000, "uid 1000"), (65_535, "uid 65535"), (100_000, "uids 1"), (131_071, "uids 1")],
)
def test_subordinate_users_are_one_account(uid: int, account: str) -> None:
    assert account_of_uid(uid) == account


def test_descriptors_of_one_user_take_a_slice_of_the_time(tmp_path: Path, monkeypatch) -> None:
    """Each descriptor takes a tenth of a second by this clock, and one user has a hundred."""
    for pid, uid, inodes in ((1, 1000, range(100)), (2, 1001, [500]), (3, 0, [501, *range(600, 620)])):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        for inode in inodes:
            (tmp_path / str(pid) / "fd" / str(inode)).symlink_to(f"socket:[{inode}]")
        os.chown(tmp_path / str(pid), uid, uid)
    monkeypatch.setattr(module, "PROC", tmp_path)
    monkeypatch.setattr(module, "_pids", lambda: [1, 2, 3])
    read, clock, seen = [], iter(n / 10 for n in range(10**6)), module._descriptors
    monkeypatch.setattr(
        module, "_descriptors", lambda *args: ((read.append(at), at)[1] for at in seen(*args))
    )
    assert (2, 500) in list(module._held({500, 10**6}, clock.__next__))
    assert read[0][0] == 3, "root's first"
    assert sum(pid == 1 for pid, _ in read) < 10


# A user in user namespaces within each other: sockets on very many ports, bound to any, and many addresses.
CROWD = """
import ctypes, os, resource, socket, subprocess, sys, time
sockets, addresses = map(int, sys.argv[1:])
libc = ctypes.CDLL(None)
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
os.setgroups([]); os.setgid(65534); os.setuid(65534); libc.prctl(4, 1, 0, 0, 0)
assert libc.unshare(0x10000000 | 0x40000000) == 0
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write("0 65534 1")
lines = [f"addr add 10.66.{i // 250}.{i % 250 + 1}/32 dev lo" for i in range(addresses)]
subprocess.run(["ip", "-batch", "-"], input="\\n".join(["link set lo up", *lines]).encode(), check=True)
open("/proc/sys/net/ipv4/ip_local_port_range", "w").write("65000 65001")
held = []
for port in range(2000, 2000 + sockets):
    held.append(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    held[-1].bind(("::", port))
print("ready", flush=True)
sys.stdin.readline()
for one in held[:sockets // 2]: one.close()
print("closed", flush=True)
sys.stdin.readline()
"""
SERVER = (
    "import socket,sys; s=socket.create_server(('127.0.0.1',81)); print('ready',flush=True); sys.stdin.read()"
)


@contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[str]]:
    one = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
        yield one
    finally:
        one.kill()
        one.communicate()


def told(source: Listeners) -> list[Listen]:
    reading = source.read(1, 10**6)
    source.done(reading.cursor)
    return list(reading.events)


@pytest.mark.bpf
@pytest.mark.netns
@pytest.mark.parametrize(("sockets", "addresses"), [(9000, 1), (3000, 20), (200, 60), (300, 400)])
def test_a_user_with_very_many_listeners_hides_nobody(sockets: int, addresses: int) -> None:
    source = Listeners(Programs(), CgroupNames(cgroup_root()))
    with process(sys.executable, "-S", "-c", CROWD, str(sockets), str(addresses)) as user:
        inside = [
            "unshare",
            "-n",
            "sh",
            "-c",
            'ip link set lo up; exec "$0" -S -c "$1"',
            sys.executable,
            SERVER,
        ]
        with process(*inside) as late:
            first = told(source)
            assert [e.closed for e in first if e.port == 81 and e.pid == late.pid] == [False]
            theirs = [e for e in first if e.proto == 17 and e.address.startswith(("10.66.", "127."))]
            assert len(theirs) <= FOR_ACCOUNT
            assert user.stdin
            assert user.stdout
            user.stdin.write("\n")
            user.stdin.flush()
            assert user.stdout.readline() == "closed\n"
            again = told(source)
            assert not [e for e in again if e.closed and e.pid == late.pid]
        assert [e.closed for e in told(source) if e.port == 81 and e.pid == late.pid] == [True]


@pytest.mark.bpf
@pytest.mark.netns
def test_namespaces_within_each_other_are_of_who_made_the_outermost() -> None:
    nested = "unshare -Un --map-root-user unshare -Un --map-root-user sh -c 'echo ready; exec cat'"
    as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", "sh", "-c"]
    for argv, account in (
        ([*as_user, nested], "uid 65534"),
        (["sh", "-c", nested], "user namespace"),
        (["unshare", "-n", "sh", "-c", "echo ready; exec cat"], "None"),
    ):
        with process(*argv) as one:
            (pid,) = child_of(one.pid)
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            try:
                assert str(spaces.account_of(fd)).startswith(account)
            finally:
                os.close(fd)


def child_of(pid: int) -> list[int]:
    """The process that ends the chain: each has become the next, or waits for it."""
    while below := open(f"/proc/{pid}/task/{pid}/children").read().split():  # noqa: SIM115
        (pid,) = map(int, below)
    return [pid]
