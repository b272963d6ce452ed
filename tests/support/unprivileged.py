"""An arena for attacks by an unprivileged user: uid 65534, no capability, one delegated cgroup subtree.

    with Arena() as arena:
        arena.kernel.enforce(SLOT, rules)
        seen = arena.attempt(trick)          # runs as uid 65534 inside the governed user slice
        assert not seen.arrived              # packets of `app` that reached another host

A trick is a function without arguments that gives one word for what it saw, or a generator that yields where
the test must act before it goes on. It is judged by what arrives at other hosts, not by what it believes.
"""

import ctypes
import os
import resource
import select
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path
from types import GeneratorType, TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from aegisflux.adapters.datapath.bpf.namespaces import inside
from tests.support import probes
from tests.support.kernel import Kernel
from tests.support.netns import NETNS, Host, Lab, enter

UID, SLOT = 65534, 21
MARK = b"AEGIS-LEAK"
SLICE = "user.slice/user-65534.slice"
GOVERNED, FREE = f"{SLICE}/user@65534.service", "free.slice/user@65534.service"
CAP_NET_BIND_SERVICE = 10
PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 8, 24, 38
DELEGATED = ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
END = b"END-OF-TRICK"
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")
Steps = Generator[None, None, str]
Way = Callable[[], str] | Callable[[], Steps]


def drop(keep: Collection[int] = ()) -> None:
    """Become uid 65534 with no capability but those of `keep`, for good."""
    for capability in range(64):
        if capability not in keep:
            _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    bits = sum(1 << capability for capability in keep)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(bits, bits, 0, 0, 0, 0)
    if _libc.capset(head, sets):
        raise OSError(ctypes.get_errno(), "capset")
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # so that /proc/self stays writable: its uid_map, for one


def delegate(path: Path) -> Path:
    """Give a cgroup to the user, as systemd does for a login session."""
    path.mkdir(parents=True, exist_ok=True)
    for name in DELEGATED:
        os.chown(path / name, UID, UID)
    return path


class Packet(NamedTuple):
    """What a host received on its device from `app`."""

    source: str
    dest: str
    proto: int
    source_port: int
    dest_port: int
    flags: int
    data: bytes

    @property
    def tells(self) -> bool:
        """Whether it carries the mark, or belongs to a TCP connection (a reset belongs to none)."""
        return MARK in self.data or (self.proto == socket.IPPROTO_TCP and not self.flags & 4)


def packet_of(frame: bytes) -> Packet | None:
    """Reads an Ethernet frame; None for what is not IP."""
    kind, data = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        family, proto, at = socket.AF_INET, data[9], (data[0] & 15) * 4
        source, dest = data[12:16], data[16:20]
    elif kind == b"\x86\xdd":
        family, proto, at = socket.AF_INET6, data[6], 40
        source, dest = data[8:24], data[24:40]
        while proto in (0, 43, 60):
            proto, at = data[at], at + 8 + 8 * data[at + 1]
    else:
        return None
    ports = proto in (6, 17, 136) and len(data) >= at + 8
    return Packet(
        socket.inet_ntop(family, source),
        socket.inet_ntop(family, dest),
        proto,
        int.from_bytes(data[at : at + 2], "big") if ports else 0,
        int.from_bytes(data[at + 2 : at + 4], "big") if ports else 0,
        data[at + 13] if proto == 6 and len(data) > at + 13 else 0,
        data,
    )


