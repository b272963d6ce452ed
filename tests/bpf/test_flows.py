"""What is remembered of flows: who began them, what a swap keeps, whose socket it is."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from aegisflux.domain.net import Address
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import Kernel, generation_of
from tests.support.netns import Lab, cgroup_root

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT = 9
ALL = "0.0.0.0/0 any 0; ::/0 any 0"


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Lab() as lab, Kernel(lab) as kernel:
        app, db = lab.host("app"), lab.host("db")
        for host, ports, cgroup in ((db, (5432, 5433), "server"), (app, (6000,), "svc")):
            kernel.served(host, cgroup, probes.echo_argv(*ports))
        kernel.bind(app.below("svc"), SLOT)
        yield kernel


def test_answers_follow_the_initiation_of_a_datagram(kernel: Kernel) -> None:
    """Egress is closed, ingress open: the service may answer, and may not begin."""
    kernel.enforce(SLOT, rules(ingress="10.77.0.3/32 udp 6000; fd77::3/128 udp 6000"))
    for address in ("10.77.0.2", "fd77::2"):
        assert kernel.lab.hosts["db"].call(probes.udp_sendto, address, 6000) == "answered"
    assert kernel.lab.hosts["app"].call(probes.udp_sendto, "10.77.0.3", 5432, cgroup="svc") == "EPERM"


def two_ports() -> str:
    """A connected UDP socket may send to another port: the packet counts, not the socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("10.77.0.3", 5432))
        s.send(b"x")
        s.settimeout(0.25)
        first = s.recv(9)
        return probes.word(lambda: str(s.sendto(b"x", ("10.77.0.3", 5433)))) if first == b"x" else "silent"


