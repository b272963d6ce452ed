"""What a user puts into network namespaces of their own takes nobody else's room, time or name."""

import ctypes
import os
import select
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.namespaces import (
    CLONE_NEWNET,
    MOST_OF_ACCOUNT,
    cookie,
    each_namespace,
    inside,
    namespaces,
    owner_at,
)
from aegisflux.adapters.datapath.bpf.shares import ENTRIES, FOR_USERS, MARKS_EACH, MOST, MOST_NAMESPACES
from aegisflux.wire import layout
from tests.bpf.test_life import governed
from tests.bpf.test_sockets import rules
from tests.support.kernel import Kernel
from tests.support.netns import NETNS, Host, Lab
from tests.support.unprivileged import GOVERNED, delegate, drop

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)
SLOT, ROUTES, MANY = 4, 2000, MOST_NAMESPACES["users"] + 20


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """A governed service, and a governed slice of a user."""
    with Lab() as lab, Kernel(lab) as kernel:
        app = lab.host("app")
        app.start(["sleep", "600"], "svc")
        governed(kernel)
        delegate(app.below(GOVERNED))
        kernel.bind(app.below(GOVERNED), SLOT + 1)
        kernel.enforce(SLOT, rules())
        yield kernel


def ip_batch(lines: list[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines).encode(), check=True, capture_output=True)


