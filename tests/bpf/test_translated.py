"""Behind NAT a rule names what the program asked for, and the port of the service's own socket (ADR 0026).

`app` is governed; 198.51.100.10 and 2001:db8:5::10 are addresses of a service whose backend is `db`.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from aegisflux.adapters.datapath.bpf import pins
from tests.bpf.adversary.tools import MARK, SLOT, Watch
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import Kernel
from tests.support.netns import Host, Lab

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
VIP4, VIP6 = "198.51.100.10", "2001:db8:5::10"
NAT = """
table inet nat {
  chain output {
    type nat hook output priority -100;
    ip daddr 198.51.100.10 meta l4proto { tcp, udp } th dport 80 dnat ip to 10.77.0.3:5432
    ip daddr 198.51.100.10 icmp type echo-request dnat ip to 10.77.0.3
    ip6 daddr 2001:db8:5::10 meta l4proto { tcp, udp } th dport 80 dnat ip6 to [fd77::3]:5432
    ip daddr { 10.77.0.2, 127.0.0.1 } meta l4proto { tcp, udp } th dport 8080 dnat ip to 10.77.0.3:5432
    ip daddr 203.0.113.7 tcp dport 443 redirect to :6001
  }
  chain postrouting {
    type nat hook postrouting priority 100;
    ip daddr 10.77.0.3 udp sport 7777 snat ip to 10.77.0.2:7000-7010
    ip saddr 127.0.0.1 ip daddr 10.77.0.3 masquerade
    ip daddr 10.77.0.3 tcp sport 7777 snat ip to 10.77.0.2:7000-7010
  }
  chain prerouting {
    type nat hook prerouting priority -100;
    meta l4proto { tcp, udp } th dport 80 redirect to :6000
  }
}
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Lab() as lab, Kernel(lab) as kernel:
        app, db = lab.host("app"), lab.host("db")
        for host, ports, cgroup in ((db, (5432, 5433), "server"), (app, (6000, 6001), "svc")):
            kernel.served(host, cgroup, probes.echo_argv(*ports))
        for host in (app, db):
            for hub in ("10.77.0.1", "fd77::1"):
                subprocess.run(["ip", "-n", host.netns, "route", "add", "default", "via", hub], check=True)
        nft(app, NAT)
        kernel.bind(app.below("svc"), SLOT)
        yield kernel


def nft(host: Host, text: str) -> None:
    done = host.run(["nft", "-f", "-"], input=text)
    assert not done.returncode, done.stderr


class Case(NamedTuple):
    """A probe of the governed program, and what of the snapshot it needs."""

    probe: object
    address: str
    port: int
    answer: str
    allow: str
    backend: str


CASES = {
    "TCP": Case(probes.tcp, VIP4, 80, "connected", f"{VIP4}/32 tcp 80", "10.77.0.3/32 tcp 5432"),
    "TCP over IPv6": Case(probes.tcp, VIP6, 80, "connected", f"{VIP6}/128 tcp 80", "fd77::3/128 tcp 5432"),
    "UDP": Case(probes.udp_sendto, VIP4, 80, "answered", f"{VIP4}/32 udp 80", "10.77.0.3/32 udp 5432"),
    "UDP connected": Case(
        probes.udp_connected, VIP4, 80, "answered", f"{VIP4}/32 udp 80", "10.77.0.3/32 udp 5432"
    ),
    "UDP over IPv6": Case(
        probes.udp_sendto, VIP6, 80, "answered", f"{VIP6}/128 udp 80", "fd77::3/128 udp 5432"
    ),
    "UDP connected over IPv6": Case(
        probes.udp_connected, VIP6, 80, "answered", f"{VIP6}/128 udp 80", "fd77::3/128 udp 5432"
    ),
    "echo by a raw socket": Case(probes.ping, VIP4, 0, "answered", f"{VIP4}/32 any 0", "10.77.0.3/32 any 0"),
}


def ask(kernel: Kernel, case: Case) -> str:
    args = (case.address,) if case.probe is probes.ping else (case.address, case.port)
    return kernel.lab.hosts["app"].call(case.probe, *args, cgroup="svc")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_a_rule_for_the_service_address_is_enough(kernel: Kernel, name: str) -> None:
    """Answers are answers, though no ingress is allowed."""
    case = CASES[name]
    kernel.enforce(SLOT, rules(edges=case.allow, ingress=""))
    assert ask(kernel, case) == case.answer


@pytest.mark.parametrize("name", CASES)
def test_a_rule_for_the_backend_is_no_rule_for_the_service_address(kernel: Kernel, name: str) -> None:
    case = CASES[name]
    kernel.enforce(SLOT, rules(edges=case.backend, ingress=""))
    assert ask(kernel, case) in ("EPERM", "silent")


@pytest.mark.parametrize("name", CASES)
def test_a_deny_of_the_service_address_holds(kernel: Kernel, name: str) -> None:
    case = CASES[name]
    kernel.enforce(SLOT, rules(edges="0.0.0.0/0 any 0; ::/0 any 0", deny=case.allow + " egress"))
    assert ask(kernel, case) in ("EPERM", "silent")


