"""Tricks over loopback: what is sent to the host itself, so that the host carries it on to the denied one."""

import socket
import struct
from collections.abc import Iterator

from tests.bpf.adversary.initiators import INET6, IPV6_FREEBIND, IPV6_RTHDR, PING, TFO
from tests.bpf.adversary.paths import RAW
from tests.bpf.adversary.tools import ipv4, udp_body
from tests.bpf.adversary.trick import (
    APP4,
    APP6,
    BOTH,
    DB4,
    DB6,
    NOTHING,
    OPEN,
    PAL4,
    PAL6,
    Trick,
    tcp,
    udp,
)
from tests.support.unprivileged import MARK, Arena

UDP_LITE, ICMP6, VXLAN, VNI = 136, 58, 4789, 42
MAC = bytes.fromhex("02aabbccdd01")
ROUTER = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/all/seg6_enabled": "1",
    "net/ipv6/conf/lo/seg6_enabled": "1",
}
SOURCE_ROUTES = {
    f"net/ipv4/conf/{name}/{key}": value
    for name in ("all", "lo", "eth0")
    for key, value in (("accept_source_route", "1"), ("rp_filter", "0"))
} | {"net/ipv4/ip_forward": "1"}
WORLDS = (*BOTH, NOTHING)


def from_db(kind: int, proto: int, data: bytes, port: int) -> str:
    """A packet from the denied host's address to our own; the answer goes to that host."""
    with socket.socket(INET6, kind, proto) as s:
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        s.bind((DB6, 4444 if port else 0))
        return str(s.sendto(data, (APP6, port)))


def to_a_closed_port(proto: int = 0) -> str:
    return from_db(socket.SOCK_DGRAM, proto, MARK, 4999)


def echo_request() -> str:
    return from_db(socket.SOCK_DGRAM, ICMP6, bytes([128]) + bytes(7) + MARK, 0)


def call_with_data() -> str:
    """TCP fast open: the first packet of a handshake carries data."""
    with tcp(INET6) as ear, tcp(INET6) as s:
        ear.bind((APP6, 4061))
        ear.listen()
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        s.bind((DB6, 4062))
        return str(s.sendto(MARK, socket.MSG_FASTOPEN, (APP6, 4061)))


def segments(sock: socket.socket, port: int) -> str:
    """Segments: the allowed host by name, ourselves first, then the denied one."""
    route = b"".join(socket.inet_pton(INET6, hop) for hop in (PAL6, DB6, APP6))
    with sock as s:
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_RTHDR, bytes([0, 6, 4, 2, 2, 0, 0, 0]) + route)
        s.connect((PAL6, port))
        return str(s.send(MARK))


def source_route() -> str:
    """To the allowed host, by ourselves first and the denied one then."""
    hops = socket.inet_aton(APP4) + socket.inet_aton(DB4)
    with udp() as s:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([1, 131, 3 + len(hops), 4]) + hops)
        return str(s.sendto(MARK, (PAL4, 9)))


def tunnel(arena: Arena) -> None:
    """Root's VXLAN device, as overlay networks of containers have one."""
    if "vx0" not in arena.app.run(["ip", "-br", "link"]).stdout:
        for words in (
            f"link add vx0 address {MAC.hex(':')} type vxlan id {VNI} dstport {VXLAN} local {APP4} dev eth0",
            "addr add 10.244.0.1/24 dev vx0",
            "link set vx0 up",
        ):
            arena.app.run(["ip", *words.split()])
        arena.app.run(["sysctl", "-qw", "net.ipv4.conf.vx0.rp_filter=0"])
    arena.kernel.datapath.refresh_addresses()


def inside_of(source: str, dest: str, ports: tuple[int, int], data: bytes) -> bytes:
    frame = MAC + bytes.fromhex("02aabbccdd02") + b"\x08\x00" + ipv4(source, dest, 17, udp_body(*ports, data))
    return struct.pack("!II", 1 << 27, VNI << 8) + frame


def tunnelled(to: str) -> Iterator[None] | str:
    yield
    with udp() as s:
        return str(s.sendto(inside_of("10.244.0.5", DB4, (4040, 9), MARK), (to, VXLAN)))


def begun_in_a_tunnel() -> Iterator[None] | str:
    """A datagram of our own that comes out of the tunnel as the denied host's; then we `answer`."""
    yield
    with udp() as ear, udp() as s:
        ear.bind(("0.0.0.0", 4004))
        s.sendto(inside_of(DB4, APP4, (9, 4004), b"hello"), (APP4, VXLAN))
        heard = ear.recvfrom(99)[1][0]
        ear.sendto(MARK, (DB4, 9))
        return heard


TRICKS = {
    "an error about our datagram from the denied host": Trick(to_a_closed_port, WORLDS),
    "an error about our UDP-Lite from the denied host": Trick(lambda: to_a_closed_port(UDP_LITE), WORLDS),
    "an echo to the denied host": Trick(echo_request, WORLDS, sysctls=PING),
    "a fast open from the denied host to ourselves": Trick(call_with_data, WORLDS, sysctls=TFO),
    "segments by ourselves, UDP": Trick(lambda: segments(udp(INET6), 9), WORLDS, sysctls=ROUTER),
    "segments by ourselves, TCP": Trick(lambda: segments(tcp(INET6), 5432), WORLDS, sysctls=ROUTER),
    "a loose source route by ourselves": Trick(
        source_route, WORLDS, keep=RAW, sysctls=SOURCE_ROUTES, by="linux"
    ),
    "a tunnel of root's, by our own address": Trick(
        lambda: tunnelled(APP4), WORLDS, sysctls=ROUTER, between=(tunnel,)
    ),
    "a tunnel of root's, by a flow that it begins": Trick(
        begun_in_a_tunnel, (OPEN,), sysctls=ROUTER, between=(tunnel,)
    ),
}
