"""Every way to begin: crossing calls, MPTCP, fast open, SYN cookies, source routes."""

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bpf.adversary.tools import ALL, IPPROTO_MPTCP, MARK, MSG_FASTOPEN, SLOT, UDP_SEGMENT, Watch
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import Kernel
from tests.support.netns import Host, Lab

pytestmark = [pytest.mark.bpf, pytest.mark.netns]


def crossing(port: int, peer: str, peer_port: int, hold: float) -> list[str | None]:
    """Connect without a listener anywhere; then echo or speak until told off."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("", port))
        s.settimeout(8)
        s.connect((peer, peer_port))
        s.settimeout(hold)
        s.send(b"hello")
        got = [probes.word(lambda: s.recv(5).decode())]
        time.sleep(hold)
        s.send(b"again")
        return [*got, probes.word(lambda: s.recv(5).decode())]


def bridge_port(kernel: Kernel, host: Host, state: int) -> None:
    hub = kernel.lab.hosts["hub"].netns
    argv = ["bridge", "-n", hub, "link", "set", "dev", f"p{host.number}", "state", str(state)]
    subprocess.run(argv, check=True)


@contextmanager
def crossed(kernel: Kernel, port: int) -> Iterator[list[list[str | None]]]:
    """Both ends call at the same time; the lists hold what each heard."""
    app, db = kernel.lab.hosts["app"], kernel.lab.hosts["db"]
    for host, other in ((app, db), (db, app)):
        host.call(probes.tcp, other.v4, 1)
    heard: list[list[str | None]] = []
    with ThreadPoolExecutor() as pool:
        bridge_port(kernel, db, 0)
        try:
            ours = pool.submit(app.call, crossing, port, db.v4, 7001, 1.0, cgroup="svc")
            theirs = pool.submit(db.call, crossing, 7001, app.v4, port, 1.0, cgroup="client")
            time.sleep(0.3)
        finally:
            bridge_port(kernel, db, 3)
        yield heard
        heard += [theirs.result(), ours.result()]


def test_crossing_calls_are_begun_by_us_too(kernel: Kernel) -> None:
    """A simultaneous open is allowed by egress; ingress is closed, and this is no ingress."""
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 7001", ingress=""))
    with crossed(kernel, 7000) as heard:
        pass
    assert heard == [["hello", "again"], ["hello", "again"]]


def test_crossing_calls_from_port_22_do_not_end_up_in_the_failsafe(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 7001"))
    with crossed(kernel, 22) as heard:
        time.sleep(1.4)
        kernel.enforce(SLOT, rules(deny="10.77.0.3/32 tcp 7001 egress"))
    assert heard[0][1] == "silent"


# ---- other ways to call


def mptcp(address: str, port: int) -> str:
    with socket.socket(probes.family_of(address), socket.SOCK_STREAM, IPPROTO_MPTCP) as s:
        s.settimeout(0.4)
        return probes.word(lambda: s.connect((address, port)) or "connected")


def fast_open(address: str, port: int) -> str:
    with socket.socket(probes.family_of(address), socket.SOCK_STREAM) as s:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            s.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", 0, 400_000))

        def attempt() -> str:
            return "sent" if s.sendto(MARK, MSG_FASTOPEN, (address, port)) and s.recv(99) else "nothing"

        seen = probes.word(attempt)
        return "silent" if seen in ("EINPROGRESS", "EAGAIN", "nothing") else seen


MPTCP_SERVER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if sys.argv[2] == "tfo":
    s = socket.socket()
    s.setsockopt(socket.IPPROTO_TCP, 23, 16)
s.bind(("0.0.0.0", int(sys.argv[1])))
s.listen()
print("ready", flush=True)
while True:
    c = s.accept()[0]
    c.settimeout(0.5)
    try:
        c.send(c.recv(99))
    except OSError:
        pass
"""


@pytest.mark.parametrize("address", ["10.77.0.3", "fd77::3"])
def test_mptcp_is_governed_both_ways(kernel: Kernel, address: str) -> None:
    app, db = kernel.lab.hosts["app"], kernel.lab.hosts["db"]
    if not app.call(Path("/proc/sys/net/mptcp/enabled").exists):
        pytest.skip("this kernel has no MPTCP")
    kernel.enforce(SLOT, rules())
    assert app.call(mptcp, address, 5432, cgroup="svc") in ("EPERM", "silent")
    kernel.enforce(SLOT, rules(edges=ALL))
    assert app.call(mptcp, address, 5432, cgroup="svc") == "connected"
    server = kernel.served(app, "svc", [sys.executable, "-S", "-c", MPTCP_SERVER, "6200", "mptcp"])
    for ingress, expected in (("", "silent"), ("10.77.0.3/32 tcp 6200", "connected")):
        kernel.enforce(SLOT, rules(ingress=ingress))
        assert db.call(probes.tcp, "10.77.0.2", 6200) == expected
        assert db.call(mptcp, "10.77.0.2", 6200) == expected
    server.kill()
    server.communicate()