def within(host: Host, call: Callable[[], T]) -> T:
    """The result of a call that a thread makes inside a host's network namespace."""
    fd = os.open(NETNS / host.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return inside(fd, call)
    finally:
        os.close(fd)


class Tap:
    """Everything that reaches one host from another's device."""

    def __init__(self, host: Host, device: str, sender: bytes) -> None:
        self.host, self._sender = host, sender
        self._socket = within(host, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        within(host, lambda: self._socket.bind((device, 3)))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE

    def read(self, ends: int = 2, wait: float = 2) -> list[Packet]:
        """What came until this many end marks were seen; raises TimeoutError."""
        found: list[Packet] = []
        while ends:
            if not select.select([self._socket], [], [], wait)[0]:
                raise TimeoutError(f"{self.host.name}: the end of the trick did not arrive within {wait} s")
            frame, address = self._socket.recvfrom(65535)
            packet = packet_of(frame) if frame[6:12] == self._sender and address[2] != 4 else None
            if packet is None:
                continue
            ends -= END in packet.data
            found += [packet] if END not in packet.data else []
        return found

    def close(self) -> None:
        self._socket.close()


class Run:
    """One trick, in a forked child that has dropped its privileges."""

    def __init__(self, host: Host, cgroup: Path, way: Way, keep: Collection[int] = ()) -> None:
        self._conn, theirs = Pipe()
        self.pid = os.fork()
        if not self.pid:
            with suppress(BaseException):
                theirs.send(_child(host, cgroup, way, keep, theirs))
            os._exit(0)
        theirs.close()
        self._word: str | None = None

    def step(self, seconds: float = 10) -> bool:
        """Let it run to its next yield; False once it is done."""
        if not self._conn.poll(seconds):
            self.end()
            raise TimeoutError("the trick neither yields nor ends")
        word = self._conn.recv()
        if word is None:
            return True
        self._word = word
        self.end()
        return False

    def resume(self) -> None:
        self._conn.send(None)

    def word(self) -> str:
        """What it saw, once it has ended."""
        while self._word is None and self.step():
            self.resume()
        return self._word or ""

    def end(self) -> None:
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._conn.close()


def _child(host: Host, cgroup: Path, way: Way, keep: Collection[int], conn: Any) -> str:
    signal.setitimer(signal.ITIMER_REAL, 15)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        enter(host.netns, cgroup)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        drop(keep)
        return probes.word(lambda: _stepwise(way(), conn))
    except BaseException:
        return traceback.format_exc()


def _stepwise(begun: str | Steps, conn: Any) -> str:
    if not isinstance(begun, GeneratorType):
        return str(begun)
    try:
        while True:
            next(begun)
            conn.send(None)
            conn.recv()
    except StopIteration as stop:
        return str(stop.value)


class Seen(NamedTuple):
    """What the trick believes, and the telling packets that other hosts received, by host."""

    word: str
    packets: dict[str, list[Packet]]

    def at(self, host: str, *addresses: str) -> list[Packet]:
        """Telling packets at a host, for these of its addresses (none: any)."""
        return [p for p in self.packets[host] if p.tells and (not addresses or p.dest in addresses)]


class Arena:
    """Four hosts; on `app` a user owns two cgroup subtrees, one in a governed slice and one in no service."""

    def __init__(self) -> None:
        self.lab, self._attempts = Lab(), 0
        self.kernel = Kernel(self.lab)

    def __enter__(self) -> Self:
        self.lab.__enter__()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        self.kernel.__enter__()
        self.app, self.db, self.pal = (self.lab.host(name) for name in ("app", "db", "pal"))
        for hub in ("10.77.0.1", "fd77::1"):
            subprocess.run(["ip", "-n", self.app.netns, "route", "add", "default", "via", hub], check=True)
        for host in (self.db, self.pal):
            self.kernel.served(host, "server", probes.echo_argv(9, 5432))
        self.governed, self.free = (delegate(self.app.below(path)) for path in (GOVERNED, FREE))
        self.kernel.bind(self.app.below(SLICE), SLOT)
        mac = within(self.app, lambda: bytes.fromhex(_mac("eth0").replace(":", "")))
        devices = {self.db: "eth0", self.pal: "eth0", self.lab.hub: "br0"}
        self.taps = [Tap(host, device, mac) for host, device in devices.items()]
        self._voice = within(self.app, lambda: [socket.socket(f, 2) for f in (2, 10)])
        self.settle()

    def close(self) -> None:
        """Remove everything; safe to repeat."""
        for tap in getattr(self, "taps", ()):
            tap.close()
        for voice in getattr(self, "_voice", ()):
            voice.close()
        try:
            self.kernel.__exit__(None, None, None)
        finally:
            self.lab.close()

    def settle(self) -> dict[str, list[Packet]]:
        """What each host received since the last call."""
        for tap in self.taps:
            self._voice[0].sendto(END, (tap.host.v4, 7))
            self._voice[1].sendto(END, (tap.host.v6, 7))
        return {tap.host.name: tap.read() for tap in self.taps}

    def attempt(
        self,
        way: Way,
        *between: Callable[[], object],
        governed: bool = True,
        keep: Collection[int] = (),
    ) -> Seen:
        """Run a trick; each of `between` is done at one of its yields."""
        self.settle()
        self._attempts += 1
        home = delegate((self.governed if governed else self.free) / f"trick-{self._attempts}.service")
        run = Run(self.app, home, way, keep)
        try:
            for act in between:
                if not run.step():
                    break
                act()
                run.resume()
            word = run.word()
        finally:
            run.end()
        return Seen(word, self.settle())

    def other(self, way: Way) -> str:
        """What another process of the user sees, in a cgroup of no service."""
        run = Run(self.app, self.free, way)
        try:
            return run.word()
        finally:
            run.end()

    @contextmanager
    def sysctls(self, values: Mapping[str, str]) -> Iterator[None]:
        """Settings of `app`'s namespace (net/...), put back at the end."""
        before = self.app.call(_written, dict(values))
        try:
            yield
        finally:
            self.app.call(_written, before)


def _written(values: Mapping[str, str]) -> dict[str, str]:
    before = {name: Path("/proc/sys", name).read_text() for name in values}
    for name, value in values.items():
        Path("/proc/sys", name).write_text(value)
    return before


def _mac(device: str) -> str:
    return subprocess.run(
        ["ip", "-br", "link", "show", device], check=True, capture_output=True, text=True
    ).stdout.split()[2]
