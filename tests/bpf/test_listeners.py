"""Listening sockets of namespaces and cgroups, against what really listens."""

import os
import socket
import sys
from collections.abc import Iterator

import pytest

from aegisflux.adapters.datapath.bpf.listeners import Listeners
from aegisflux.adapters.datapath.bpf.programs import CgroupNames, Programs
from aegisflux.domain.event import Listen
from tests.support import probes
from tests.support.netns import Host, Lab, cgroup_root

pytestmark = [pytest.mark.bpf, pytest.mark.netns]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.host("db")
        yield lab


def source_of(lab: Lab) -> Listeners:
    return Listeners(Programs(), CgroupNames(cgroup_root()), str(lab.cgroup.relative_to(cgroup_root())))


def drained(source: Listeners, limit: int = 1000) -> list[Listen]:
    reading = source.read(1, limit)
    source.done(reading.cursor)
    return list(reading.events)


def serve(host: Host, *ports: int):
    process = host.start(probes.echo_argv(*ports), "server", stdout=-1)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_listener_is_told_when_it_comes_and_when_it_goes(lab: Lab) -> None:
    """On any address of another namespace: told as the addresses that it has."""
    source, host = source_of(lab), lab.hosts["db"]
    assert drained(source) == []
    process = serve(host, 5432)
    told = drained(source)
    cgroup = str(host.below("server").relative_to(cgroup_root()))
    found = {(e.proto, e.address, e.port, e.closed, e.cgroup, e.pid, e.path) for e in told}
    addresses = {host.v4, host.v6, *(e.address for e in told if e.address.startswith("fe80:"))}
    path = os.path.realpath(sys.executable)
    assert found == {(p, a, 5432, False, cgroup, process.pid, path) for p in (6, 17) for a in addresses}
    assert drained(source) == []
    process.kill()
    process.wait()
    assert {(e.proto, e.address, e.closed) for e in drained(source)} == {
        (p, a, True) for p in (6, 17) for a in addresses
    }


def test_a_client_that_waits_for_answers_listens_to_nobody(lab: Lab) -> None:
    """UDP sockets on a port that the kernel chose, connected ones, and TCP connections are no listeners."""
    source, host = source_of(lab), lab.hosts["db"]
    code = (
        "import socket,sys\n"
        "a=socket.socket(2,2);a.sendto(b'x',('10.77.0.2',9))\n"
        "b=socket.socket(2,2);b.bind(('',700));b.connect(('10.77.0.2',9))\n"
        "print('ready',flush=True);sys.stdin.read()"
    )
    process = host.start([sys.executable, "-S", "-c", code], "client", stdin=-1, stdout=-1)
    assert process.stdout.readline() == b"ready\n"
    try:
        assert drained(source) == []
    finally:
        process.communicate()


def test_in_our_own_namespace_an_address_is_as_it_was_bound() -> None:
    source = Listeners(Programs(), CgroupNames(cgroup_root()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (told,) = [e for e in drained(source) if e.port == port]
        assert (told.address, told.proto, told.pid) == ("127.0.0.1", 6, os.getpid())
        assert source.owner(6, port, told.cgroup)[0] == os.getpid()
    assert [(e.port, e.closed) for e in drained(source) if e.port == port] == [(port, True)]


def test_a_few_at_a_time_and_a_new_agent_tells_all_again(lab: Lab) -> None:
    source, host = source_of(lab), lab.hosts["db"]
    process = serve(host, 6001, 6002)
    try:
        first = source.read(1, 3)
        assert first.more
        assert source.read(1, 3).cursor == first.cursor
        source.done(first.cursor)
        rest = drained(source)
        everything = {(e.proto, e.address, e.port) for e in (*first.events, *rest)}
        assert len(everything) == len(first.events) + len(rest)
        again = source_of(lab)
        again.resume(first.cursor + len(rest))
        assert {(e.proto, e.address, e.port) for e in drained(again)} == everything
        assert again.read(1, 10).cursor == first.cursor + 2 * len(rest) + 3
    finally:
        process.kill()
        process.wait()