def test_fast_open_is_governed_both_ways(kernel: Kernel) -> None:
    app, db = kernel.lab.hosts["app"], kernel.lab.hosts["db"]
    for host in (app, db):
        host.call(Path("/proc/sys/net/ipv4/tcp_fastopen").write_text, str(0x603))
    servers = [
        kernel.served(h, c, [sys.executable, "-S", "-c", MPTCP_SERVER, "6300", "tfo"])
        for h, c in ((app, "svc"), (db, "server"))
    ]
    kernel.enforce(SLOT, rules(edges=ALL))
    assert [app.call(fast_open, "10.77.0.3", 6300, cgroup="svc") for _ in range(2)] == ["sent", "sent"]
    watch = Watch(kernel, db)
    kernel.enforce(SLOT, rules(ingress=""))
    assert app.call(fast_open, "10.77.0.3", 6300, cgroup="svc") == "EPERM"
    assert watch.seen() == 0
    assert db.call(fast_open, "10.77.0.2", 6300) == "silent"
    kernel.enforce(SLOT, rules(ingress="10.77.0.3/32 tcp 6300"))
    assert [db.call(fast_open, "10.77.0.2", 6300) for _ in range(2)] == ["sent", "sent"]
    for server in servers:
        server.kill()
        server.communicate()


def test_syn_cookies_change_nothing(kernel: Kernel) -> None:
    app, db = kernel.lab.hosts["app"], kernel.lab.hosts["db"]
    app.call(Path("/proc/sys/net/ipv4/tcp_syncookies").write_text, "2")
    try:
        kernel.enforce(SLOT, rules(ingress=""))
        for address in ("10.77.0.2", "fd77::2"):
            assert db.call(probes.tcp, address, 6000) == "silent"
        kernel.enforce(SLOT, rules(ingress="10.77.0.3/32 tcp 6000; fd77::3/128 tcp 6000"))
        for address in ("10.77.0.2", "fd77::2"):
            assert db.call(probes.tcp, address, 6000) == "connected"
            with kernel.talk(db, "client", address, 6000) as talk:
                assert talk.say("x") == "x"
                kernel.enforce(SLOT, rules(ingress=""))
                assert talk.say("y") == "y"
                kernel.enforce(SLOT, rules(ingress="", established="cut"))
                assert talk.say("z") is None
            kernel.enforce(SLOT, rules(ingress="10.77.0.3/32 tcp 6000; fd77::3/128 tcp 6000"))
    finally:
        app.call(Path("/proc/sys/net/ipv4/tcp_syncookies").write_text, "1")


def source_routed(final: str, hop: str) -> list[str]:
    """LSRR needs no privilege: the packet goes to the hop, the call names the last address."""
    option = bytes([1, 131, 7, 4]) + socket.inet_aton(hop)
    seen = []
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as s:
            s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
            s.settimeout(0.3)
            seen.append(probes.word(lambda: s.connect((final, 5432)) or str(s.send(MARK))))
    return seen


def test_a_source_route_does_not_lead_to_a_denied_host(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges="192.0.2.7/32 any 5432"))
    watch = Watch(kernel, kernel.lab.hosts["db"])
    kernel.lab.hosts["app"].call(source_routed, "192.0.2.7", "10.77.0.3", cgroup="svc")
    assert watch.seen() == 0


def segmented(size: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.4)
        s.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 500)
        s.connect(("10.77.0.3", 5432))
        s.send(b"x" * size)
        return probes.word(lambda: str(sum(len(s.recv(9000)) for _ in range(size // 500))))


def test_segmented_datagrams_pass(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 udp 5432", ingress=""))
    assert kernel.lab.hosts["app"].call(segmented, 10_000, cgroup="svc") == "10000"


FROM_A_LISTENING_PORT = """
import socket, sys
listener, caller = socket.socket(), socket.socket()
for s in (listener, caller):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("10.77.0.2", 7400))
caller.bind(("10.77.0.2", 7400))
caller.connect(("10.77.0.3", 5432))
listener.listen()
print("ready", flush=True)
caller.settimeout(0.5)
for line in sys.stdin:
    try:
        caller.send(b"x")
        print(caller.recv(9).decode(), flush=True)
    except OSError:
        print("-", flush=True)
"""


def ask(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_call_from_a_port_on_which_we_listen_is_ours(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges=ALL, ingress=""))
    app = kernel.lab.hosts["app"]
    caller = kernel.served(app, "svc", [sys.executable, "-S", "-c", FROM_A_LISTENING_PORT])
    assert ask(caller) == b"x"
    found = [(f.direction, f.port) for f in kernel.datapath.live(SLOT) if str(f.peer) == "10.77.0.3"]
    assert found == [("egress", 5432)]
    caller.kill()
    caller.communicate()


def test_a_call_older_than_the_programs_is_ours_too() -> None:
    """Nothing was recorded then; an accepted connection has no lock on its port, one that was bound has."""
    with Lab() as lab:
        app, db = lab.host("app"), lab.host("db")
        kernel = Kernel(lab)
        kernel.served(db, "server", probes.echo_argv(5432))
        caller = kernel.served(app, "svc", [sys.executable, "-S", "-c", FROM_A_LISTENING_PORT])
        server = kernel.served(app, "svc", probes.echo_argv(6000))
        with kernel.talk(db, "client", app.v4, 6000) as called, kernel:
            kernel.bind(app.below("svc"), SLOT)
            kernel.enforce(SLOT, rules(deny="10.77.0.3/32 any 5432 egress"))
            assert ask(caller) == b"-"
            assert called.say("a") == "a"
        for process in (caller, server):
            process.kill()
            process.communicate()
