"""A pass over the sockets of a service looks into those of its namespaces that have any."""

import sys
from collections.abc import Iterator

import pytest

from aegisflux.adapters.datapath.bpf import libbpf, namespaces
from tests.bpf.test_sockets import rules
from tests.support.kernel import Kernel
from tests.support.netns import Lab

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT = 4
HOLDER = """
import socket, sys
exec("made = [" + sys.argv[1] + "]")
print("ready", flush=True)
sys.stdin.read()
"""
LISTENER = "socket.create_server(('{}', 7000), family=socket.{})"


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Lab() as lab, Kernel(lab) as kernel:
        kernel.bind(lab.host("app").below("all"), SLOT)
        kernel.enforce(SLOT, rules())
        yield kernel


@pytest.mark.parametrize(
    ("made", "looks"),
    [
        ("", 0),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", 0),
        (LISTENER.format("0.0.0.0", "AF_INET"), 1),
        (LISTENER.format("::", "AF_INET6"), 1),
    ],
)
def test_a_pass_looks_where_tcp_is(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, made: str, looks: int
) -> None:
    """One look walks through the kernel's table of all sockets: a thousand of them took seconds."""
    ran, run = [], libbpf.run_iterator
    monkeypatch.setattr(libbpf, "run_iterator", lambda program: (ran.append(1), run(program))[1])
    app = kernel.lab.hosts["app"]
    argv = ["unshare", "-n", sys.executable, "-S", "-c", HOLDER, made]
    holders = [kernel.served(app, "all", argv) for _ in range(3)]
    try:
        kernel.datapath.rejudge(SLOT)
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
    assert len(ran) == 3 * looks


def test_connections_are_seen_without_a_listener(kernel: Kernel) -> None:
    """A namespace that only calls others has sockets too."""
    app = kernel.lab.hosts["app"]
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 7000)); "
        "c = socket.create_connection(('127.0.0.1', 7000)); a = s.accept(); s.close(); "
        "print('ready', flush=True); input()"
    )
    argv = ["unshare", "-n", "sh", "-c", f'ip link set lo up && exec {sys.executable} -S -c "{program}"']
    holder = kernel.served(app, "all", argv)
    try:
        (fd,) = namespaces.namespaces([holder.pid], set()).values()
        with open(fd, closefd=True):
            assert namespaces.inside(fd, namespaces.has_tcp)
    finally:
        holder.kill()
        holder.communicate()


def test_one_namespace_that_cannot_be_entered_costs_no_other() -> None:
    with open("/proc/self/ns/net") as good, open("/dev/null") as bad:
        first, second = namespaces.inside_each([bad.fileno(), good.fileno()], lambda: "in")
    assert isinstance(first, OSError)
    assert second == "in"