def test_a_connected_socket_that_sends_elsewhere_is_judged_by_the_packet(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 udp 5432"))
    assert kernel.lab.hosts["app"].call(two_ports, cgroup="svc") == "EPERM"


def udp_across(pipe_in: int, pipe_out: int) -> None:
    """Two datagrams of one flow, the second when told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("10.77.0.3", 5432))
        s.settimeout(0.25)
        for _ in range(3):
            answer = probes.word(lambda: "yes" if s.send(b"x") and s.recv(9) else "no")
            os.write(pipe_out, answer.encode().ljust(8))
            if not os.read(pipe_in, 1):
                return


@pytest.mark.parametrize(("established", "after"), [("keep", "yes"), ("cut", "EPERM")])
def test_a_live_udp_flow_across_two_swaps(kernel: Kernel, established: str, after: str) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    (tell_in, tell), (answers, out) = os.pipe(), os.pipe()
    app = kernel.lab.hosts["app"]
    seen = []

    def steps() -> None:
        seen.append(os.read(answers, 8).decode().strip())
        for _ in range(2):
            kernel.enforce(SLOT, rules(established=established))
            os.write(tell, b"!")
            seen.append(os.read(answers, 8).decode().strip())
        os.write(tell, b"!")

    thread = threading.Thread(target=steps)
    thread.start()
    app.call(udp_across, tell_in, out, cgroup="svc")
    thread.join()
    for fd in (tell_in, tell, answers, out):
        os.close(fd)
    assert seen[0] == "yes"
    assert seen[1:] == [after, after]


def test_an_idle_connection_keeps_across_several_swaps_but_not_across_a_cut(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    app = kernel.lab.hosts["app"]
    with (
        kernel.talk(app, "svc", "10.77.0.3", 5432) as kept,
        kernel.talk(app, "svc", "10.77.0.3", 5433) as cut,
    ):
        for _ in range(3):
            kernel.enforce(SLOT, rules())
        assert kept.say("x") == "x"
        kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 5432", established="cut"))
        kernel.enforce(SLOT, rules())
        assert kept.say("y") == "y"
        assert cut.say("y") is None


def test_a_refused_connection_is_not_live_for_the_next_snapshot(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    with kernel.talk(kernel.lab.hosts["app"], "svc", "10.77.0.3", 5432) as talk:
        assert talk.say("x") == "x"
        kernel.enforce(SLOT, rules(deny="10.77.0.3/32 tcp 5432 egress"))
        assert talk.say("x") is None
        kernel.enforce(SLOT, rules())
        assert talk.say("x") is None


def test_observe_cuts_nothing_and_what_it_let_pass_is_kept(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(mode="observe", established="cut"))
    with kernel.talk(kernel.lab.hosts["app"], "svc", "10.77.0.3", 5432) as talk:
        assert talk.say("x") == "x"
        kernel.enforce(SLOT, rules())
        assert talk.say("y") == "y"
    counters = kernel.datapath.counters(SLOT)
    assert counters["would_block"] > 0
    assert counters["kept"] > 0


def test_a_change_of_mapping_does_not_end_a_kept_connection(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    with kernel.talk(kernel.lab.hosts["app"], "svc", "10.77.0.3", 5432) as talk:
        kernel.enforce(SLOT, rules())
        assert talk.say("x") == "x"
        kernel.bind(kernel.lab.hosts["db"].below("elsewhere"), 77)
        assert talk.say("y") == "y"


@pytest.mark.parametrize("way", ["bpf_sock_destroy", "sock_diag"])
def test_cut_gives_the_caller_an_error(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(kernel.datapath._pins, "cutters", way == "bpf_sock_destroy")
    kernel.enforce(SLOT, rules(edges=ALL))
    with kernel.talk(kernel.lab.hosts["app"], "svc", "10.77.0.3", 5432) as talk:
        kernel.enforce(SLOT, rules(established="cut"))
        assert kernel.datapath.cut(SLOT) >= 1
        began = time.monotonic()
        assert talk.say("x") is None
        assert time.monotonic() - began < 0.3


def test_flipping_back_restores_the_old_rules(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 5432"))
    generation = generation_of(rules(), kernel.datapath.boot_ns() + 10**12, version=2)
    kernel.datapath.flip(kernel.datapath.load(SLOT, "active", generation))
    app = kernel.lab.hosts["app"]
    assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"
    assert kernel.datapath.flip_back(SLOT)
    assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "connected"
    assert not kernel.datapath.flip_back(SLOT)
    (held,) = [h for h in kernel.datapath.held() if h.slot == SLOT]
    assert held.version == 1


def connected(s: socket.socket, port: int) -> str:
    s.connect(("10.77.0.3", port))
    return "connected"


def moved_socket(target: str) -> str:
    """Make a socket, move to another cgroup, connect."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(0.25)
        with open(f"{target}/cgroup.procs", "w") as procs:
            procs.write("0")
        return probes.word(lambda: connected(s, 5432))


def test_a_socket_belongs_to_the_cgroup_that_made_it(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules())
    app = kernel.lab.hosts["app"]
    free, svc = app.below("free"), app.below("svc")
    assert app.call(moved_socket, str(free), cgroup="svc") == "EPERM"
    assert app.call(moved_socket, str(svc), cgroup="free") == "connected"


def test_a_literal_cgroup_is_bound_before_mkdir_returns(kernel: Kernel) -> None:
    """Restarted 100 times, no process in it ever connects."""
    kernel.datapath.remove(SLOT + 1, "active")
    kernel.enforce(SLOT + 1, rules())
    app = kernel.lab.hosts["app"]
    path = app.cgroup / "born"
    kernel.datapath.literals({str(path.relative_to(cgroup_root())): SLOT + 1})
    seen = set()
    for _ in range(100):
        seen.add(app.call(connect_once, cgroup="born"))
        path.rmdir()
    assert seen <= {"EPERM"}
    kernel.datapath.literals({})


def connect_once() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(0.1)
        return probes.word(lambda: connected(s, 5432))


def test_a_candidate_is_judged_and_blocks_nothing(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    generation = generation_of(rules(edges="10.77.0.3/32 tcp 5433"), kernel.datapath.boot_ns() + 10**12, 2)
    kernel.datapath.drain_denied(100_000)
    kernel.datapath.flip(kernel.datapath.load(SLOT, "candidate", generation))
    app = kernel.lab.hosts["app"]
    for port in (5432, 5433):
        assert app.call(probes.tcp, "10.77.0.3", port, cgroup="svc") == "connected"
    events = [e for e in kernel.datapath.drain_denied(1000) if e.role == "candidate"]
    kernel.datapath.remove(SLOT, "candidate")
    assert {(e.peer, e.peer_port, e.reason, e.digest) for e in events} == {
        (Address(4, 0x0A4D0003), 5432, "no_match", generation.digest)
    }


def raw_packet(header: bytes) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        return probes.word(lambda: "sent" if s.sendto(header, ("10.77.0.3", 0)) else "")


def ipv4(total: int, fragment: int = 0, proto: int = 6, body: bytes = b"") -> bytes:
    source, dest = bytes([10, 77, 0, 2]), bytes([10, 77, 0, 3])
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 7, fragment, 64, proto, 0, source, dest) + body


TCP_HEAD = struct.pack("!HHIIBBHHH", 40_000, 5432, 0, 0, 0x50, 2, 1024, 0, 0)


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (ipv4(40, body=TCP_HEAD), "sent"),
        (ipv4(30, body=TCP_HEAD[:10]), "EPERM"),
        (ipv4(40, 1, body=TCP_HEAD), "EPERM"),
        (ipv4(40, 0x2000, body=TCP_HEAD), "sent"),
        (ipv4(40, body=TCP_HEAD[:12] + b"\xf0" + TCP_HEAD[13:]), "EPERM"),
        (ipv4(28, proto=17, body=struct.pack("!HHHH", 1, 5432, 7, 0)), "EPERM"),
        (ipv4(28, proto=17, body=struct.pack("!HHHH", 1, 5432, 8, 0)), "sent"),
    ],
    ids=["whole", "cut short", "later fragment", "first fragment", "bad offset", "UDP too short", "UDP"],
)
def test_malformed_packets_are_refused_even_where_all_is_allowed(
    kernel: Kernel, packet: bytes, expected: str
) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    assert kernel.lab.hosts["app"].call(raw_packet, packet, cgroup="svc") == expected


