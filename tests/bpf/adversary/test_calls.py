"""No call leads out, and every denial is counted."""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

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


def every_call() -> dict[str, str]:
    """Send the mark in every way that needs no listener."""
    seen = {}
    v4, v6 = ("10.77.0.3", 9), ("fd77::3", 9)

    def attempt(
        title: str, family: int, kind: int, proto: int, call: Callable[[socket.socket], object]
    ) -> None:
        def tried() -> str:
            with socket.socket(family, kind, proto) as s:
                s.settimeout(0.3)
                return str(call(s))

        seen[title] = probes.word(tried)

    def bare(s: socket.socket, level: int, option: int, value: bytes | int, to: tuple[str, int]) -> int:
        s.setsockopt(level, option, value)
        return s.sendto(MARK, to)

    inet, inet6, dgram, ip, ip6 = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM, 0, 41
    index = socket.if_nametoindex("eth0")
    info4 = struct.pack("@I4s4s", index, socket.inet_aton("10.77.0.2"), bytes(4))
    info6 = socket.inet_pton(inet6, "fd77::2") + struct.pack("@I", index)
    attempt("pktinfo", inet, dgram, 0, lambda s: s.sendmsg([MARK], [(0, 8, info4)], 0, v4))
    attempt("pktinfo 6", inet6, dgram, 0, lambda s: s.sendmsg([MARK], [(41, 50, info6)], 0, v6))
    attempt("mapped sendmsg", inet6, dgram, 0, lambda s: s.sendto(MARK, ("::ffff:10.77.0.3", 9)))
    attempt(
        "multicast",
        inet,
        dgram,
        0,
        lambda s: bare(s, ip, 32, struct.pack("@4s4sI", bytes(4), bytes(4), index), ("224.0.0.1", 9)),
    )
    attempt("multicast 6", inet6, dgram, 0, lambda s: bare(s, ip6, 17, index, ("ff02::1", 9)))
    attempt("broadcast", inet, dgram, 0, lambda s: bare(s, 1, 6, 1, ("10.77.0.255", 9)))
    attempt("all ones", inet, dgram, 0, lambda s: bare(s, 1, 6, 1, ("255.255.255.255", 9)))
    attempt(
        "options 6",
        inet6,
        dgram,
        0,
        lambda s: s.sendmsg([MARK], [(41, 59, bytes([0, 0, 1, 4, 0, 0, 0, 0]))], 0, v6),
    )
    attempt(
        "hop options 6",
        inet6,
        dgram,
        0,
        lambda s: s.sendmsg([MARK], [(41, 54, bytes([0, 0, 1, 4, 0, 0, 0, 0]))], 0, v6),
    )
    attempt("UDP-Lite", inet, dgram, 136, lambda s: s.sendto(MARK, v4))
    attempt(
        "echo by ping socket", inet, dgram, 1, lambda s: s.sendto(b"\x08" + bytes(7) + MARK, ("10.77.0.3", 0))
    )
    attempt(
        "echo by ping socket 6",
        inet6,
        dgram,
        58,
        lambda s: s.sendto(b"\x80" + bytes(7) + MARK, ("fd77::3", 0)),
    )
    attempt("corked", inet, dgram, 0, lambda s: (s.sendto(MARK, 0x8000, v4), s.sendto(b"", v4)))
    attempt("zero copy", inet, dgram, 0, lambda s: (s.setsockopt(1, 60, 1), s.sendto(MARK, 0x4000000, v4)))
    attempt(
        "from port 68",
        inet,
        dgram,
        0,
        lambda s: (s.setsockopt(1, 2, 1), s.bind(("", 68)), s.sendto(MARK, v4)),
    )
    attempt("from port 67", inet, dgram, 0, lambda s: (s.bind(("", 67)), s.sendto(MARK, ("10.77.0.3", 68))))
    attempt("from port 22", inet, dgram, 0, lambda s: (s.bind(("", 22)), s.sendto(MARK, v4)))
    attempt("SCTP", inet, socket.SOCK_STREAM, 132, lambda s: s.connect(v4))
    attempt("raw SCTP", inet, socket.SOCK_RAW, 132, lambda s: s.sendto(MARK, v4))
    attempt(
        "raw IPv6 in IPv4",
        inet,
        socket.SOCK_RAW,
        41,
        lambda s: s.sendto(udp6("fd77::2", "fd77::3", 9, 9), v4),
    )
    attempt(
        "TCP from 22",
        inet,
        socket.SOCK_STREAM,
        0,
        lambda s: (s.setsockopt(1, 2, 1), s.bind(("", 22)), s.connect(("10.77.0.3", 5432))),
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
