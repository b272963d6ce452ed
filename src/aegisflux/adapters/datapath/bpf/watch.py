"""Being told of changed addresses and local routes in many network namespaces, by one netlink socket.

The socket lies in the namespace of the thread that makes it and hears every namespace that has a number there
(nsid, which `listen_to` gives). A number holds no namespace alive; a socket or a descriptor inside one would.
"""

import ctypes
import errno
import os
import socket
import struct
from contextlib import suppress
from typing import Final

from msgspec import Struct

from aegisflux.adapters.datapath.bpf import routes

ADD_MEMBERSHIP, LISTEN_ALL_NSID = 1, 8
GROUPS: Final = (5, 7, 9, 11, 28)  # addresses and routes of IPv4, of IPv6, and namespace numbers
RTM_NEWNSID, RTM_DELNSID, RTM_GETNSID = 88, 89, 90
NETNSA_NSID, NETNSA_FD = 1, 3
NLM_F_ACK: Final = 4
UNASSIGNED: Final = -1
MOST_AT_ONCE: Final = 4096
MESSAGE: Final = 1 << 14
SO_ATTACH_FILTER: Final = 26
_KIND_AT, _ROUTE_KIND_AT = 4, routes.HEADER.size + 7
_LOAD, _EQUAL, _GIVE = 0x30, 0x15, 0x06  # BPF_LD|B|ABS, BPF_JMP|JEQ|K, BPF_RET|K
FILTER: Final = (  # instruction, how many to skip where equal, where not, value
    (_LOAD, 0, 0, _KIND_AT),
    (_EQUAL, 8, 0, routes.RTM_NEWADDR),
    (_EQUAL, 7, 0, routes.RTM_DELADDR),
    (_EQUAL, 6, 0, RTM_DELNSID),
    (_EQUAL, 1, 0, routes.RTM_NEWROUTE),
    (_EQUAL, 0, 3, routes.RTM_DELROUTE),
    (_LOAD, 0, 0, _ROUTE_KIND_AT),
    (_EQUAL, 2, 0, routes.ROUTE_LOCAL),
    (_EQUAL, 1, 0, routes.ROUTE_ANYCAST),
    (_GIVE, 0, 0, 0),
    (_GIVE, 0, 0, 0xFFFFFFFF),
)


class Changed(Struct, frozen=True):
    """Which namespaces changed: all of them where messages were lost, else our own (`here`) and those with
    these numbers; `gone` are numbers of namespaces that ended."""

    everything: bool = False
    here: bool = False
    numbers: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return self.everything or self.here or bool(self.numbers or self.gone)


class Watch:
    """The socket; `fd` is readable while something waits. `all_namespaces` is False where the kernel tells us
    of our own namespace only (CAP_NET_BROADCAST is missing). Raises OSError."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._ask = socket.socket(socket.AF_NETLINK, kind & ~socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._ask.settimeout(1)
        self._asked = 0
        try:
            _attach(self._socket)
            self._socket.bind((0, 0))
            self.all_namespaces = self._hear_all()
            for group in GROUPS:
                self._socket.setsockopt(routes.SOL_NETLINK, ADD_MEMBERSHIP, group)
        except OSError:
            self.close()
            raise

    @property
    def fd(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        self._ask.close()

    def listen_to(self, fd: int, ours: bool) -> int | None:
        """The number of the namespace behind this descriptor, given to it where it has none and is not ours:
        from now on its changes are told. None where it has none."""
        if not self.all_namespaces:
            return None
        with suppress(OSError):
            number = self._number_of(fd)
            if number == UNASSIGNED and not ours:
                wanted = _attribute(NETNSA_NSID, UNASSIGNED) + _attribute(NETNSA_FD, fd)
                self._answer(RTM_NEWNSID, wanted, NLM_F_ACK)
                number = self._number_of(fd)
            return None if number == UNASSIGNED else number
        return None

    def drain(self) -> Changed:
        """What was told since the last call; the rest stays where there is very much."""
        here, numbers, gone = False, set(), set()
        for _ in range(MOST_AT_ONCE):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(MESSAGE, socket.CMSG_SPACE(4))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return Changed(everything=True)
            number = next(
                (struct.unpack("=i", raw)[0] for _, kind, raw in ancillary if kind == LISTEN_ALL_NSID), None
            )
            for kind, _, body in routes.messages(data):
                if kind == RTM_DELNSID:
                    gone |= {_nsid(body)} if number is None else set()
                elif number is None:
                    here = True
                else:
                    numbers.add(number)
        return Changed(here=here, numbers=frozenset(numbers - gone), gone=frozenset(gone))

    def _number_of(self, fd: int) -> int:
        return _nsid(self._answer(RTM_GETNSID, _attribute(NETNSA_FD, fd)))

    def _answer(self, kind: int, attributes: bytes, flags: int = 0) -> bytes:
        """The body of the answer to a question in the socket's namespace; raises OSError."""
        body = bytes(4) + attributes
        self._asked += 1
        head = (routes.HEADER.size + len(body), kind, routes.NLM_F_REQUEST | flags, self._asked, 0)
        self._ask.send(routes.HEADER.pack(*head) + body)
        while True:
            data = self._ask.recv(MESSAGE)
            if routes.HEADER.unpack_from(data)[3] != self._asked:
                continue  # of a question whose answer came too late
            for got, _, answer in routes.messages(data):
                code = -int.from_bytes(answer[:4], "little", signed=True)
                if got == routes.NLMSG_ERROR and code:
                    raise OSError(code, f"number of a network namespace: {os.strerror(code)}")
                return answer
            raise OSError(errno.EPROTO, "number of a network namespace: the kernel did not answer")

    def _hear_all(self) -> bool:
        try:
            self._socket.setsockopt(routes.SOL_NETLINK, LISTEN_ALL_NSID, 1)
        except OSError:
            return False
        return True


def _attach(s: socket.socket) -> None:
    """Let the kernel keep to itself what is no address, no local route and no ended namespace: routes of a
    border router change a thousand times a second."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in FILTER))
    s.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(FILTER), ctypes.addressof(code)))


def _attribute(kind: int, value: int) -> bytes:
    return struct.pack("=HHi", 8, kind, value)


def _nsid(body: bytes) -> int:
    at = 4
    while at + 8 <= len(body):
        length, kind, value = struct.unpack_from("=HHi", body, at)
        if kind == NETNSA_NSID:
            return int(value)
        at += max(4, (length + 3) & ~3)
    return UNASSIGNED
