"""Flows as the kernel counts them, against what was really sent."""

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aegisflux.adapters.datapath.bpf.programs import CgroupNames, Programs
from aegisflux.adapters.datapath.bpf.traffic import Traffic
from aegisflux.domain.event import FlowSeen
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import HOUR_NS, Kernel, generation_of
from tests.support.netns import Lab, cgroup_root

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT = 7
V4, V6 = "10.77.0.3", "fd77::3"


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Lab() as lab, Kernel(lab) as kernel:
        app, db = lab.host("app"), lab.host("db")
        kernel.served(db, "server", probes.echo_argv(5432, 5433))
        app.below("svc")
        yield kernel


def opened(kernel: Kernel) -> Traffic:
    top = Path(f"/sys/fs/bpf/aegisflux/test-{kernel.lab.name}")
    source = Traffic(top, Programs(), CgroupNames(cgroup_root()))
    source.open()
    return source


@pytest.fixture
def traffic(kernel: Kernel) -> Iterator[Traffic]:
    source = opened(kernel)
    drained(source)
    try:
        yield source
    finally:
        source.remove()
        kernel.bind(kernel.lab.hosts["app"].below("svc"), SLOT)
        kernel._bound.clear()
        kernel.datapath.bind([])
        kernel.datapath.remove(SLOT, "active")


def drained(source: Traffic) -> list[FlowSeen]:
    reading = source.read(1, 100_000)
    source.done(reading.cursor)
    return list(reading.events)


def exchange(address: str, sizes: list[int]) -> None:
    """Send so many bytes at a time over one connection and read them back."""
    with socket.create_connection((address, 5432), 2) as s:
        for size in sizes:
            s.sendall(b"x" * size)
            left = size
            while left:
                left -= len(s.recv(left))


@pytest.mark.parametrize("address", [V4, V6])
def test_a_connection_is_one_flow_on_either_side(kernel: Kernel, traffic: Traffic, address: str) -> None:
    """Initiator, addresses, the port that was called, bytes with headers, one connection, who it was."""
    header = 20 if "." in address else 40
    kernel.lab.hosts["app"].call(exchange, address, [100, 50], cgroup="svc")
    flows = {flow.direction: flow for flow in drained(traffic) if flow.proto == 6}
    out, into = flows["egress"], flows["ingress"]
    own = kernel.lab.hosts["app"]
    assert (out.local, out.peer, out.port) == (own.v4 if "." in address else own.v6, address, 5432)
    assert (into.local, into.peer, into.port) == (out.peer, out.local, 5432)
    assert (out.connections, into.connections) == (1, 1)
    assert out.packets_out * (header + 20) + 150 <= out.bytes_out <= out.packets_out * (header + 40) + 150
    assert out.bytes_in >= 150 + out.packets_in * (header + 20)
    assert into.bytes_in <= out.bytes_out
    assert into.packets_out <= out.packets_in
    assert (out.verdict, out.reason, out.service_id) == ("allowed", "unmanaged", None)
    assert out.cgroup == str(own.below("svc").relative_to(cgroup_root()))
    assert into.cgroup == str(kernel.lab.hosts["db"].below("server").relative_to(cgroup_root()))
    assert out.pid
    assert out.start_ns
    assert out.first_ns <= out.last_ns == out.time_ns


@pytest.mark.parametrize("address", [V4, V6])
def test_a_packet_of_many_segments_has_the_bytes_that_travel(
    kernel: Kernel, traffic: Traffic, address: str
) -> None:
    """The kernel hands over up to 64 KiB under one header; each segment of it has its own on the wire."""
    headers, much = (20 if "." in address else 40) + 20, 1 << 17
    kernel.lab.hosts["app"].call(exchange, address, [much], cgroup="svc")
    flows = [flow for flow in drained(traffic) if flow.proto == 6]
    assert len(flows) == 2
    for flow in flows:
        assert much / 1500 < flow.packets_out
        assert flow.bytes_out >= much + flow.packets_out * headers
        assert flow.bytes_in >= much + flow.packets_in * headers


