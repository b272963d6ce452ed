"""A process that talks to itself across two namespaces, on one core, and says what that cost it.

Both ends are sockets of one thread, so nothing waits and nothing is switched: what a call costs is the
kernel's work for both ends, softirqs included, which run inside of the calls. The loop's own cost is
measured with `getppid` in place of each call, and is for the caller to take off.
"""

import ctypes
import json
import os
import socket
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.support.netns import enter

BURST: Final = 64
CONNECTIONS: Final = 512
PAYLOAD: Final = 64
STREAM, DATAGRAM = int(socket.SOCK_STREAM), int(socket.SOCK_DGRAM)
TIMEOUT: Final = struct.pack("ll", 2, 0)
_libc = ctypes.CDLL(None, use_errno=True)


class Place(NamedTuple):
    """Where an end's sockets are made."""

    netns: str
    cgroup: Path


class Peer(NamedTuple):
    """Whom the client talks to."""

    address: int
    port: int

    def packed(self) -> bytes:
        """A sockaddr_in."""
        return struct.pack("=HHI8x", socket.AF_INET, socket.htons(self.port), socket.htonl(self.address))


class Talker:
    """A child of its own, pinned to `core`. Leaving the block ends it."""

    def __init__(
        self, core: int, client: Place, server: Place, tcp: Sequence[Peer], udp: Sequence[Peer]
    ) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _serve(theirs, lambda: Ends(core, client, server, tcp, udp))
        theirs.close()
        self._line, self._answers = ours, ours.makefile("rb")

    def __enter__(self) -> Self:
        try:
            self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._answers.close()
        self._line.close()
        os.waitpid(self.pid, 0)

    def cost(self, what: str, count: int, real: bool = True) -> float:
        """ns of CPU of one, on average over `count`; unless real, of the loop alone."""
        self._line.sendall(json.dumps([what, count, real]).encode() + b"\n")
        return self._answer() / count

    def _answer(self) -> int:
        line = self._answers.readline()
        found, problem = json.loads(line or '[0, "the talker is gone"]')
        if problem:
            raise RuntimeError(problem)
        return int(found)


def _serve(line: socket.socket, make: Callable[[], "Ends"]) -> None:
    """Answer until the parent hangs up; never returns."""
    try:
        with line, line.makefile("rb") as requests:
            try:
                ends = make()
                line.sendall(b'[0, ""]\n')
                for request in requests:
                    what, count, real = json.loads(request)
                    ns = getattr(ends, what)(Calls(real), count)
                    line.sendall(json.dumps([ns, ""]).encode() + b"\n")
            except BaseException:
                line.sendall(json.dumps([0, traceback.format_exc()]).encode() + b"\n")
                raise
    finally:
        sys.stdout.flush()
        os._exit(0)


