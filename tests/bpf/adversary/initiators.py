"""Tricks that make a flow of our own look as if the peer had begun it."""

import ctypes
import os
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.bpf.adversary.tools import frame, ipv4, udp6, udp_body
from tests.bpf.adversary.trick import (
    APP4,
    APP6,
    BOTH,
    DB4,
    DB6,
    PAL4,
    PAL6,
    Trick,
    calls_denied,
    emptied_calls_denied,
    tcp,
    udp,
)
from tests.support.unprivileged import MARK, Packet, Seen

INET6 = socket.AF_INET6
IPV6_FREEBIND, IP_FREEBIND, IP_TRANSPARENT, IP_RETOPTS = 78, 15, 19, 7
IPV6_PKTINFO, IPV6_RTHDR, IPV6_2292RTHDR, FLOWLABEL_MGR, FLOWINFO_SEND = 50, 57, 5, 32, 33
UDP_CORK = 1
PING = {"net/ipv4/ping_group_range": "0 65534"}
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PAIR = b"""link add v0 type veth peer name v1
addr add 10.77.0.2/24 dev v0
addr add fd77::2/64 dev v0 nodad
link set v1 up
link set v0 up"""
SPECIAL_PORTS = {"net/ipv4/ip_unprivileged_port_start": "0"}
TFO = {"net/ipv4/tcp_fastopen": "7"}
NO_COOKIE, TCP_FASTOPEN, MSG_FASTOPEN, TCP_FASTOPEN_CONNECT, MPTCP = 34, 23, 0x20000000, 30, 262


def begun_by_db(how: str) -> str:
    """A datagram of our own, from the denied host's address, looped back by multicast; then we `answer`."""
    index = socket.if_nametoindex("eth0")
    with udp(INET6) as ear, udp(INET6) as mouth:
        ear.bind(("::", 4001))
        mouth.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        mouth.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        ancillary = []
        if how == "bind":
            mouth.bind((DB6, 5432))
        else:
            mouth.bind(("::", 5432))
            info = socket.inet_pton(INET6, DB6) + struct.pack("@I", index)
            ancillary = [(socket.IPPROTO_IPV6, IPV6_PKTINFO, info)]
        mouth.sendmsg([b"hello"], ancillary, 0, ("ff02::1", 4001))
        heard = ear.recvfrom(99)[1][0]
        ear.sendto(MARK, (DB6, 5432))
        return heard


def looped_multicast_bound() -> str:
    return begun_by_db("bind")


def looped_multicast_by_packet_info() -> str:
    return begun_by_db("pktinfo")


def foreign_source(*, forgets: bool) -> str:
    """A datagram from the denied host's address to an allowed one, which takes it for that host's."""
    with udp(INET6) as s:
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        s.bind((DB6, 4012))  # no echo there: two of them would talk for ever
        if forgets:
            s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 0)
        return str(s.sendto(MARK, (PAL6, 5432)))


def packet_info(address: str) -> list[tuple[int, int, bytes]]:
    info = socket.inet_pton(INET6, address) + struct.pack("@I", 0)
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]


def corked_with_a_foreign_source(times: int = 1) -> str:
    """The source is chosen while the option is on, and the datagram leaves when it is off."""
    with udp(INET6) as s:
        for _ in range(times):
            s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            s.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 1)
            s.sendmsg([MARK], packet_info(DB6), 0, (PAL6, 5432))
            s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 0)
            s.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 0)
        return "sent"


def held_back_with_a_foreign_source() -> str:
    with udp(INET6) as s:
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        s.sendmsg([MARK], packet_info(DB6), socket.MSG_MORE, (PAL6, 5432))
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 0)
        return str(s.sendto(MARK, (PAL6, 5432)))


def light_datagram_from_a_foreign_source() -> str:
    """UDP-Lite is another protocol than UDP."""
    with udp(INET6, proto=136) as s:
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        s.bind((DB6, 4013))
        return str(s.sendto(MARK, (PAL6, 5432)))


