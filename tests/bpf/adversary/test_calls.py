"""No call leads out, and every denial is counted."""

import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.wire import layout
from tests.bpf.adversary.tools import ALL, MARK, SLOT, Watch, udp6
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import Kernel

pytestmark = [pytest.mark.bpf, pytest.mark.netns]


def io_uring_connect(address: str, port: int) -> str:
    """One IORING_OP_SOCKET-less connect through a ring, by bare system calls."""
    import ctypes
    import errno
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    params = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 4, params)
    if ring < 0:
        return errno.errorcode[ctypes.get_errno()]
    sq = struct.unpack_from("<10I", params, 40)
    cq = struct.unpack_from("<10I", params, 80)
    size = max(sq[6] + 4 * 4, cq[5] + 16 * 8)
    rings, entries = mmap.mmap(ring, size), mmap.mmap(ring, 4 * 64, offset=0x10000000)
    with socket.socket() as s:
        s.setblocking(True)
        name = ctypes.create_string_buffer(
            struct.pack("<H", 2) + struct.pack("!H", port) + socket.inet_aton(address) + bytes(8)
        )
        entries[:64] = struct.pack("<BBHiQQ", 16, 0, 0, s.fileno(), 16, ctypes.addressof(name)).ljust(
            64, b"\0"
        )
        struct.pack_into("<I", rings, sq[6], 0)
        struct.pack_into("<I", rings, sq[1], 1)
        if libc.syscall(426, ring, 1, 1, 1, None, 0) < 0:
            return errno.errorcode[ctypes.get_errno()]
        (result,) = struct.unpack_from("<i", rings, cq[5] + 8)
        os.close(ring)
        return errno.errorcode[-result] if result < 0 else "connected"


def test_io_uring_calls_are_governed(kernel: Kernel) -> None:
    app = kernel.lab.hosts["app"]
    for edges, expected in ((ALL, "connected"), ("", "EPERM")):
        kernel.enforce(SLOT, rules(edges=edges))
        seen = app.call(io_uring_connect, "10.77.0.3", 5432, cgroup="svc")
        if seen in ("ENOSYS", "EACCES") and edges:
            pytest.skip(f"no io_uring here: {seen}")
        assert seen == expected


V4, V6, MAPPED = ("10.77.0.3", 9), ("fd77::3", 9), ("::ffff:10.77.0.3", 9)
SOL_IPV6, PADDING = 41, bytes([0, 0, 1, 4, 0, 0, 0, 0])
REUSE, BROADCAST, ZERO_COPY = (1, 2, 1), (1, 6, 1), (1, 60, 1)
Target = tuple[str, int]


class Way(NamedTuple):
    """One way to send the mark without a listener."""

    kind: socket.SocketKind
    to: Target
    proto: int = 0
    options: tuple[tuple[int, int, int | bytes], ...] = ()
    bound: int | None = None
    data: bytes = MARK
    ancillary: tuple[tuple[int, int, bytes], ...] = ()
    flags: int = 0
    connects: bool = False

    def go(self) -> str:
        """Send, and tell what the caller saw."""
        family = socket.AF_INET6 if ":" in self.to[0] else socket.AF_INET
        with socket.socket(family, self.kind, self.proto) as s:
            s.settimeout(0.3)
            for option in self.options:
                s.setsockopt(*option)
            if self.bound is not None:
                s.bind(("", self.bound))
            if self.connects:
                return str(s.connect(self.to))
            return str(s.sendmsg([self.data], self.ancillary, self.flags, self.to))


