"""Tricks that use what is always allowed for something else: DHCP, discovery, local addresses."""

import socket
from collections.abc import Callable
from contextlib import suppress

from tests.bpf.adversary.initiators import INET6, SPECIAL_PORTS
from tests.bpf.adversary.paths import PING, ping
from tests.bpf.adversary.trick import APP4, BOTH, DB4, DB6, NOTHING, Trick, anywhere, at_db, rules, tcp, udp
from tests.support.unprivileged import CAP_NET_BIND_SERVICE, MARK, Arena, Seen, Steps

BIND = frozenset({CAP_NET_BIND_SERVICE})
DENIED_BUT_ALL = rules(edges="0.0.0.0/0 any 0; ::/0 any 0", ingress="", deny=f"{DB4}/32 any 0 both")
DHCP_LISTED = "DHCP requests to all of a link"


def dhcp(family: int, source: int, peer: str, port: int) -> str:
    with udp(family) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("", source))
        return str(s.sendto(MARK, (peer, port)))


def dhcp_4() -> str:
    return dhcp(socket.AF_INET, 68, DB4, 67)


def dhcp_6() -> str:
    return dhcp(INET6, 546, DB6, 547)


def dhcp_backwards() -> str:
    """As a server would."""
    return dhcp(socket.AF_INET, 67, DB4, 68)


def dhcp_to_all() -> str:
    """The mark rides on what a client's broadcast must be allowed."""
    return dhcp(socket.AF_INET, 68, "255.255.255.255", 67)


def dhcp_to_all_6() -> str:
    return dhcp(INET6, 546, f"ff02::1:2%{socket.if_nametoindex('eth0')}", 547)


def all_ones() -> str:
    with udp() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return str(s.sendto(MARK, ("255.255.255.255", 9)))


def discovery_by_ping_socket() -> str:
    """Neighbour discovery and answers are free; a ping socket may send requests alone."""
    for family, proto, kinds, peer in ((INET6, 58, (129, 135, 136, 143), DB6), (2, 1, (0, 3), DB4)):
        for kind in kinds:
            try:
                ping(family, proto, kind, peer)
            except OSError:
                continue
            return f"sent {kind}"
    return "refused"


LOCAL = ("127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", APP4, "::1", "::", "::ffff:127.0.0.1", "fd77::2")


def local_by_the_device() -> str:
    """Local addresses, but out of the device: none may be seen by another host."""
    words = []
    for address in LOCAL:
        with udp(INET6 if ":" in address else socket.AF_INET) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            try:
                words.append(str(s.sendto(MARK, (address, 9))))
            except OSError as error:
                words.append(str(error.errno))
    return " ".join(words)


def embedded(*forms: str) -> str:
    """The denied IPv4 address inside of an IPv6 one."""
    words = []
    for form in forms:
        with udp(INET6) as s:
            try:
                words.append(str(s.sendto(MARK, (form, 9))))
            except OSError as error:
                words.append(str(error.errno))
    return " ".join(words)


def at_hub(seen: Seen) -> list[object]:
    return seen.at("hub")


def heard_by_us(kind: Callable[[], socket.socket], port: int) -> Steps:
    """Waits for a datagram and tells the denied host what came, in the answer's own flow."""
    with kind() as s:
        s.bind(("", port))
        yield
        data, peer = s.recvfrom(99)
        return str(s.sendto(MARK + data, peer))


def dhcp_offer(arena: Arena) -> None:
    """A datagram of a server's, from another host to this one."""
    arena.db.call(dhcp, socket.AF_INET, 67, APP4, 68)


def answer_on_22() -> Steps:
    with tcp(wait=2) as s:
        s.bind(("", 22))
        s.listen()
        yield
        accepted = s.accept()[0]
        accepted.send(MARK)
        return "accepted"


def call_22(arena: Arena) -> None:
    arena.db.call(begin_call, APP4, 22)


def begin_call(address: str, port: int) -> None:
    with tcp() as s, suppress(OSError):
        s.connect((address, port))


TRICKS = {
    "DHCP to any host": Trick(dhcp_4, BOTH, sysctls=SPECIAL_PORTS),
    "DHCPv6 to any host": Trick(dhcp_6, BOTH, sysctls=SPECIAL_PORTS),
    "DHCP with CAP_NET_BIND_SERVICE alone": Trick(dhcp_4, BOTH, keep=BIND),
    "DHCPv6 with CAP_NET_BIND_SERVICE alone": Trick(dhcp_6, BOTH, keep=BIND),
    "DHCP as a server": Trick(dhcp_backwards, BOTH, keep=BIND),
    "an answer to a forged DHCP offer": Trick(
        lambda: heard_by_us(lambda: udp(wait=1), 68),
        keep=BIND,
        worlds=BOTH,
        between=(dhcp_offer,),
    ),
    "DHCP broadcast": Trick(dhcp_to_all, (NOTHING,), anywhere, keep=BIND, listed=DHCP_LISTED),
    "DHCPv6 multicast": Trick(dhcp_to_all_6, (NOTHING,), anywhere, keep=BIND, listed=DHCP_LISTED),
    "broadcast to 255.255.255.255": Trick(all_ones, (NOTHING,), leak=anywhere),
    "discovery and answers by ping socket": Trick(discovery_by_ping_socket, by="linux", sysctls=PING),
    "local addresses by the device": Trick(local_by_the_device, (NOTHING,), leak=anywhere),
    "NAT64 form of a denied address": Trick(
        lambda: embedded(f"64:ff9b::{DB4}"), (DENIED_BUT_ALL,), leak=at_hub
    ),
    "6to4 form of a denied address": Trick(lambda: embedded("2002:a4d:3::1"), (DENIED_BUT_ALL,), leak=at_hub),
    "IPv4-compatible and translated forms of a denied address": Trick(
        lambda: embedded(f"::{DB4}", f"::ffff:0:{DB4}"),
        (DENIED_BUT_ALL,),
        leak=at_hub,
        listed="Some ways through IPv6 to a denied address of IPv4",
    ),
    "a caller on port 22": Trick(
        answer_on_22,
        BOTH,
        keep=BIND,
        between=(call_22,),
        leak=at_db,
        listed="TCP 22 inbound is open to every service by default",
    ),
}
