"""Tricks by which the packet goes elsewhere than the call said, or no judged call is made at all."""

import ctypes
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress

from tests.bpf.adversary.initiators import (
    FLOWINFO_SEND,
    FLOWLABEL_MGR,
    INET6,
    IP_RETOPTS,
    IPV6_RTHDR,
    MPTCP,
    MSG_FASTOPEN,
    TCP_FASTOPEN_CONNECT,
    TFO,
)
from tests.bpf.adversary.tools import ipv4
from tests.bpf.adversary.trick import (
    CLOSED,
    DB4,
    DB6,
    PAL4,
    PAL6,
    Trick,
    calls_denied,
    emptied_calls_denied,
    marked_at_db,
    rules,
    tcp,
    udp,
)
from tests.support.unprivileged import MARK, SLOT, Arena, Packet, Seen, Steps

IP, IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
PING = {"net/ipv4/ping_group_range": "0 2147483647"}
UDP_CORK, UDP_SEGMENT, SO_ZEROCOPY, MSG_ZEROCOPY = 1, 103, 60, 0x4000000
MAPPED = "::ffff:" + DB4
FREE_TO_DB = rules(edges="0.0.0.0/0 any 0; ::/0 any 0")


def ipv4_route(kind: int, hop: str) -> bytes:
    """A loose (131) or strict (137) source route by one hop."""
    return bytes([1, kind, 7, 4]) + socket.inet_aton(hop)


def segments(hop: str, final: str) -> bytes:
    """A segment routing header: the packet goes to `hop` first."""
    head = bytes([0, 4, 4, 1, 1, 0, 0, 0])
    return head + socket.inet_pton(INET6, final) + socket.inet_pton(INET6, hop)


def source_route(kind: int, sock: socket.socket) -> str:
    with sock as s:
        s.setsockopt(IP, socket.IP_OPTIONS, ipv4_route(kind, DB4))
        s.connect((PAL4, 9 if s.type == socket.SOCK_DGRAM else 5432))
        return str(s.send(MARK))


def source_route_of_one_datagram() -> str:
    with udp() as s:
        return str(s.sendmsg([MARK], [(IP, IP_RETOPTS, ipv4_route(131, DB4))], 0, (PAL4, 9)))


def source_route_of_a_connected_socket_later() -> str:
    """Connected and judged first, routed afterwards."""
    with udp() as s:
        s.connect((PAL4, 9))
        s.send(b"hello")
        s.setsockopt(IP, socket.IP_OPTIONS, ipv4_route(131, DB4))
        return str(s.send(MARK))


def established_then_source_routed() -> str:
    with tcp() as s:
        s.connect((PAL4, 5432))
        s.setsockopt(IP, socket.IP_OPTIONS, ipv4_route(131, DB4))
        s.setsockopt(IP, socket.IP_TOS, 8)  # the socket looks its route up anew
        return str(s.send(MARK))


def routing_header(sock: socket.socket) -> str:
    with sock as s:
        s.setsockopt(IPV6, IPV6_RTHDR, segments(DB6, PAL6))
        s.connect((PAL6, 9 if s.type == socket.SOCK_DGRAM else 5432))
        return str(s.send(MARK))


def routing_header_of_one_datagram() -> str:
    with udp(INET6) as s:
        return str(s.sendmsg([MARK], [(IPV6, IPV6_RTHDR, segments(DB6, PAL6))], 0, (PAL6, 9)))


def routing_header_of_a_flow_label() -> str:
    """A lease on a flow label carries extension headers of its own."""
    control = struct.pack("@Nii", 16 + 40, IPV6, IPV6_RTHDR) + segments(DB6, PAL6)
    with udp(INET6) as s:
        label = socket.htonl(0x12345)
        request = socket.inet_pton(INET6, PAL6) + struct.pack("=IBBHHHI", label, 0, 1, 1, 60, 6, 0)
        s.setsockopt(IPV6, FLOWLABEL_MGR, request + control)
        s.setsockopt(IPV6, FLOWINFO_SEND, 1)
        return str(s.sendto(MARK, (PAL6, 9, 0x12345, 0)))