def ping_from_a_foreign_source() -> str:
    with udp(INET6, proto=58) as s:
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        s.bind((DB6, 0))
        return str(s.sendto(bytes([128, 0, 0, 0, 0, 1, 0, 1]) + MARK, (PAL6, 0)))


def as_db(seen: Seen) -> list[Packet]:
    return [p for p in seen.at("pal") if p.source == DB6]


def looped_ipv4_from_a_foreign_source() -> str:
    """IPv4 knows IP_FREEBIND too; the kernel refuses to send from such a source."""
    with udp() as ear, udp() as mouth:
        ear.bind(("", 4001))
        mouth.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        mouth.bind((DB4, 5432))
        group = socket.inet_aton("224.0.0.1") + bytes(4) + struct.pack("@I", socket.if_nametoindex("eth0"))
        mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, group)
        try:
            mouth.sendto(b"hello", ("224.0.0.1", 4001))
        finally:
            ear.sendto(MARK, (DB4, 5432))
        return "sent"


def transparent_source() -> str:
    with udp() as s:
        try:
            s.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        finally:
            s.sendto(MARK, (DB4, 9))
        return "set"


def looped_broadcast() -> str:
    """Our own broadcast comes back; its source is the host's own address, which opens nothing else."""
    with udp() as ear, udp() as mouth:
        for s, port in ((ear, 4010), (mouth, 4005)):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            s.bind(("", port))
        mouth.sendto(b"hello", ("10.77.0.255", 4010))
        heard = ear.recvfrom(99)[1][0]
        ear.sendto(MARK, (DB4, 4005))
        mouth.sendto(MARK, (DB4, 9))
        return heard


def reflected_handshake(port: int = 4002, proto: int = 0) -> str:
    """A call of our own over loopback, from the denied host's address: our listener answers that host."""
    with tcp(INET6) as listener, tcp(INET6, proto=proto) as caller:
        listener.bind(("::", port))
        listener.listen()
        caller.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        caller.bind((DB6, 5432))
        caller.connect((APP6, port))
        return "connected"


def reflected_from_port_22() -> str:
    return reflected_handshake(22)


def reflected_data() -> str:
    """The same with fast open: the listener may speak before the handshake ends."""
    with tcp(INET6) as listener, tcp(INET6) as caller:
        listener.bind(("::", 4003))
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 5)
        listener.setsockopt(socket.IPPROTO_TCP, NO_COOKIE, 1)
        listener.listen()
        caller.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        caller.setsockopt(socket.IPPROTO_TCP, NO_COOKIE, 1)
        caller.bind((DB6, 5432))
        caller.setblocking(False)
        with suppress(BlockingIOError):
            caller.sendto(b"hello", MSG_FASTOPEN, (APP6, 4003))
        with listener.accept()[0] as accepted:
            return str(accepted.send(MARK))


def private_namespace(family: int, packet: bytes, port: int) -> str:
    """In a user and a network namespace of our own we are root: a peer can be made of a veth pair."""
    tell, told = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            be_root_of_nothing(CLONE_NEWNET)
            subprocess.run(["ip", "-batch", "-"], input=PAIR, check=True, capture_output=True)
            with udp(family) as ear:
                ear.bind(("", port))
                mac = _mac("v0")
                frame("v1", mac, 0x0800 if family == socket.AF_INET else 0x86DD, packet)
                tell.send(ear.recvfrom(99)[1][0].encode())
        except BaseException as error:
            tell.send(repr(error).encode())
        finally:
            os._exit(0)
    heard = told.recv(200).decode()
    os.waitpid(pid, 0)
    with udp(family) as s:
        s.bind(("", port))
        s.sendto(MARK, (DB4 if family == socket.AF_INET else DB6, 9))
    return heard