class User:
    """Processes of uid 65534 in the governed slice, each in user and network namespaces of its own."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.pids: list[int] = []

    def makes(self, lines: list[str], as_user: bool = True) -> int:
        """One more; the process lives on. Answers its pid."""
        ready, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                (self._home / "cgroup.procs").write_text("0")
                if as_user:
                    drop()
                uid, gid = os.getuid(), os.getgid()
                assert _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
                Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
                ip_batch(["link set lo up", *lines])
                os.write(theirs, b"1")
                os.execvp("sleep", ["sleep", "300"])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(theirs)
        self.pids.append(pid)
        with os.fdopen(ready, "rb") as file:
            if not file.read(1):
                pytest.skip("users may make no user namespaces here")
        return pid

    def ends(self) -> None:
        for pid in self.pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


@pytest.fixture
def user(kernel: Kernel) -> Iterator[User]:
    made = User(kernel.lab.hosts["app"].below(GOVERNED))
    yield made
    made.ends()
    kernel.datapath.refresh_addresses()


def cookie_of(path: str | Path) -> int:
    with Path(path).open() as file:
        return inside(file.fileno(), cookie)


def entries(kernel: Kernel) -> Counter[int]:
    keys = libbpf.keys(kernel.datapath._pins.maps["own"], layout.OWN_KEY.size)
    return Counter(layout.OWN_KEY.unpack(key)[1] for key in keys)


def locals_of(number: int) -> list[str]:
    return [f"route add local 10.{64 + (i >> 16)}.{i >> 8 & 255}.{i & 255} dev lo" for i in range(number)]


FILLS = {
    "few addresses": (["addr add 10.66.1.1/32 dev lo"], True),
    "as many as have room": (locals_of(MOST["users"]), True),
    "one too many": (locals_of(MOST["users"] + 1), False),
    "many local routes": (locals_of(ROUTES), False),
    "many addresses": ([f"addr add 10.66.{i >> 8}.{i & 255}/32 dev lo" for i in range(ROUTES)], False),
    "many of IPv6": ([f"route add local fd66::{i:x} dev lo" for i in range(ROUTES)], False),
    "many that are no own ones": (
        [f"route add broadcast 10.{i >> 8}.{i & 255}.255 dev lo table local" for i in range(ROUTES)],
        False,
    ),
}


@pytest.mark.parametrize("title", FILLS)
@pytest.mark.parametrize("is_user", [True, False], ids=["by a user", "by root"])
def test_a_namespace_of_another_user_namespace_has_little_room(
    kernel: Kernel, user: User, title: str, is_user: bool
) -> None:
    lines, is_known = FILLS[title]
    path = f"/proc/{user.makes(lines, as_user=is_user)}/ns/net"
    assert owner_at(path) == ("user" if is_user else "root")
    troubles = kernel.datapath.refresh_addresses()
    number, app = cookie_of(path), cookie_of(NETNS / kernel.lab.hosts["app"].netns)
    found = entries(kernel)
    assert bool(found[number]) == is_known
    assert found[number] <= MOST["users"] + MARKS_EACH
    assert found[app] > MARKS_EACH, "the service's own namespace is known all the same"
    assert any("other user namespaces" in text for text in troubles) != is_known
    assert kernel.datapath.namespaces_unknown() == (0 if is_known else 1)
    assert not any("/proc/" in text for text in troubles), "no line for each that a user makes"


def test_no_address_that_a_user_chose_is_told_to_others(kernel: Kernel, user: User) -> None:
    user.makes(["addr add 10.66.1.1/24 dev lo", "addr add fd66:1::1/64 dev lo nodad"])
    kernel.datapath.refresh_addresses()
    reached = set(map(str, kernel.datapath.addresses()))
    assert not {"10.66.1.1", "fd66:1::1"} & reached
    assert "10.77.0.2" in reached


def test_more_namespaces_of_users_than_have_room_push_nobody_out(kernel: Kernel, user: User) -> None:
    first = cookie_of(f"/proc/{user.makes(locals_of(3))}/ns/net")
    kernel.datapath.refresh_addresses()
    for _ in range(MANY):
        user.makes(locals_of(MOST["users"]))
    late = kernel.lab.host("late")
    late.start(["sleep", "600"], "svc")
    kernel.bind(late.below("svc"), SLOT)
    kernel.datapath.refresh_addresses()
    began = time.monotonic()
    (trouble,) = kernel.datapath.refresh_addresses()
    print(f"refresh over {MANY} namespaces of a user: {time.monotonic() - began:.3f} s")
    assert "other user namespaces" in trouble
    assert kernel.datapath.namespaces_unknown() == MANY + 1 - MOST_NAMESPACES["users"]
    found = entries(kernel)
    assert found[first], "who was there stays"
    assert found[cookie_of(NETNS / late.netns)] > MARKS_EACH, "what root made later is known"
    assert found[cookie_of("/proc/self/ns/net")] >= MARKS_EACH
    assert sum(found.values()) <= ENTRIES
    theirs = sum(found[cookie_of(f"/proc/{pid}/ns/net")] for pid in user.pids)
    assert theirs <= FOR_USERS
    knows_soon(kernel, late, "10.66.9.9")
    takes_few_descriptors(user.pids)


def takes_few_descriptors(pids: list[int]) -> None:
    """However many namespaces users make, the agent has descriptors left; none of root's is left out."""
    before, most, visited = open_files(), 0, 0
    for _ in each_namespace(pids):
        most, visited = max(most, open_files()), visited + 1
    assert (most, visited, open_files()) == (before + 1, len(pids), before)
    left: set[int] = set()
    held = namespaces([*pids, os.getpid()], left)
    for fd in held.values():
        os.close(fd)
    assert len(held) == MOST_OF_ACCOUNT + 1
    assert Path("/proc/self/ns/net").stat().st_ino in held
    assert len(left) == len(pids) - MOST_OF_ACCOUNT


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def knows_soon(kernel: Kernel, host: Host, address: str) -> None:
    """What is added in root's namespace is own as soon as the kernel tells."""
    before = entries(kernel)[cookie_of(NETNS / host.netns)]
    subprocess.run(["ip", "-n", host.netns, "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    fd, until = kernel.datapath.watch_addresses(), time.monotonic() + 1
    assert fd is not None
    while entries(kernel)[cookie_of(NETNS / host.netns)] <= before:
        assert select.select([fd], [], [], max(0, until - time.monotonic()))[0], "nobody told"
        kernel.datapath.heed_addresses()