def other_than_connected(how: str) -> str:
    with udp() as s:
        s.connect((PAL4, 9))
        s.send(b"hello")
        s.recv(99)
        if how == "sendto":
            return str(s.sendto(MARK, (DB4, 9)))
        if how == "reconnect":
            return emptied_calls_denied(s, 9)
        return calls_denied(s, 9)


def sent_after_a_refusal() -> str:
    """A refused call leaves nothing behind that the next packet could use."""
    with udp() as s:
        s.connect((PAL4, 9))
        for port in (9, 67):
            try:
                s.sendto(MARK, (DB4, port))
            except PermissionError:
                s.send(b"hello")
        return str(s.sendto(MARK, (DB4, 9)))


def unspecified_family() -> str:
    """Linux takes AF_UNSPEC in sendto for AF_INET."""
    name = struct.pack("@H", 0) + inet(DB4, 9)[2:]
    with udp() as s:
        sent = ctypes.CDLL(None, use_errno=True).sendto(s.fileno(), MARK, len(MARK), 0, name, 16)
        return str(sent) if sent > 0 else str(ctypes.get_errno())


def ipv4_on_ipv6() -> str:
    """An AF_INET address given to an IPv6 socket."""
    with udp(INET6) as s:
        sent = ctypes.CDLL(None, use_errno=True).sendto(s.fileno(), MARK, len(MARK), 0, inet(DB4, 9), 16)
        return str(sent) if sent > 0 else str(ctypes.get_errno())


def connected_before_then_another() -> Steps:
    """Connected before the deny; an allowed datagram by the same socket must not vouch for the next."""
    with udp() as s:
        s.connect((DB4, 9))
        s.send(b"hello")
        s.recv(99)
        yield
        words = []
        for _ in range(3):
            words.append(str(s.sendto(b"hello", (PAL4, 9))))
            with suppress(PermissionError):
                words.append(str(s.send(MARK)))
        return " ".join(words)


def corked_before() -> Steps:
    """Judged and corked before the deny, sent after it."""
    with udp() as s:
        s.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 1)
        s.sendto(MARK, (DB4, 9))
        yield
        s.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 0)
        return "sent"


def turned_into_ipv4() -> str:
    """IPV6_ADDRFORM makes an IPv4 socket of one that is connected to a mapped address."""
    with udp(INET6) as s:
        s.connect(("::ffff:" + PAL4, 9))
        s.send(b"hello")
        s.setsockopt(IPV6, 1, socket.AF_INET)
        with suppress(PermissionError):
            sent = ctypes.CDLL(None).sendto(s.fileno(), MARK, len(MARK), 0, inet(DB4, 9), 16)
            return str(sent)
        return "refused"


def raw_beside_its_connection() -> str:
    """A raw socket of TCP that is connected to the allowed host writes a header to the denied one."""
    segment = struct.pack("!HHIIBBHHH", 4017, 5432, 0, 0, 80, 2, 9, 0, 0) + MARK
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as s:
        s.setsockopt(IP, socket.IP_HDRINCL, 1)
        s.connect((PAL4, 5432))
        return str(s.send(ipv4("10.77.0.2", DB4, 6, segment)))


def on_the_way_to_db(seen: Seen) -> list[Packet]:
    """The frame goes to the neighbour of the connection, the packet to the denied host."""
    return seen.at("pal", DB4)


def mapped_address() -> str:
    with udp(INET6) as s:
        return str(s.sendto(MARK, (MAPPED, 9)))


def mapped_connection() -> str:
    with tcp(INET6) as s:
        s.connect((MAPPED, 5432))
        return str(s.send(MARK))


def corked() -> str:
    """Corked to the allowed host, connected to the denied one meanwhile, then sent."""
    with udp() as s:
        s.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 1)
        s.sendto(MARK, (PAL4, 9))
        with suppress(OSError):
            s.connect((DB4, 9))
        s.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 0)
        s.sendto(MARK, socket.MSG_MORE, (DB4, 9))
        return str(s.sendto(b"", (DB4, 9)))


