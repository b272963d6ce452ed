"""What looks local, or allowed, and is not."""

import struct
import sys
from pathlib import Path

import pytest

from tests.bpf.adversary.tools import (
    ALL,
    MARK,
    SLOT,
    Watch,
    frame,
    ipv4,
    mac_of,
    raw_to,
    send_bound,
    udp6,
    udp_body,
)
from tests.bpf.test_sockets import rules
from tests.support.kernel import Kernel

pytestmark = [pytest.mark.bpf, pytest.mark.netns]

SYN_FROM_22 = struct.pack("!HHIIBBHHH", 22, 9, 0, 0, 80, 2, 9, 0, 0)
LISTEN = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", 6100))
s.settimeout(float(sys.argv[1]))
print("ready", flush=True)
try:
    print(s.recvfrom(99)[1][0], flush=True)
except TimeoutError:
    print("nothing", flush=True)
"""


@pytest.mark.parametrize(
    ("mac", "kind", "packet"),
    [
        (b"\xff" * 6, 0x0800, ipv4("0.0.0.0", "255.255.255.255", 17, udp_body(9, 6100))),
        (None, 0x86DD, udp6("::", "fd77::2", 9, 6100)),
        (None, 0x86DD, udp6("fd77::2", "fd77::2", 9, 6100)),
        (None, 0x86DD, udp6("::1", "fd77::2", 9, 6100)),
        (None, 0x86DD, udp6("::ffff:127.0.0.1", "fd77::2", 9, 6100)),
        (None, 0x0800, ipv4("127.0.0.1", "10.77.0.2", 17, udp_body(9, 6100))),
        (None, 0x0800, ipv4("10.77.0.2", "10.77.0.2", 17, udp_body(9, 6100))),
    ],
    ids=["0.0.0.0 broadcast", "unspecified v6", "own v6", "::1", "mapped loopback", "127.0.0.1", "own v4"],
)
def test_a_forged_source_is_no_local_peer(
    kernel: Kernel, mac: bytes | None, kind: int, packet: bytes
) -> None:
    kernel.enforce(SLOT, rules(edges=ALL, ingress=""))
    app, db = kernel.lab.hosts["app"], kernel.lab.hosts["db"]
    app.call(Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text, "1")
    app.call(Path("/proc/sys/net/ipv4/conf/all/accept_local").write_text, "1")
    app.call(Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text, "0")
    listener = kernel.served(app, "svc", [sys.executable, "-S", "-c", LISTEN, "0.4"])
    db.call(frame, "eth0", mac or mac_of(app), kind, packet)
    assert listener.communicate(timeout=10)[0] == b"nothing\n"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "10.77.0.2", "0.0.0.0"])
def test_a_loopback_address_does_not_lead_out_of_another_device(kernel: Kernel, address: str) -> None:
    kernel.enforce(SLOT, rules())
    watch = Watch(kernel, kernel.lab.hosts["hub"])
    kernel.lab.hosts["app"].call(send_bound, "eth0", address, cgroup="svc")
    assert watch.seen() == 0


@pytest.mark.parametrize("address", ["10.77.0.3", "fd77::3"])
def test_the_loopback_device_leads_nowhere(kernel: Kernel, address: str) -> None:
    kernel.enforce(SLOT, rules())
    app = kernel.lab.hosts["app"]
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        app.call(Path("/proc/sys/net", path).write_text, "1")
    watch = Watch(kernel, kernel.lab.hosts["db"])
    app.call(send_bound, "lo", address, cgroup="svc")
    assert watch.seen() == 0


@pytest.mark.parametrize(
    ("via", "packet"),
    [
        ("10.77.0.3", ipv4("10.77.0.2", "127.0.0.1", 17, udp_body(9, 9))),
        ("10.77.0.3", ipv4("127.0.0.1", "10.77.0.3", 17, udp_body(9, 9))),
        ("10.77.0.3", ipv4("10.77.0.3", "10.77.0.2", 17, udp_body(9, 9))),
        ("10.77.0.3", ipv4("10.77.0.2", "0.0.0.0", 17, udp_body(9, 9))),
        ("10.77.0.3", udp6("fd77::2", "::1", 9, 9)),
        ("fd77::3", udp6("fd77::2", "::1", 9, 9)),
        ("fd77::3", udp6("fd77::2", "::ffff:127.0.0.1", 9, 9)),
        ("fd77::3", ipv4("10.77.0.2", "127.0.0.1", 17, udp_body(9, 9) + bytes(40))),
        ("10.77.0.3", ipv4("10.77.0.2", "10.77.0.3", 6, SYN_FROM_22 + MARK)),
        ("10.77.0.3", ipv4("10.77.0.2", "10.77.0.3", 1, struct.pack("!BBHI", 0, 0, 0, 0) + MARK)),
        ("10.77.0.3", ipv4("10.77.0.2", "10.77.0.3", 1, struct.pack("!BBHI", 3, 1, 0, 0) + MARK)),
        ("10.77.0.3", ipv4("10.77.0.2", "10.77.0.3", 58, struct.pack("!BBHI", 135, 0, 0, 0) + MARK)),
        ("10.77.0.3", ipv4("10.77.0.2", "10.77.0.3", 17, udp_body(67, 68))),
    ],
    ids=[
        "dst 127", "src 127", "swapped", "dst 0", "v6 in v4", "dst ::1", "dst mapped 127", "v4 in v6",
        "from port 22", "echo reply", "unreachable", "NDP in v4", "DHCP backwards",
    ],
)  # fmt: skip
def test_a_forged_header_does_not_open_the_way(kernel: Kernel, via: str, packet: bytes) -> None:
    kernel.enforce(SLOT, rules())
    watch = Watch(kernel, kernel.lab.hosts["db"])
    kernel.lab.hosts["app"].call(raw_to, via, packet, cgroup="svc")
    assert watch.seen() == 0


@pytest.mark.parametrize(
    ("via", "packet"),
    [
        ("192.0.2.9", udp6("fd77::2", "fd77::3", 9, 9)),
        ("2001:db8::9", ipv4("10.77.0.2", "10.77.0.3", 17, udp_body(9, 9, MARK + bytes(40)))),
    ],
    ids=["v6 in v4", "v4 in v6"],
)
def test_a_packet_of_the_other_version_is_malformed(kernel: Kernel, via: str, packet: bytes) -> None:
    """Even where the address that it shows is allowed: nobody routes by it."""
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 any 0; fd77::3/128 any 0"))
    watch = Watch(kernel, kernel.lab.hosts["hub"])
    kernel.lab.hosts["app"].call(raw_to, via, packet, cgroup="svc")
    assert watch.seen() == 0
