"""What is a network namespace's own: addresses of its devices, and what routes of its table `local` deliver
to itself, also prefixes (`ip route add local 10.9.0.0/16 dev lo`). Of the calling thread's namespace.

Local routes in other tables hold only for what some rule of policy routing sends there, so they do not count.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from msgspec import Struct

from aegisflux.adapters.datapath.bpf.namespaces import owner_at
from aegisflux.adapters.datapath.bpf.own import Prefix
from aegisflux.adapters.datapath.bpf.shares import MOST
from aegisflux.domain.flow import Own
from aegisflux.domain.net import Address, Cidr, address_of, masked
from aegisflux.domain.own_addresses import Standing

SOL_NETLINK, STRICT_CHECK, DUMP_INTERRUPTED = 270, 12, 0x10
NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 1, 0x300, 2, 3
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
IFA_ADDRESS, IFA_LOCAL, RTA_DST = 1, 2, 1
TABLE_LOCAL, ROUTE_LOCAL, ROUTE_ANYCAST, ROUTE_CLONED = 255, 2, 4, 0x200
HEADER: Final = struct.Struct("=IHHII")
ADDRESS_HEAD, ROUTE_HEAD = 8, 12
BUFFER: Final = 1 << 18
TRIES: Final = 4
EACH, SPARE = 4, 64
"""Answers for each own prefix that are read: its broadcast address has one too, and each device some."""
HERE: Final = "/proc/thread-self/ns/net"
IFA_FLAGS, SECONDARY, DEPRECATED, LOOPBACK_DEVICE = 8, 0x01, 0x20, 1
MAPPED: Final = bytes(10) + b"\xff\xff"


class Read(Struct, frozen=True):
    """One namespace's own addresses and prefixes in the 128-bit form; `cut` where there are more than we
    take."""

    addresses: Mapping[bytes, Standing] = {}
    prefixes: frozenset[Prefix] = frozenset()
    cut: bool = False

    def all(self) -> frozenset[Prefix]:
        """Everything that is own, as prefixes."""
        return self.prefixes | {(128, address) for address in self.addresses}

    def own(self) -> Own:
        """The same in the domain's words."""
        found = map(_cidr, self.prefixes)
        return Own(frozenset(map(address_of, self.addresses)), tuple(sorted(found)))


class TooMany(Exception):
    """A namespace has more addresses or routes than are read of it."""


def read_own(most: int | None = None) -> Read:
    """The own addresses of the calling thread's namespace; `cut` where there are more than `most`, which is
    by default what a namespace of its share may have. Raises OSError."""
    if most is None:
        most = MOST["root" if owner_at(HERE) == "ours" else "users"]
    addresses: dict[bytes, Standing] = {}
    prefixes: set[Prefix] = set()
    try:
        for body in _dump(RTM_GETADDR, RTM_NEWADDR, bytes(ADDRESS_HEAD), most):
            addresses |= {a: how for a, how in _address(body).items() if not _loops((128, a))}
        for family in (socket.AF_INET, socket.AF_INET6):
            ask = struct.pack("=4B4BI", family, 0, 0, 0, TABLE_LOCAL, 0, 0, 0, 0)
            for body in _dump(RTM_GETROUTE, RTM_NEWROUTE, ask, most):
                prefixes |= {
                    p for p in local_prefix(body) if not _loops(p) and (p[0] < 128 or p[1] not in addresses)
                }
            if len(addresses) + len(prefixes) > most:
                return Read(cut=True)
    except TooMany:
        return Read(cut=True)
    return Read(addresses, frozenset(prefixes))


def local_prefix(body: bytes) -> set[Prefix]:
    """What the body of a route message delivers to the namespace itself: nothing, or one prefix."""
    if len(body) < ROUTE_HEAD:
        return set()
    family, length, _, _, table, _, _, kind, flags = struct.unpack_from("=8BI", body)
    anycast = kind == ROUTE_ANYCAST and family == socket.AF_INET6
    if table != TABLE_LOCAL or flags & ROUTE_CLONED or not (kind == ROUTE_LOCAL or anycast):
        return set()
    width = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}.get(family)
    network = _attributes(body, ROUTE_HEAD).get(RTA_DST, bytes(width or 0))
    if width is None or len(network) != width or length > 8 * width:
        return set()
    cidr = masked(4 if width == 4 else 6, int.from_bytes(network, "big"), length)
    return {_prefix(cidr)}


def _dump(ask: int, answer: int, body: bytes, most: int) -> Iterator[bytes]:
    """The bodies of all answers; begun again where the kernel says that it changed meanwhile."""
    for left in reversed(range(TRIES)):
        found, whole = _dumped(ask, answer, body, EACH * most + SPARE)
        if whole or not left:
            yield from found
            return


def _dumped(ask: int, answer: int, body: bytes, most: int) -> tuple[list[bytes], bool]:
    """Raises TooMany where there are more answers than `most`: the rest is never read."""
    found: list[bytes] = []
    whole = True
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as s:
        with suppress(OSError):  # an old kernel sends every table, and we look
            s.setsockopt(SOL_NETLINK, STRICT_CHECK, 1)
        s.send(HEADER.pack(HEADER.size + len(body), ask, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        while True:
            for kind, flags, part in messages(s.recv(BUFFER)):
                whole = whole and not flags & DUMP_INTERRUPTED
                if kind == NLMSG_DONE or (kind == NLMSG_ERROR and _is_none(part)):
                    return found, whole
                if kind == answer:
                    found.append(part)
                    if len(found) > most:
                        raise TooMany


def _is_none(part: bytes) -> bool:
    """Whether the error says that there is no such table yet; raises OSError on any other."""
    code = -int.from_bytes(part[:4], "little", signed=True)
    if code not in (0, errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        raise OSError(code, f"own addresses: {os.strerror(code)}")
    return True


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, body) of each netlink message; what is cut short ends them."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, _, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            return
        yield kind, flags, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(body: bytes, at: int) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        values[kind] = body[at + 4 : at + length]
        at += (length + 3) & ~3
    return values


def _address(body: bytes) -> dict[bytes, Standing]:
    """Nothing, or one address and how good it is for others to call."""
    if len(body) < ADDRESS_HEAD:
        return {}
    _, length, flags, _, device = struct.unpack_from("=4BI", body)
    values = _attributes(body, ADDRESS_HEAD)
    flags = int.from_bytes(values.get(IFA_FLAGS, bytes([flags])), "little")
    value = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS) or b""
    if len(value) not in (4, 16):
        return {}
    if flags & DEPRECATED:
        standing = Standing.DEPRECATED
    elif flags & SECONDARY:  # of IPv6: temporary
        standing = Standing.SECONDARY
    elif length == 8 * len(value) or device == LOOPBACK_DEVICE:
        standing = Standing.ALONE
    else:
        standing = Standing.PRIMARY
    return {MAPPED + value if len(value) == 4 else value: standing}


def _prefix(cidr: Cidr) -> Prefix:
    packed = Address(cidr.family, cidr.value).packed()
    return (96 + cidr.plen, MAPPED + packed) if cidr.family == 4 else (cidr.plen, packed)


def _cidr(prefix: Prefix) -> Cidr:
    bits, network = prefix
    if bits >= 96 and network.startswith(MAPPED):
        return Cidr(4, int.from_bytes(network[12:], "big"), bits - 96)
    return Cidr(6, int.from_bytes(network, "big"), bits)


def _loops(prefix: Prefix) -> bool:
    """127/8 and ::1, which the hooks know without the map."""
    bits, network = prefix
    return (bits >= 104 and network[:13] == MAPPED + b"\x7f") or network == bytes(15) + b"\1"