def large(size: int) -> str:
    """A datagram that the kernel has to fragment; the echo comes back whole."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.5)
        s.sendto(b"x" * size, ("10.77.0.3", 5432))
        return probes.word(lambda: "answered" if s.recv(9000) else "")


def test_what_the_kernel_itself_fragments_passes(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 udp 5432", ingress=""))
    assert kernel.lab.hosts["app"].call(large, 5000, cgroup="svc") == "answered"


def bulk(address: str, size: int) -> int:
    """Send much and read it back at the same time."""
    with socket.create_connection((address, 5432), 5) as s:
        reader = threading.Thread(target=lambda: s.sendall(b"x" * size))
        reader.start()
        seen = 0
        while seen < size:
            part = s.recv(1 << 16)
            if not part:
                break
            seen += len(part)
        reader.join()
        return seen


@pytest.mark.parametrize("address", ["10.77.0.3", "fd77::3"])
def test_large_segments_are_no_malformed_packets(kernel: Kernel, address: str) -> None:
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 5432; fd77::3/128 tcp 5432", ingress=""))
    before = kernel.datapath.counters(SLOT)["malformed"]
    assert kernel.lab.hosts["app"].call(bulk, address, 8_000_000, cgroup="svc") == 8_000_000
    assert kernel.datapath.counters(SLOT)["malformed"] == before


def test_observe_tells_of_a_connection_once(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(mode="observe"))
    kernel.datapath.drain_denied(100_000)
    with kernel.talk(kernel.lab.hosts["app"], "svc", "10.77.0.3", 5432) as talk:
        for _ in range(20):
            assert talk.say("x") == "x"
    events = [e for e in kernel.datapath.drain_denied(1000) if e.peer_port == 5432 and e.proto == 6]
    assert 1 <= len(events) <= 2
    assert (events[0].mode, events[0].reason) == ("observe", "no_match")


def connected_udp(pipe_in: int, pipe_out: int) -> str:
    """A connected UDP socket that waits; what its next call says after the cut."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("10.77.0.3", 5432))
        s.settimeout(1)
        s.send(b"x")
        os.write(pipe_out, s.recv(1))
        os.read(pipe_in, 1)
        return probes.word(lambda: str(s.recv(1)))


@pytest.mark.parametrize("way", ["bpf_sock_destroy", "sock_diag"])
def test_cut_reaches_a_connected_udp_socket(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(kernel.datapath._pins, "cutters", way == "bpf_sock_destroy")
    kernel.enforce(SLOT, rules(edges=ALL))
    (tell_in, tell), (answers, out) = os.pipe(), os.pipe()
    seen: list[str] = []
    app = kernel.lab.hosts["app"]
    thread = threading.Thread(target=lambda: seen.append(app.call(connected_udp, tell_in, out, cgroup="svc")))
    thread.start()
    assert os.read(answers, 1) == b"x"
    kernel.enforce(SLOT, rules(established="cut"))
    assert kernel.datapath.cut(SLOT) >= 1
    os.write(tell, b"!")
    thread.join()
    for fd in (tell_in, tell, answers, out):
        os.close(fd)
    assert seen == ["ECONNABORTED"]
