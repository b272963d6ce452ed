"""What a row of the table of tricks says."""

import ctypes
import socket
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from aegisflux.domain.snapshot import Ruleset
from tests.bpf.test_sockets import rules
from tests.support.unprivileged import MARK, Arena, Packet, Seen, Way

APP4, DB4, PAL4, HUB4 = "10.77.0.2", "10.77.0.3", "10.77.0.4", "10.77.0.1"
APP6, DB6, PAL6 = "fd77::2", "fd77::3", "fd77::4"
EDGES = f"{PAL4}/32 any 0; {PAL6}/128 any 0; 224.0.0.0/4 any 0; ff00::/8 any 0; 10.77.0.255/32 any 0"
DENY = f"{DB4}/32 any 0 egress; {DB6}/128 any 0 egress"
OPEN = rules(edges=EDGES, deny=DENY)
CLOSED = rules(edges=EDGES, deny=DENY, ingress="")
NOTHING = rules(ingress="")
BOTH = (OPEN, CLOSED)

Leak = Callable[[Seen], list[Packet]]


def at_db(seen: Seen) -> list[Packet]:
    """What reached the denied host by its own addresses."""
    return seen.at("db", DB4, DB6)


def marked_at_db(seen: Seen) -> list[Packet]:
    """The same where calls were allowed at first: the data alone."""
    return [p for p in at_db(seen) if MARK in p.data]


def anywhere(seen: Seen) -> list[Packet]:
    """What reached any host by any address."""
    return [p for host in seen.packets for p in seen.at(host)]


class Trick(NamedTuple):
    """One way to get a packet out that the rules deny.

    worlds:   the rulesets it is tried under
    leak:     which packets are a success of the attack
    by:       who refuses it: `us` (then it works in a cgroup of no service, or proves nothing) or `linux`
    listed:   the sentence of SECURITY.md that says that it works; empty where it must be refused
    owner:    who has to mend what works today (a strict xfail)
    between:  what the test does at each yield
    """

    way: Way
    worlds: tuple[Ruleset, ...] = (OPEN,)
    leak: Leak = at_db
    by: str = "us"
    listed: str = ""
    owner: str = ""
    keep: frozenset[int] = frozenset()
    sysctls: Mapping[str, str] = MappingProxyType({})
    between: tuple[Callable[[Arena], object], ...] = ()


def udp(family: int = socket.AF_INET, proto: int = 0, wait: float = 0.3) -> socket.socket:
    s = socket.socket(family, socket.SOCK_DGRAM, proto)
    s.settimeout(wait)
    return s


def tcp(family: int = socket.AF_INET, wait: float = 0.3, proto: int = 0) -> socket.socket:
    s = socket.socket(family, socket.SOCK_STREAM, proto)
    s.settimeout(wait)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))  # no late retransmission
    return s


def disconnect(s: socket.socket) -> None:
    """connect(AF_UNSPEC): the socket may connect anew."""
    if ctypes.CDLL(None, use_errno=True).connect(s.fileno(), bytes(16), 16):
        raise OSError(ctypes.get_errno(), "disconnect")


def calls_denied(s: socket.socket, port: int) -> str:
    """Connect the socket to the denied host, and send what shows that it got there."""
    s.connect((DB4, port))
    return str(s.send(MARK))


def emptied_calls_denied(s: socket.socket, port: int) -> str:
    """The same by a socket that was connected to something else until now."""
    disconnect(s)
    return calls_denied(s, port)