class Ends:
    """The sockets of both ends. What is measured is done `count` times, and returns its ns of CPU."""

    def __init__(
        self, core: int, client: Place, server: Place, tcp: Sequence[Peer], udp: Sequence[Peer]
    ) -> None:
        os.sched_setaffinity(0, {core})
        self._softirqs = _softirq_thread(core)
        enter(server.netns, server.cgroup)
        self._listeners = {port: _bound(STREAM, port) for port in {peer.port for peer in tcp}}
        self._receivers = {port: _bound(DATAGRAM, port) for port in {peer.port for peer in udp}}
        enter(client.netns, client.cgroup)
        # the flows of one are answered, those of the other never are
        self._client, self._unanswered = (socket.socket(socket.AF_INET, DATAGRAM) for _ in range(2))
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEOUT)
        self._peers = [(_buffer(peer.packed()), self._listeners[peer.port].fileno()) for peer in tcp]
        self._at, self._burst_at = 0, 0
        self._bursts = [self._burst(udp[i : i + BURST]) for i in range(0, len(udp) - BURST + 1, BURST)]
        # with the address that was asked, for the answer to come from; the client's leave no room for one
        self._questions = _messages([Peer(0, 0)] * BURST, control=32)
        self._answers = _messages([Peer(0, 0)] * BURST)
        calls = Calls(real=True)
        self._open = [self._connected(calls) for _ in range(CONNECTIONS)]
        self._datagrams(calls, len(udp), True)

    # what is measured

    def connect(self, calls: "Calls", count: int) -> int:
        """Connections from socket() to accept(), and all of their closes, the server's first."""
        return sum(self._connections(calls, count))

    def open(self, calls: "Calls", count: int) -> int:
        """Connections from socket() to accept() alone."""
        return self._connections(calls, count)[0]

    def round_trip(self, calls: "Calls", count: int) -> int:
        """64 bytes there and 64 bytes back, on one open connection after the other."""
        return self._measured(lambda: self._round_trips(calls, count))

    def datagram(self, calls: "Calls", count: int) -> int:
        """64 bytes to one peer after the other, none of whom ever answers."""
        return self._measured(lambda: self._datagrams(calls, count, False))

    def answered(self, calls: "Calls", count: int) -> int:
        """The same, but half of `count` are the answers."""
        return self._measured(lambda: self._datagrams(calls, count // 2, True))

    # how

    def _measured(self, part: Callable[[], None]) -> int:
        began = self._cpu()
        part()
        return self._cpu() - began

    def _cpu(self) -> int:
        """ns of this process, and of the softirqs of its core that were put off to their own thread."""
        return time.process_time_ns() + int(self._softirqs.read_text().split()[0])

    def _connections(self, calls: "Calls", count: int) -> tuple[int, int]:
        """(opening, closing), in bursts."""
        opening = closing = 0
        for _ in range(0, count, BURST):
            began = self._cpu()
            opened = [self._connected(calls) for _ in range(BURST)]
            between = self._cpu()
            for client, server in opened:
                calls.close(server)
                calls.close(client)
            opening, closing = opening + between - began, closing + self._cpu() - between
        return opening, closing

    def _connected(self, calls: "Calls") -> tuple[int, int]:
        address, listener = self._peers[self._at % len(self._peers)]
        self._at += 1
        client = calls.socket(socket.AF_INET, STREAM, 0)
        failed = calls.connect(client, address, 16)
        server = calls.accept4(listener, None, None, 0)
        if calls.real and (failed or server < 0):
            raise OSError(ctypes.get_errno(), "a connection that is allowed was not made")
        return client, server

    def _round_trips(self, calls: "Calls", count: int) -> None:
        data, done = _buffer(b"x" * PAYLOAD), 0
        send, recv = calls.send, calls.recv
        while done < count:
            for client, server in self._open:
                send(client, data, PAYLOAD, 0)
                recv(server, data, PAYLOAD, 0)
                send(server, data, PAYLOAD, 0)
                if recv(client, data, PAYLOAD, 0) != PAYLOAD and calls.real:
                    raise OSError(ctypes.get_errno(), "an open connection broke")
            done += len(self._open)

    def _datagrams(self, calls: "Calls", count: int, answered: bool) -> None:
        """Where ksoftirqd delivers them, a receiver waits; what is lost ends its wait with an error."""
        fd = (self._client if answered else self._unanswered).fileno()
        questions = self._questions
        for _ in range(0, count, BURST):
            burst, shares = self._bursts[self._burst_at % len(self._bursts)]
            self._burst_at += 1
            calls.sendmmsg(fd, burst, BURST, 0)
            for receiver, share in shares:
                got = calls.recvmmsg(receiver, questions, share, 0, None)
                if calls.real and got != share:
                    raise OSError(ctypes.get_errno(), f"{got} of {share} datagrams came")
                if answered:
                    calls.sendmmsg(receiver, questions, share, 0)
            if answered:
                got = calls.recvmmsg(fd, self._answers, BURST, 0, None)
                if calls.real and got != BURST:
                    raise OSError(ctypes.get_errno(), f"{got} of {BURST} answers came")

    def _burst(self, peers: Sequence[Peer]) -> tuple[Any, list[tuple[int, int]]]:
        """Datagrams to the peers, and how many of them each receiver gets."""
        shares = Counter(peer.port for peer in peers)
        return _messages(peers), [(self._receivers[port].fileno(), n) for port, n in shares.items()]


class Calls:
    """The calls of both ends, or as many that only ask for the parent's pid."""

    def __init__(self, real: bool) -> None:
        self.real = real

        def call(name: str) -> Any:
            return getattr(_libc if real else ctypes.CDLL(None), name if real else "getppid")

        self.socket, self.connect, self.accept4 = call("socket"), call("connect"), call("accept4")
        self.close, self.send, self.recv = call("close"), call("send"), call("recv")
        self.sendmmsg, self.recvmmsg = call("sendmmsg"), call("recvmmsg")


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """A struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)), ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_long),
        ("len", ctypes.c_uint),
    )  # fmt: skip


def _messages(peers: Sequence[Peer], control: int = 0) -> Any:
    """One datagram for each."""
    found = (_Message * len(peers))()
    found.kept = []
    for message, peer in zip(found, peers, strict=True):
        name, data = _buffer(peer.packed()), _buffer(b"x" * PAYLOAD)
        extra = _buffer(bytes(control)) if control else None
        iov = (_Iovec * 1)(_Iovec(ctypes.addressof(data), PAYLOAD))
        message.name, message.namelen = ctypes.addressof(name), 16
        message.iov, message.iovlen = iov, 1
        if extra is not None:
            message.control, message.controllen = ctypes.addressof(extra), control
        found.kept += [name, data, iov, extra]
    return found


def _buffer(data: bytes) -> Any:
    return ctypes.create_string_buffer(data, len(data))


def _bound(kind: int, port: int) -> socket.socket:
    """A server's socket that answers from the address that was asked."""
    s = socket.socket(socket.AF_INET, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEOUT)
    s.bind(("0.0.0.0", port))
    if kind == STREAM:
        s.listen(CONNECTIONS)
    else:
        s.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    return s


def _softirq_thread(core: int) -> Path:
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == f"ksoftirqd/{core}":
                return path.parent / "schedstat"
        except OSError:
            continue
    raise RuntimeError(f"no ksoftirqd/{core}")
