"""The mapping of a removed cgroup lives as long as a socket of it, and no longer, also without an agent."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.bpf.test_sockets import rules
from tests.support.kernel import Kernel
from tests.support.netns import Host, Lab, cgroup_root, enter

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT, CHURN = 4, 300


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """A service that may call nobody."""
    with Lab() as lab, Kernel(lab) as kernel:
        lab.host("app")
        lab.host("db")
        kernel.enforce(SLOT, rules())
        yield kernel


def mapped(kernel: Kernel) -> set[int]:
    mapping = kernel.datapath._mapping
    assert mapping is not None
    return {number for number, slot in mapping._present().items() if slot == SLOT}


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds within five seconds: the kernel lets go of cgroups in its own time."""
    until = time.monotonic() + 5
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def holder(host: Host, cgroup: Path, elsewhere: Path, conn: Connection, kind: int) -> None:
    """Makes a socket in a cgroup, leaves the cgroup, and says how a call ends each time it is asked."""
    enter(host.netns, cgroup)
    held = socket.socket(socket.AF_INET, kind)
    held.settimeout(2)
    (elsewhere / "cgroup.procs").write_text("0")
    conn.send("left")
    while conn.recv():
        try:
            held.connect(("10.77.0.3", 5432))
            conn.send("connected")
        except OSError as error:
            conn.send(os.strerror(error.errno or 0))
    held.close()
    conn.send("closed")
    conn.recv()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_outlives_its_cgroup_stays_governed(kernel: Kernel, kind: int) -> None:
    app = kernel.lab.hosts["app"]
    home, elsewhere = app.below("brief"), app.below("elsewhere")
    kernel.bind(home, SLOT)
    number = home.stat().st_ino
    ours, theirs = Pipe()
    pid = os.fork()
    if not pid:
        try:
            holder(app, home, elsewhere, theirs, kind)
        finally:
            os._exit(0)
    try:
        assert ours.recv() == "left"
        home.rmdir()
        ours.send(True)
        assert ours.recv() == "Operation not permitted"
        assert number in mapped(kernel)
        ours.send(False)
        assert ours.recv() == "closed"
        assert eventually(lambda: number not in mapped(kernel))
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_service_that_restarts_for_ever_fills_nothing_while_no_agent_runs(kernel: Kernel) -> None:
    app = kernel.lab.hosts["app"]
    home = app.below(None) / "again"
    kernel.datapath.literals({str(home.relative_to(cgroup_root())): SLOT})
    before, born = mapped(kernel), set()
    for _ in range(CHURN):
        home.mkdir()
        born |= {home.stat().st_ino} & mapped(kernel)
        home.rmdir()
    assert len(born) == CHURN, "each is bound at its birth"
    assert eventually(lambda: mapped(kernel) <= before)


def test_what_the_kernel_took_away_with_a_cgroup_is_no_drift(kernel: Kernel) -> None:
    home = kernel.lab.hosts["app"].below("gone")
    kernel.bind(home, SLOT)
    before = kernel.datapath.bindings()
    number = home.stat().st_ino
    home.rmdir()
    assert eventually(lambda: number not in mapped(kernel))
    assert kernel.datapath.bindings() == before
    assert kernel.datapath.mend() == []