def test_datagrams_are_of_whoever_sent_first(kernel: Kernel, traffic: Traffic) -> None:
    """28 bytes of headers and one of data, there and back; nothing governs either side."""
    for _ in range(3):
        assert kernel.lab.hosts["app"].call(probes.udp_sendto, V4, 5432, cgroup="svc") == "answered"
    flows = {flow.direction: flow for flow in drained(traffic) if flow.proto == 17}
    out, into = flows["egress"], flows["ingress"]
    assert (out.packets_out, out.packets_in, out.bytes_out, out.bytes_in) == (3, 3, 87, 87)
    assert (into.packets_out, into.packets_in) == (3, 3)
    assert (out.port, into.port, out.connections) == (5432, 5432, 3)


def test_a_governed_flow_has_its_verdict_and_its_service(kernel: Kernel, traffic: Traffic) -> None:
    kernel.bind(kernel.lab.hosts["app"].below("svc"), SLOT)
    kernel.enforce(SLOT, rules(edges=f"{V4}/32 tcp 5432; {V4}/32 udp 5432"))
    for _ in range(2):
        assert kernel.lab.hosts["app"].call(probes.udp_sendto, V4, 5432, cgroup="svc") == "answered"
        assert kernel.lab.hosts["app"].call(probes.tcp, V4, 5432, cgroup="svc") == "connected"
    told = {flow.proto: flow for flow in drained(traffic) if flow.direction == "egress"}
    assert {(f.verdict, f.reason) for f in told.values()} == {("allowed", "allow")}
    assert {f.service_id for f in told.values()} == {rules().service_id}
    assert (told[17].packets_out, told[17].packets_in, told[17].connections) == (2, 2, 2)
    assert told[6].connections == 2


def test_what_is_only_observed_is_told_apart(kernel: Kernel, traffic: Traffic) -> None:
    kernel.bind(kernel.lab.hosts["app"].below("svc"), SLOT)
    observe = msgspec.structs.replace(rules(edges=f"{V4}/32 tcp 5432"), mode="observe")
    kernel.enforce(SLOT, observe)
    assert kernel.lab.hosts["app"].call(probes.tcp, V4, 5433, cgroup="svc") == "connected"
    assert kernel.lab.hosts["app"].call(probes.tcp, V4, 5432, cgroup="svc") == "connected"
    told = {f.port: (f.verdict, f.reason) for f in drained(traffic) if f.direction == "egress"}
    assert told == {5433: ("would block", "no_match"), 5432: ("allowed", "allow")}


def test_refused_packets_are_a_flow_of_their_own(kernel: Kernel, traffic: Traffic) -> None:
    """The callee refuses: its side says blocked; the caller's side passed what it sent."""
    server = kernel.lab.hosts["db"].below("server")
    kernel.bind(server, SLOT)
    kernel.enforce(SLOT, rules(edges="0.0.0.0/0 any 0", ingress="192.0.2.1/32 tcp 5432"))
    try:
        assert kernel.lab.hosts["app"].call(probes.tcp, V4, 5432, cgroup="svc") == "silent"
        flows = drained(traffic)
        into = [f for f in flows if f.direction == "ingress"]
        assert {(f.verdict, f.reason, f.packets_out) for f in into} == {("blocked", "no_match", 0)}
        assert all(f.packets_in >= 1 for f in into)
    finally:
        kernel.datapath.remove(SLOT, "active")


def test_turns_lose_and_repeat_nothing_over_a_kill_at_any_point(kernel: Kernel, traffic: Traffic) -> None:
    """The sum over all turns is what was sent, wherever an agent ended."""
    sent = 0
    told: list[FlowSeen] = []

    def talk() -> None:
        nonlocal sent
        for port in (5432, 5433):
            assert kernel.lab.hosts["app"].call(probes.udp_sendto, V4, port, cgroup="svc") == "answered"
        sent += 2

    talk()
    reading = traffic.read(1, 1)  # a part of a turn is spooled; the agent dies before it says so
    told += reading.events
    traffic.close()
    talk()
    second = opened(kernel)
    second.resume(reading.cursor)
    while (reading := second.read(1, 1)).more:
        told += reading.events
        second.done(reading.cursor)
    told += reading.events  # the last of it is spooled; then the agent dies
    second.close()
    talk()
    third = opened(kernel)
    third.resume(reading.cursor)
    for _ in range(3):
        told += drained(third)
    third.close()
    out = [f for f in told if f.direction == "egress" and f.proto == 17]
    assert sum(f.packets_out for f in out) == sum(f.packets_in for f in out) == sent