def be_root_of_nothing(more: int) -> None:
    """Root of a user namespace of our own; `more` are further namespaces to unshare."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | more):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text("0 65534 1")


def _mac(device: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind((device, 0))
        return bytes(s.getsockname()[4])


def private_namespace_4() -> str:
    packet = ipv4(DB4, "10.77.0.2", 17, udp_body(9, 4004, b"hello"))
    return private_namespace(socket.AF_INET, packet, 4004)


def private_namespace_6() -> str:
    return private_namespace(INET6, udp6(DB6, APP6, 9, 4004), 4004)


def from_a_listening_port() -> str:
    """One socket listens on the port that another one calls from."""
    with tcp() as listener, tcp() as caller:
        for s in (listener, caller):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            s.bind(("", 4006))
        listener.listen()
        return calls_denied(caller, 5432)


def listener_that_calls() -> str:
    """A socket that listened and was called is emptied and calls itself."""
    with tcp() as s, tcp() as caller:
        s.bind(("", 4007))
        s.listen()
        caller.connect(("127.0.0.1", 4007))
        s.accept()[0].close()
        return emptied_calls_denied(s, 5432)


def accepted_that_calls() -> str:
    """A connection that the peer began is emptied, and its socket calls the denied host."""
    with tcp() as listener, tcp() as caller:
        listener.bind(("", 4008))
        listener.listen()
        caller.connect((APP4, 4008))
        accepted = listener.accept()[0]
        accepted.settimeout(0.3)
        return emptied_calls_denied(accepted, 5432)


def allowed_then_another() -> str:
    """A TCP socket that talked to an allowed host is emptied, and calls the denied one."""
    with tcp() as s:
        s.connect((PAL4, 5432))
        return emptied_calls_denied(s, 5432)


def self_connected() -> str:
    with tcp() as s:
        s.bind((APP4, 4009))
        s.connect((APP4, 4009))
        return emptied_calls_denied(s, 5432)


def from_port_22() -> str:
    with tcp() as s:
        s.bind(("", 22))
        return calls_denied(s, 5432)


def datagram_from_port_22() -> str:
    with udp() as s:
        s.bind(("", 22))
        return str(s.sendto(MARK, (DB4, 9)))


TRICKS = {
    "own multicast, looped back, bound to the peer's address": Trick(looped_multicast_bound),
    "own multicast, looped back, from the peer by IPV6_PKTINFO": Trick(looped_multicast_by_packet_info),
    "a foreign source": Trick(lambda: foreign_source(forgets=False), leak=as_db),
    "a foreign source, IPV6_FREEBIND off again": Trick(lambda: foreign_source(forgets=True), leak=as_db),
    "a foreign source, corked until IPV6_FREEBIND is off": Trick(corked_with_a_foreign_source, leak=as_db),
    "the same over and over": Trick(lambda: corked_with_a_foreign_source(4), leak=as_db),
    "a foreign source, held back until IPV6_FREEBIND is off": Trick(
        held_back_with_a_foreign_source, leak=as_db
    ),
    "a foreign source of UDP-Lite": Trick(light_datagram_from_a_foreign_source, leak=as_db),
    "a foreign source of a ping socket": Trick(ping_from_a_foreign_source, leak=as_db, sysctls=PING),
    "own IPv4 multicast from the peer's address": Trick(looped_ipv4_from_a_foreign_source),
    "IP_TRANSPARENT": Trick(transparent_source),
    "own broadcast, looped back": Trick(looped_broadcast),
    "handshake over loopback from the peer's address": Trick(reflected_handshake),
    "the same by a subflow of MPTCP": Trick(lambda: reflected_handshake(proto=MPTCP)),
    "the same to port 22": Trick(reflected_from_port_22, BOTH, sysctls=SPECIAL_PORTS),
    "the same with fast open and data": Trick(reflected_data, sysctls=TFO),
    "a peer made in a private network namespace, IPv4": Trick(private_namespace_4),
    "a peer made in a private network namespace, IPv6": Trick(private_namespace_6),
    "call from a port on which we listen": Trick(from_a_listening_port),
    "a listener that calls": Trick(listener_that_calls),
    "an accepted connection that calls": Trick(accepted_that_calls),
    "an allowed connection, emptied, that calls another": Trick(allowed_then_another),
    "a self-connected socket that calls": Trick(self_connected),
    "TCP from port 22": Trick(from_port_22, BOTH, sysctls=SPECIAL_PORTS),
    "UDP from port 22": Trick(datagram_from_port_22, BOTH, sysctls=SPECIAL_PORTS),
}