@pytest.mark.parametrize("address", [VIP4, VIP6])
def test_live_connections_behind_nat_are_kept(kernel: Kernel, address: str) -> None:
    allow = f"{VIP4}/32 tcp 80; {VIP6}/128 tcp 80"
    kernel.enforce(SLOT, rules(edges=allow))
    with kernel.talk(kernel.lab.hosts["app"], "svc", address, 80) as talk:
        assert talk.say("a") == "a"
        kernel.enforce(SLOT, rules())
        assert talk.say("b") == "b"
        flows = {(str(f.peer), f.port) for f in kernel.datapath.live(SLOT)}
        assert (address, 80) in flows, flows
        kernel.enforce(SLOT, rules(edges=allow, established="cut"))
        assert talk.say("c") == "c"
        kernel.enforce(SLOT, rules(established="cut"))
        assert talk.say("d") is None


def ephemeral_flow(address: str, port: int, times: int) -> list[str]:
    """One socket, bound to a port whose packets are masqueraded to another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("", 7777))
        s.settimeout(0.4)

        def once() -> str:
            return str(s.sendto(b"x", (address, port))) + s.recv(9).decode()

        return [probes.word(once) for _ in range(times)]


def test_a_masqueraded_port_is_still_the_sockets_own(kernel: Kernel) -> None:
    """Both directions are one flow."""
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 udp 5433", ingress=""))
    assert kernel.lab.hosts["app"].call(ephemeral_flow, "10.77.0.3", 5433, 3, cgroup="svc") == ["1x"] * 3


@pytest.mark.parametrize("probe", [probes.tcp, probes.udp_sendto, probes.udp_connected])
@pytest.mark.parametrize("address", ["10.77.0.2", "fd77::2"])
def test_behind_a_redirect_the_port_is_that_of_the_services_socket(
    kernel: Kernel, probe: object, address: str
) -> None:
    """The peer addresses port 80; the service listens on 6000, and its rules speak of 6000."""
    db = kernel.lab.hosts["db"]
    kernel.enforce(SLOT, rules(ingress="10.77.0.3/32 any 6000; fd77::3/128 any 6000"))
    assert db.call(probe, address, 80) in ("connected", "answered")  # type: ignore[arg-type]
    kernel.enforce(SLOT, rules(ingress="10.77.0.3/32 any 80; fd77::3/128 any 80"))
    assert db.call(probe, address, 80) == "silent"  # type: ignore[arg-type]


def test_a_live_connection_behind_a_redirect_is_kept(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(ingress="10.77.0.3/32 tcp 6000"))
    with kernel.talk(kernel.lab.hosts["db"], "client", "10.77.0.2", 80) as talk:
        assert talk.say("a") == "a"
        kernel.enforce(SLOT, rules(ingress=""))
        assert talk.say("b") == "b"
        kernel.enforce(SLOT, rules(ingress="", established="cut"))
        assert talk.say("c") is None


def test_a_redirect_to_a_proxy_on_the_host_is_judged_by_what_was_asked_for(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges="203.0.113.7/32 tcp 443"))
    assert kernel.lab.hosts["app"].call(probes.tcp, "203.0.113.7", 443, cgroup="svc") == "connected"
    kernel.enforce(SLOT, rules())
    assert kernel.lab.hosts["app"].call(probes.tcp, "203.0.113.7", 443, cgroup="svc") == "EPERM"


@pytest.mark.parametrize("probe", [probes.tcp, probes.udp_sendto, probes.udp_connected])
@pytest.mark.parametrize("address", ["10.77.0.2", "127.0.0.1"])
def test_a_port_published_on_an_own_address_is_the_hosts_own(
    kernel: Kernel, probe: object, address: str
) -> None:
    """Own address and port 8080 lead to another host: own addresses are always allowed."""
    app = kernel.lab.hosts["app"]
    app.call(Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text, "1")
    kernel.enforce(SLOT, rules(ingress=""))
    assert app.call(probe, address, 8080, cgroup="svc") in ("connected", "answered")  # type: ignore[arg-type]


def connected_elsewhere(allowed: tuple[str, int], other: tuple[str, int], times: int) -> str:
    """A socket connected to one address sends to another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(allowed)
        return ", ".join({probes.word(lambda: str(s.sendto(MARK, other))) for _ in range(times)})


@pytest.mark.parametrize("allowed", [("10.77.0.3", 5433), (VIP4, 80)], ids=["plain", "translated"])
def test_a_connected_socket_sends_to_nobody_else(kernel: Kernel, allowed: tuple[str, int]) -> None:
    kernel.enforce(SLOT, rules(edges=f"{allowed[0]}/32 udp {allowed[1]}"))
    watch = Watch(kernel, kernel.lab.hosts["db"])
    kernel.lab.hosts["app"].call(connected_elsewhere, allowed, ("10.77.0.3", 9), 3, cgroup="svc")
    assert watch.seen() == 0