def test_a_closed_source_counts_on_and_a_removed_one_does_not(kernel: Kernel, traffic: Traffic) -> None:
    traffic.remove()
    kernel.lab.hosts["app"].call(probes.udp_sendto, V4, 5432, cgroup="svc")
    traffic.open()
    assert drained(traffic) == []


def test_a_full_map_loses_flows_and_counts_them(
    kernel: Kernel, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegisflux.adapters.datapath.bpf.traffic.MOST_FLOWS", 4)
    kernel.lab.hosts["app"].call(many_peers, 1, cgroup="svc")
    assert drained(traffic), "a turn in which something was counted ends: from here on a small map"
    before = traffic.lost()["full.packet"]
    kernel.lab.hosts["app"].call(many_peers, 40, cgroup="svc")
    told = drained(traffic)
    assert 0 < len(told) <= 8
    assert traffic.lost()["full.packet"] >= before + 30


def test_a_turn_in_which_nothing_was_counted_goes_on(kernel: Kernel, traffic: Traffic) -> None:
    """No map is made and none is exchanged on an idle host; what is counted later is told once."""
    drained(traffic)
    turns = traffic._pinned()
    assert [drained(traffic) for _ in range(3)] == [[], [], []]
    assert traffic._pinned() == turns
    again = opened(kernel)
    assert drained(again) == []
    assert again._pinned() == turns
    again.close()
    kernel.lab.hosts["app"].call(many_peers, 3, cgroup="svc")
    assert len(drained(traffic)) == 3
    assert drained(traffic) == []


def many_peers(count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for port in range(1, count + 1):
            s.sendto(b"x", (V4, 20_000 + port))


def chat(times: int, sources: tuple[str, ...]) -> int:
    """One socket, one peer, so many questions with their answers, from one own address after the other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("", 7100))
        s.settimeout(2)
        answered = 0
        for i in range(times):
            info = struct.pack("@I4s4s", 0, socket.inet_aton(sources[i % len(sources)]), bytes(4))
            s.sendmsg([b"x"], [(socket.IPPROTO_IP, 8, info)], 0, (V4, 5432))
            answered += s.recv(9) == b"x"
        return answered


@pytest.mark.parametrize("sources", [("10.77.0.2",), ("10.77.0.2", "10.77.0.92")], ids=["one", "two"])
def test_a_busy_flow_of_datagrams_is_counted_to_the_last(
    kernel: Kernel, traffic: Traffic, sources: tuple[str, ...]
) -> None:
    """Its numbers wait in its own record, and belong to the turn that is taken next."""
    app = kernel.lab.hosts["app"]
    for source in sources[1:]:
        app.run(["ip", "addr", "add", f"{source}/24", "dev", "eth0"])
    kernel.bind(app.below("svc"), SLOT)
    kernel.enforce(SLOT, rules(edges=f"{V4}/32 udp 5432", ingress=""))
    counted: Counter[tuple[str, str]] = Counter()
    for _ in range(3):
        assert app.call(chat, 400, sources, cgroup="svc") == 400
        for flow in drained(traffic):
            if flow.direction == "egress" and flow.port == 5432:
                counted[flow.local, "out"] += flow.packets_out
                counted[flow.local, "in"] += flow.packets_in
                assert flow.bytes_out == 29 * flow.packets_out
                assert (flow.verdict, flow.pid > 0) == ("allowed", True)
                assert 0 < flow.first_ns <= flow.last_ns
    each = 1200 // len(sources)
    assert counted == {(source, way): each for source in sources for way in ("out", "in")}


def test_a_candidate_that_denies_changes_no_account(kernel: Kernel, traffic: Traffic) -> None:
    app = kernel.lab.hosts["app"]
    kernel.bind(app.below("svc"), SLOT)
    kernel.enforce(SLOT, rules(edges=f"{V4}/32 any 5432"))
    candidate = kernel.datapath.load(
        SLOT, "candidate", generation_of(rules(), kernel.datapath.boot_ns() + HOUR_NS, version=2)
    )
    kernel.datapath.flip(candidate)
    try:
        assert app.call(probes.udp_sendto, V4, 5432, cgroup="svc") == "answered"
        assert app.call(probes.tcp, V4, 5432, cgroup="svc") == "connected"
        told = {(f.proto, f.verdict) for f in drained(traffic) if f.direction == "egress"}
        assert told == {(17, "allowed"), (6, "allowed")}
    finally:
        kernel.datapath.remove(SLOT, "candidate")
