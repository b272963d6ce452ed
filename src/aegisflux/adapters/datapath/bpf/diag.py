"""Sockets of the calling thread's namespace through sock_diag: what our socket storage says, and an end.

For kernels that have no bpf_sock_destroy. The pass over live flows has stamped each socket; here the
stamps are read out with the sockets and those that are refused are destroyed.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from aegisflux.wire.layout import STATE, UDP_KEY, W_REFUSED

SOCK_DIAG: Final = 4
BY_FAMILY, DESTROY, DONE, ERROR = 20, 21, 3, 2
REQUEST, ACK, DUMP = 1, 4, 0x300
REQ_STORAGES, STORAGES, STORAGE_VALUE, CGROUP_ID = 2, 20, 3, 21
NESTED: Final = 1 << 15
CONNECTED: Final = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8
HEAD: Final = struct.Struct("=IHHII")
ASK: Final = struct.Struct("=BBBBI48s")
TOLD: Final = struct.Struct("=BBBB48s5I")
IDENTITY: Final = struct.Struct("!HH16s16s")


class Found(NamedTuple):
    """A connected socket: `identity` is the kernel's; `stamp`, `slot` and `initiator` (0: not recorded) are
    our storage's, which the kernel reports of TCP only."""

    family: int
    proto: int
    identity: bytes
    cgroup_id: int
    stamp: int = 0
    slot: int | None = None
    initiator: int = 0

    @property
    def refused(self) -> bool:
        return bool(self.stamp & W_REFUSED)

    def ends(self) -> tuple[int, int, bytes]:
        """Our port, the peer's port, and the peer's address as 4 or 16 bytes."""
        local_port, peer_port, _, peer = IDENTITY.unpack_from(self.identity)
        return local_port, peer_port, peer if self.family == socket.AF_INET6 else peer[:4]

    def udp_key(self, netns: int) -> bytes:
        """The key of its flow: our namespace (by its cookie), the peer, its port, our port."""
        local_port, peer_port, peer = self.ends()
        mapped = peer if len(peer) == 16 else bytes(10) + b"\xff\xff" + peer
        return UDP_KEY.pack(netns, mapped, peer_port, local_port, 0)


def sockets(proto: int, states_fd: int) -> Iterator[Found]:
    """Connected sockets of one protocol."""
    for family in (socket.AF_INET, socket.AF_INET6):
        fd = struct.pack("=HHI", 8, 1, states_fd)
        storages = struct.pack("=HH", 4 + len(fd), REQ_STORAGES | NESTED) + fd
        ask = ASK.pack(family, proto, 0, 0, CONNECTED, bytes(48)) + storages
        for body in answers(BY_FAMILY, ask, DUMP):
            parts = dict(attributes(body[TOLD.size :]))
            cgroup = int.from_bytes(parts.get(CGROUP_ID, b""), "little")
            found = Found(family, proto, TOLD.unpack_from(body)[4], cgroup)
            value = _storage(parts.get(STORAGES, b""))
            if value is not None:
                fields = STATE.unpack_from(value)
                found = found._replace(stamp=fields[0], slot=fields[3], initiator=fields[7])
            yield found


def destroy(found: Found) -> bool:
    """End one socket, by the kernel's identity of it (its cookie included)."""
    ask = ASK.pack(found.family, found.proto, 0, 0, 0xFFFFFFFF, found.identity)
    with suppress(OSError):
        list(answers(DESTROY, ask, ACK))
        return True
    return False


def answers(kind: int, body: bytes, flags: int) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, SOCK_DIAG) as s:
        s.send(HEAD.pack(HEAD.size + len(body), kind, REQUEST | flags, 1, 0) + body)
        while True:
            data, at = s.recv(1 << 18), 0
            while at + HEAD.size <= len(data):
                length, answer, *_ = HEAD.unpack_from(data, at)
                part = data[at + HEAD.size : at + length]
                if answer == ERROR:
                    code = -struct.unpack_from("=i", part)[0]
                    if code:
                        raise OSError(code, "sock_diag")
                    return
                if answer == DONE or length < HEAD.size:
                    return
                yield part
                at += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & ~NESTED, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _storage(storages: bytes) -> bytes | None:
    for _, one in attributes(storages):
        for kind, value in attributes(one):
            if kind == STORAGE_VALUE and len(value) >= STATE.size:
                return value
    return None