def test_programs_learn_the_types_of_a_connection_tracking_that_is_loaded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is a module, the first NAT rule brings it; what runs goes on meanwhile."""
    with Lab() as lab, monkeypatch.context() as patch:
        module = tmp_path / "nf_conntrack"
        patch.setattr(pins, "CONNTRACK", module)
        with Kernel(lab) as kernel:
            app, db = lab.host("app"), lab.host("db")
            kernel.served(db, "server", probes.echo_argv(5432))
            kernel.bind(app.below("svc"), SLOT)
            kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 5432"))
            with kernel.talk(app, "svc", db.v4, 5432) as talk:
                before = dict(kernel.datapath._pins.programs)
                assert kernel.datapath.mend() == []
                assert kernel.datapath._pins.programs == before
                module.touch()
                assert kernel.datapath.mend() == []
                after = dict(kernel.datapath._pins.programs)
                assert all(after[name] != fd for name, fd in before.items())
                assert talk.say("a") == "a"
                kernel.enforce(SLOT, rules(established="cut"))
                assert talk.say("b") is None
            assert app.call(probes.tcp, db.v4, 5432, cgroup="svc") == "EPERM"
            assert kernel.datapath.mend() == []
            assert kernel.datapath._pins.programs == after


@pytest.fixture(scope="module")
def owned(kernel: Kernel) -> Iterator[Host]:
    """A host whose network namespace belongs to a user namespace: its root is anyone."""
    lab = kernel.lab
    host = Host(lab, "owned", len(lab.hosts) + 1)
    argv = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo ready; exec sleep 600"]
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            pytest.skip("this kernel lets nobody have a user namespace")
        subprocess.run(["ip", "netns", "attach", host.netns, str(holder.pid)], check=True)
        lab.hosts["owned"] = host
        host.cgroup.mkdir(exist_ok=True)
        ours = ["ip", "link", "add", "eth0", "netns", host.netns, "type", "veth"]
        subprocess.run([*ours, "peer", "name", "powned", "netns", lab.hub.netns], check=True)
        subprocess.run(
            ["ip", "-n", lab.hub.netns, "link", "set", "powned", "master", "br0", "up"], check=True
        )
        host.address("eth0")
        done = subprocess.run(
            ["nsenter", "-t", str(holder.pid), "-U", "-n", "nft", "-f", "-"],
            input=NAT,
            text=True,
            check=False,
            capture_output=True,
        )
        assert not done.returncode, done.stderr
        subprocess.run(["ip", "-n", host.netns, "route", "add", "default", "via", "10.77.0.1"], check=True)
        kernel.bind(host.below("svc"), SLOT)
        yield host
    finally:
        holder.kill()
        holder.communicate()
        subprocess.run(["ip", "netns", "del", host.netns], check=False, capture_output=True)
        lab.hosts.pop("owned", None)


@pytest.mark.parametrize("probe", [probes.tcp, probes.udp_sendto, probes.udp_connected])
def test_who_is_root_in_their_own_namespace_translates_nothing_away(
    kernel: Kernel, owned: Host, probe: object
) -> None:
    """They ask for what is allowed, and lead it to what is denied: there the packet decides."""
    kernel.enforce(SLOT, rules(edges=f"{VIP4}/32 any 80"))
    assert owned.call(probe, VIP4, 80, cgroup="svc") in ("EPERM", "silent")  # type: ignore[arg-type]
    kernel.enforce(SLOT, rules(edges=f"{VIP4}/32 any 80; 10.77.0.3/32 any 5432", ingress=""))
    if probe is probes.tcp:
        assert owned.call(probe, VIP4, 80, cgroup="svc") == "connected"  # type: ignore[arg-type]


SENDER = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 9))
print("ready", flush=True)
while True:
    s.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
    time.sleep(0.02)
"""


def test_a_flow_of_one_namespace_is_none_of_another(kernel: Kernel, owned: Host) -> None:
    """A datagram from a denied address came in there, as their root can forge it; here it began nothing."""
    db = kernel.lab.hosts["db"]
    kernel.enforce(SLOT, rules(deny="10.77.0.3/32 udp 9 egress"))
    sender = kernel.served(db, "client", [sys.executable, "-S", "-c", SENDER, owned.v4, "7070"])
    assert owned.call(hears, 7070, cgroup="svc") == "heard"
    sender.kill()
    sender.communicate()
    watch = Watch(kernel, db)
    owned.call(from_port, 7070, (db.v4, 9), MARK, cgroup="svc")
    assert watch.seen() == 1, "an answer passes where the datagram came in"
    watch = Watch(kernel, db)
    kernel.lab.hosts["app"].call(from_port, 7070, (db.v4, 9), MARK, cgroup="svc")
    assert watch.seen() == 0


def hears(port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("", port))
        s.settimeout(5)
        return probes.word(lambda: "heard" if s.recv(9) else "nothing")


def from_port(port: int, to: tuple[str, int], data: bytes) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("", port))
        return probes.word(lambda: str(s.sendto(data, to)))