def ways() -> dict[str, Way]:
    """Needs the device eth0."""
    index = socket.if_nametoindex("eth0")
    info4 = struct.pack("@I4s4s", index, socket.inet_aton("10.77.0.2"), bytes(4))
    info6 = socket.inet_pton(socket.AF_INET6, "fd77::2") + struct.pack("@I", index)
    by_device = struct.pack("@4s4sI", bytes(4), bytes(4), index)
    dgram, raw, stream = socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_STREAM
    return {
        "pktinfo": Way(dgram, V4, ancillary=((0, 8, info4),)),
        "pktinfo 6": Way(dgram, V6, ancillary=((SOL_IPV6, 50, info6),)),
        "mapped sendmsg": Way(dgram, MAPPED),
        "multicast": Way(dgram, ("224.0.0.1", 9), options=((0, 32, by_device),)),
        "multicast 6": Way(dgram, ("ff02::1", 9), options=((SOL_IPV6, 17, index),)),
        "broadcast": Way(dgram, ("10.77.0.255", 9), options=(BROADCAST,)),
        "all ones": Way(dgram, ("255.255.255.255", 9), options=(BROADCAST,)),
        "options 6": Way(dgram, V6, ancillary=((SOL_IPV6, 59, PADDING),)),
        "hop options 6": Way(dgram, V6, ancillary=((SOL_IPV6, 54, PADDING),)),
        "UDP-Lite": Way(dgram, V4, proto=136),
        "echo by ping socket": Way(dgram, ("10.77.0.3", 0), proto=1, data=b"\x08" + bytes(7) + MARK),
        "echo by ping socket 6": Way(dgram, ("fd77::3", 0), proto=58, data=b"\x80" + bytes(7) + MARK),
        "zero copy": Way(dgram, V4, options=(ZERO_COPY,), flags=0x4000000),
        "from port 68": Way(dgram, V4, options=(REUSE,), bound=68),
        "from port 67": Way(dgram, ("10.77.0.3", 68), bound=67),
        "from port 22": Way(dgram, V4, bound=22),
        "SCTP": Way(stream, V4, proto=132, connects=True),
        "raw SCTP": Way(raw, V4, proto=132),
        "raw IPv6 in IPv4": Way(raw, V4, proto=41, data=udp6("fd77::2", "fd77::3", 9, 9)),
        "TCP from 22": Way(stream, ("10.77.0.3", 5432), options=(REUSE,), bound=22, connects=True),
    }


def every_call() -> dict[str, str]:
    """What the caller saw, by way."""
    seen = {title: probes.word(way.go) for title, way in ways().items()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as corked:
        seen["corked"] = probes.word(
            lambda: str((corked.sendto(MARK, socket.MSG_MORE, V4), corked.sendto(b"", V4)))
        )
    return seen


@pytest.mark.parametrize("how", ["at once", "by the packet"])
def test_no_call_leads_out(kernel: Kernel, how: str) -> None:
    """`by the packet`: the hooks of the calls know nothing, the packet decides alone."""
    kernel.enforce(SLOT, rules())
    app = kernel.lab.hosts["app"]
    app.call(Path("/proc/sys/net/ipv4/ping_group_range").write_text, "0 2147483647")
    watch = Watch(kernel, kernel.lab.hosts["db"])
    if how == "by the packet":
        own = kernel.datapath._pins.maps["own"]
        for key in libbpf.keys(own, layout.OWN_KEY.size):
            libbpf.delete(own, key)
    try:
        seen = app.call(every_call, cgroup="svc")
    finally:
        kernel.datapath.refresh_addresses()
    assert watch.seen() == 0, seen
    free = Watch(kernel, kernel.lab.hosts["db"])
    app.call(every_call, cgroup="free")
    assert free.seen() >= 15


def flood(times: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return sum(
            probes.word(lambda: str(s.sendto(b"x", ("10.77.0.3", 9)))) == "EPERM" for _ in range(times)
        )


def test_a_flood_of_denials_is_counted_to_the_last(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules())
    while kernel.datapath.drain_denied(10_000):
        pass
    before = kernel.datapath.counters(SLOT)
    assert kernel.lab.hosts["app"].call(flood, 30_000, cgroup="svc") == 30_000
    told = 0
    while found := kernel.datapath.drain_denied(10_000):
        told += sum(e.slot == SLOT for e in found)
    after = kernel.datapath.counters(SLOT)
    assert after["no_match"] - before["no_match"] == 30_000
    assert told + after["lost_events"] - before["lost_events"] == 30_000
    assert told > 0