def many_at_once() -> str:
    """Segments of one large send, zero copy, error queue on."""
    with udp() as s:
        s.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 500)
        s.setsockopt(IP, 11, 1)
        s.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        return str(s.sendto(MARK * 300, MSG_ZEROCOPY, (DB4, 9)))


def inet(address: str, port: int) -> bytes:
    return struct.pack("@H", 2) + struct.pack("!H", port) + socket.inet_aton(address) + bytes(8)


def sendmmsg() -> str:
    """One call, two datagrams: the allowed host first."""

    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_char_p), ("size", ctypes.c_size_t)]

    class Message(ctypes.Structure):
        _fields_ = [
            ("name", ctypes.c_char_p), ("name_size", ctypes.c_uint), ("vector", ctypes.POINTER(Vector)),
            ("vectors", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_size", ctypes.c_size_t),
            ("flags", ctypes.c_int), ("sent", ctypes.c_uint), ("zero", ctypes.c_uint),
        ]  # fmt: skip

    data = Vector(MARK, len(MARK))
    names = [inet(PAL4, 9), inet(DB4, 9)]
    messages = (Message * 2)(*(Message(n, 16, ctypes.pointer(data), 1) for n in names))
    with udp() as s:
        return str(ctypes.CDLL(None).sendmmsg(s.fileno(), messages, 2, 0))


def fast_open() -> str:
    with tcp() as s:
        return str(s.sendto(MARK, MSG_FASTOPEN, (DB4, 5432)))


def fast_open_by_connect() -> str:
    with tcp() as s:
        s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        s.connect((DB4, 5432))
        return str(s.send(MARK))


def multipath() -> str:
    with tcp(proto=MPTCP) as s:
        s.connect((DB4, 5432))
        return str(s.send(MARK))


def udp_lite() -> str:
    with udp(proto=136) as s:
        return str(s.sendto(MARK, (DB4, 9)))


def ping(family: int, proto: int, echo: int, peer: str) -> str:
    with udp(family, proto) as s:
        return str(s.sendto(bytes([echo]) + bytes(7) + MARK, (peer, 0)))


def by_device() -> str:
    with udp() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        return str(s.sendto(MARK, (DB4, 9)))


def with_a_mark() -> str:
    """SO_MARK and TCP_REPAIR ask for capabilities."""
    for level, option in ((socket.SOL_SOCKET, socket.SO_MARK), (socket.IPPROTO_TCP, 19)):
        with tcp() as s:
            try:
                s.setsockopt(level, option, 1)
            except PermissionError:
                continue
            return "set"
    with udp() as s:
        s.sendto(MARK, (DB4, 9))
    return "refused"


def before_the_deny(sender: Callable[[socket.socket], object], sock: socket.socket) -> Steps:
    """Connected while it was allowed; the deny comes; then the data."""
    with sock as s:
        s.connect((DB4, 5432))
        s.send(b"hello")
        s.recv(99)
        yield
        return str(sender(s))


def by_splice(s: socket.socket) -> int:
    out, into = os.pipe()
    os.write(into, MARK)
    return os.splice(out, s.fileno(), len(MARK))


def by_sendfile(s: socket.socket) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(MARK)
        file.flush()
        return os.sendfile(s.fileno(), file.fileno(), 0, len(MARK))


def by_a_child(s: socket.socket) -> int:
    """A duplicate of the descriptor in a process that dies after us."""
    pid = os.fork()
    if not pid:
        try:
            os.write(os.dup(s.fileno()), MARK)
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


def created_before_the_deny() -> Steps:
    with udp() as s, tcp() as t:
        yield
        try:
            s.sendto(MARK, (DB4, 9))
        finally:
            t.connect((DB4, 5432))
        return "sent"


def passed_on() -> str:
    """A socket that crosses a UNIX socket stays its maker's."""
    ours, theirs = socket.socketpair()
    with udp() as s:
        socket.send_fds(ours, [b"x"], [s.fileno()])
        _, descriptors, _, _ = socket.recv_fds(theirs, 9, 1)
    with socket.socket(fileno=descriptors[0]) as got:
        return str(got.sendto(MARK, (DB4, 9)))


def deny(arena: Arena) -> None:
    arena.kernel.enforce(SLOT, CLOSED)


def live(sender: Callable[[socket.socket], object], kind: int) -> Trick:
    make = udp if kind == socket.SOCK_DGRAM else tcp
    return Trick(lambda: before_the_deny(sender, make()), (FREE_TO_DB,), marked_at_db, between=(deny,))


def plain(s: socket.socket) -> int:
    return s.send(MARK)


RAW = frozenset({13})  # some kernels ask for CAP_NET_RAW before a source route, others for nothing
DGRAM, STREAM = socket.SOCK_DGRAM, socket.SOCK_STREAM
TRICKS = {
    "loose source route, TCP": Trick(lambda: source_route(131, tcp()), keep=RAW),
    "strict source route, TCP": Trick(lambda: source_route(137, tcp()), keep=RAW),
    "loose source route, connected UDP": Trick(lambda: source_route(131, udp()), keep=RAW),
    "strict source route, connected UDP": Trick(lambda: source_route(137, udp()), keep=RAW),
    "loose source route of one datagram": Trick(source_route_of_one_datagram, keep=RAW),
    "loose source route after connect, UDP": Trick(source_route_of_a_connected_socket_later, keep=RAW),
    "loose source route after connect, TCP": Trick(established_then_source_routed, keep=RAW),
    "routing header, TCP": Trick(lambda: routing_header(tcp(INET6))),
    "routing header, connected UDP": Trick(lambda: routing_header(udp(INET6))),
    "routing header of one datagram": Trick(routing_header_of_one_datagram, by="linux"),
    "routing header of a flow label": Trick(routing_header_of_a_flow_label, by="linux"),
    "sendto another than the connected": Trick(lambda: other_than_connected("sendto")),
    "connect again": Trick(lambda: other_than_connected("again")),
    "disconnect and connect again": Trick(lambda: other_than_connected("reconnect")),
    "send after a refusal": Trick(sent_after_a_refusal),
    "AF_UNSPEC address": Trick(unspecified_family),
    "AF_INET address on an IPv6 socket": Trick(ipv4_on_ipv6),
    "connected before the deny, another vouches": Trick(
        connected_before_then_another, (FREE_TO_DB,), marked_at_db, between=(deny,)
    ),
    "corked before the deny": Trick(corked_before, (FREE_TO_DB,), between=(deny,)),
    "IPV6_ADDRFORM": Trick(turned_into_ipv4),
    "a raw socket beside its connection": Trick(raw_beside_its_connection, leak=on_the_way_to_db, keep=RAW),
    "mapped address, UDP": Trick(mapped_address),
    "mapped address, TCP": Trick(mapped_connection),
    "corked datagram": Trick(corked),
    "segmented, zero copy": Trick(many_at_once),
    "sendmmsg": Trick(sendmmsg),
    "fast open": Trick(fast_open, sysctls=TFO),
    "fast open by connect": Trick(fast_open_by_connect, sysctls=TFO),
    "MPTCP": Trick(multipath),
    "UDP-Lite": Trick(udp_lite),
    "ping socket": Trick(lambda: ping(socket.AF_INET, 1, 8, DB4), sysctls=PING),
    "ping socket, IPv6": Trick(lambda: ping(INET6, 58, 128, DB6), sysctls=PING),
    "bound to the device": Trick(by_device),
    "SO_MARK and TCP_REPAIR": Trick(with_a_mark),
    "datagrams connected before the deny": live(plain, DGRAM),
    "TCP connected before the deny": live(plain, STREAM),
    "splice into a connection from before the deny": live(by_splice, STREAM),
    "sendfile into a connection from before the deny": live(by_sendfile, STREAM),
    "a child's copy of a connection from before the deny": live(by_a_child, STREAM),
    "sockets created before the deny": Trick(created_before_the_deny, (FREE_TO_DB,), between=(deny,)),
    "a socket passed on": Trick(passed_on),
}
