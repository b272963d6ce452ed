"""Leases, kept flows and faults of the agent: nothing stays open, nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.domain.errors import Unavailable
from aegisflux.wire import layout
from tests.bpf.adversary.tools import ALL, SLOT, descriptors, ipv4, raw_to, udp_body
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import HOUR_NS, Kernel, generation_of
from tests.support.netns import Lab

pytestmark = [pytest.mark.bpf, pytest.mark.netns]

STOPPED = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath
from tests.support.kernel import generation_of
from tests.bpf.adversary.tools import ALL, SLOT, descriptors, ipv4, raw_to, udp_body
from tests.bpf.test_sockets import rules
d = BpfDatapath(Path(sys.argv[1]), sys.argv[2])
d.open()
g = generation_of(rules(edges="0.0.0.0/0 any 0"), d.boot_ns() + int(1.5e9))
import msgspec
d.flip(d.load(int(sys.argv[3]), "active", msgspec.structs.replace(g, on_expiry="closed")))
print("ready", flush=True)
while True:
    d.renew(int(sys.argv[3]), d.boot_ns() + int(1.5e9))
    time.sleep(0.1)
"""


def test_an_agent_stopped_past_its_lease_holds_nothing_open() -> None:
    with Lab() as lab:
        app, db = lab.host("app"), lab.host("db")
        kernel = Kernel(lab)
        with kernel:
            kernel.served(db, "server", probes.echo_argv(5432))
            kernel.bind(app.below("svc"), SLOT)
            kernel.datapath.close()
            agent = subprocess.Popen(
                [sys.executable, "-c", STOPPED, str(lab.cgroup), f"test-{lab.name}", str(SLOT), os.getcwd()],
                stdout=subprocess.PIPE,
            )
            try:
                assert agent.stdout
                assert agent.stdout.readline() == b"ready\n"
                with kernel.talk(app, "svc", "10.77.0.3", 5432) as talk:
                    kernel.wait_boot(2)
                    assert talk.say("x") == "x"
                    agent.send_signal(signal.SIGSTOP)
                    kernel.wait_boot(1.7)
                    assert talk.say("x") is None
                assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"
                agent.send_signal(signal.SIGCONT)
                until = time.monotonic() + 5
                while app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") != "connected":
                    assert time.monotonic() < until
            finally:
                agent.kill()
                agent.communicate()


@pytest.mark.parametrize("on_expiry", ["open", "closed"])
def test_a_kept_connection_outlives_a_late_renewal(kernel: Kernel, on_expiry: str) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    with kernel.talk(kernel.lab.hosts["app"], "svc", "10.77.0.3", 5432) as talk:
        kernel.enforce(SLOT, rules(), on_expiry=on_expiry, lease_s=0.4)
        assert talk.say("a") == "a"
        kernel.wait_boot(0.4)
        assert talk.say("b") == ("b" if on_expiry == "open" else None)
        kernel.datapath.renew(SLOT, kernel.datapath.boot_ns() + HOUR_NS)
        if on_expiry == "open":
            assert talk.say("c") == "c"
        kernel.enforce(SLOT, rules(established="cut"))
        assert talk.say("d") is None


def test_going_back_can_be_tried_again_after_a_fault(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    before = descriptors()
    generation = generation_of(rules(), kernel.datapath.boot_ns() + HOUR_NS, 2)
    kernel.datapath.flip(kernel.datapath.load(SLOT, "active", generation))

    def full(*_: object) -> None:
        raise OSError(12, "no memory")

    with monkeypatch.context() as m, pytest.raises(Unavailable):
        m.setattr(libbpf, "fill", full)
        kernel.datapath.flip_back(SLOT)
    assert kernel.datapath.flip_back(SLOT)
    assert kernel.lab.hosts["app"].call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "connected"
    assert descriptors() == before


def test_a_failed_flip_leaks_nothing_and_the_old_one_stays(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    before = descriptors()
    generation = generation_of(rules(), kernel.datapath.boot_ns() + HOUR_NS, 2)
    loaded = kernel.datapath.load(SLOT, "active", generation)
    real = libbpf.update

    def refused(fd: int, key: bytes, value: bytes) -> None:
        if fd == kernel.datapath._pins.maps["generations"]:
            raise OSError(12, "no memory")
        real(fd, key, value)

    with monkeypatch.context() as m, pytest.raises(Unavailable):
        m.setattr(libbpf, "update", refused)
        kernel.datapath.flip(loaded)
    assert not kernel.datapath.flip_back(SLOT)
    assert descriptors() == before
    assert kernel.lab.hosts["app"].call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "connected"


def begin_and_wait(tell: int, told: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("", 6400))
        s.settimeout(0.3)
        s.sendto(b"x", ("10.77.0.3", 5432))
        s.recv(9)
        os.write(tell, b"!")
        os.read(told, 1)
        return probes.word(lambda: s.recv(9).decode())


def last_seen(kernel: Kernel) -> dict[bytes, int]:
    fd = kernel.datapath._generations.flows_fd(SLOT)  # type: ignore[union-attr]
    assert fd is not None
    try:
        rows = {k: libbpf.lookup(fd, k, layout.UDP_FLOW.size) for k in libbpf.keys(fd, layout.UDP_KEY.size)}
    finally:
        os.close(fd)
    return {k: layout.UDP_FLOW.unpack(v)[2] for k, v in rows.items() if v}


def test_a_refused_peer_does_not_keep_its_flow_alive(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges=ALL))
    (told, tell), (go, let) = os.pipe(), os.pipe()
    answer: list[str] = []
    app = kernel.lab.hosts["app"]
    thread = threading.Thread(target=lambda: answer.append(app.call(begin_and_wait, tell, go, cgroup="svc")))
    thread.start()
    assert os.read(told, 1) == b"!"
    kernel.enforce(SLOT, rules(deny="10.77.0.3/32 udp 0 both"))
    before = last_seen(kernel)
    raw = ipv4("10.77.0.3", "10.77.0.2", 17, udp_body(5432, 6400))
    for _ in range(5):
        kernel.lab.hosts["db"].call(raw_to, "10.77.0.2", raw, cgroup="client")
        kernel.wait_boot(0.01)
    os.write(let, b"!")
    thread.join()
    for fd in (told, tell, go, let):
        os.close(fd)
    assert answer == ["silent"]
    assert last_seen(kernel) == before
