"""Listening sockets, found by looking: TCP that listens, and UDP bound without a peer outside of the ports
that the kernel gives to clients.

In the agent's own network namespace an address is as the socket has it; in another one `0.0.0.0` and `::` are
told as that namespace's own addresses, so that two of them can be told apart. Each new agent tells all that
it finds once. A socket that came and went between two looks is not seen.
"""

import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from aegisflux.adapters.datapath.bpf import diag
from aegisflux.adapters.datapath.bpf.namespaces import inside_each, namespaces
from aegisflux.adapters.datapath.bpf.programs import CgroupNames, Programs
from aegisflux.adapters.datapath.bpf.routes import read_own
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.event import Listen
from aegisflux.domain.net import TCP, UDP
from aegisflux.ports.sensor import Reading

LISTENING: Final = 1 << 10
UNCONNECTED: Final = 1 << 7
PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
PROC: Final = Path("/proc")
MOST: Final = 65_536
ANY: Final = ("0.0.0.0", "::")  # noqa: S104


class Socket(NamedTuple):
    """One listening socket, as the kernel tells it."""

    proto: int
    address: str
    port: int
    cgroup_id: int
    inode: int


class Key(NamedTuple):
    """What stays the same while a service is restarted."""

    proto: int
    address: str
    port: int
    cgroup: str


class Holder(NamedTuple):
    """The process that holds a socket."""

    pid: int = 0
    start_ns: int = 0
    path: str = ""


NOBODY: Final = Holder()


class Listeners:
    """See `ports.sensor.Source`. A cursor counts what was told."""

    name = "listeners"
    fd: int | None = None

    def __init__(self, programs: Programs, cgroups: CgroupNames, inside_of: str = "") -> None:
        """Only sockets of cgroups below `inside_of` (a path without a leading slash) are told."""
        self._programs, self._cgroups, self._below = programs, cgroups, inside_of.strip("/")
        self._known: dict[Key, Holder] = {}
        self._found: dict[Key, Holder] = {}
        self._waiting: list[tuple[Key, Holder, bool]] = []
        self._holders: dict[int, Holder] = {}
        self._unread: set[int] = set()
        self._told = 0

    def open(self) -> None:
        """Nothing is attached."""

    def read(self, first_seq: int, limit: int) -> Reading:
        """See `Source.read`: what is left of the last look, else a new one."""
        if not self._waiting:
            self._look()
        chunk = self._waiting[:limit]
        now_ns = time.time_ns()
        events = tuple(
            _event(first_seq + i, now_ns, key, holder, closed)
            for i, (key, holder, closed) in enumerate(chunk)
        )
        return Reading(events, self._told + len(chunk), len(chunk) < len(self._waiting))

    def done(self, cursor: int) -> None:
        """See `Source.done`."""
        for key, holder, closed in self._waiting[: cursor - self._told]:
            if closed:
                self._known.pop(key, None)
            else:
                self._known[key] = holder
        del self._waiting[: cursor - self._told]
        self._told = cursor

    def resume(self, cursor: int) -> None:
        """See `Source.resume`: numbers go on, all that listens is told again."""
        self._told, self._known, self._waiting = cursor, {}, []

    def owner(self, proto: int, port: int, cgroup: str) -> tuple[int, int, str]:
        """Who listens there, as of the last look."""
        return self._found_by.get((proto, port, cgroup), NOBODY)

    _found_by: Mapping[tuple[int, int, str], Holder] = {}

    def lost(self) -> Mapping[str, int]:
        """See `Source.lost`: network namespaces whose sockets could not be read."""
        return {"namespaces": len(self._unread)}

    def close(self) -> None:
        """Nothing to let go of."""

    def remove(self) -> None:
        """Nothing is attached."""

    def _look(self) -> None:
        self._cgroups.begin()
        sockets, unread = _everywhere()
        self._unread |= unread
        found = {one: self._cgroups.name(one.cgroup_id) for one in sockets}
        found = {one: name for one, name in found.items() if self._is_below(name)}
        self._hold({one.inode for one in found})
        self._found = {
            Key(one.proto, one.address, one.port, name): self._holders.get(one.inode, NOBODY)
            for one, name in found.items()
        }
        self._found_by = {(key.proto, key.port, key.cgroup): holder for key, holder in self._found.items()}
        gone = [(key, holder, True) for key, holder in self._known.items() if key not in self._found]
        new = [(key, holder, False) for key, holder in self._found.items() if self._known.get(key) != holder]
        self._waiting = [*gone, *new]

    def _is_below(self, cgroup: str) -> bool:
        return not self._below or cgroup == self._below or cgroup.startswith(self._below + "/")

    def _hold(self, inodes: set[int]) -> None:
        """Who holds these; a look at all processes where one is new."""
        self._holders = {inode: holder for inode, holder in self._holders.items() if inode in inodes}
        new = inodes - self._holders.keys()
        if not new:
            return
        for pid, inode in _held(new):
            self._holders.setdefault(
                inode, Holder(pid, self._programs.exactly(pid), self._programs.running(pid))
            )
        for inode in new - self._holders.keys():
            self._holders[inode] = NOBODY


def _event(seq: int, now_ns: int, key: Key, holder: Holder, closed: bool) -> Listen:
    return Listen(
        seq=seq,
        time_ns=now_ns,
        proto=key.proto,
        address=key.address,
        port=key.port,
        closed=closed,
        pid=holder.pid,
        start_ns=holder.start_ns,
        path=holder.path,
        cgroup=key.cgroup,
    )


def _everywhere() -> tuple[list[Socket], set[int]]:
    """The listening sockets of all network namespaces that processes live in, and which of these could not
    be read: one that fails leaves the others."""
    own = Path("/proc/self/ns/net").stat().st_ino
    found: list[Socket] = []
    unread: set[int] = set()
    spaces = namespaces(_pids(), unread)
    try:
        for inode, answer in _answers(own, spaces).items():
            if isinstance(answer, OSError | ValueError | struct.error):
                unread.add(inode)
            elif isinstance(answer, Exception):
                raise answer
            else:
                found += answer
    finally:
        for fd in spaces.values():
            os.close(fd)
    if not spaces:
        raise Unavailable("listeners: no network namespace can be read")
    return found[:MOST], unread


def _answers(own: int, spaces: Mapping[int, int]) -> dict[int, list[Socket] | Exception]:
    """What each namespace answers: ours at once, the others by one thread that goes through them."""
    found: dict[int, list[Socket] | Exception] = {}
    if own in spaces:
        try:
            found[own] = _here()
        except (OSError, ValueError, struct.error) as error:
            found[own] = error
    if others := {inode: fd for inode, fd in spaces.items() if inode != own}:
        found |= dict(zip(others, inside_each(others.values(), _named), strict=True))
    return found


def _here() -> list[Socket]:
    """Those of the calling thread's namespace."""
    low, high = map(int, PORTS.read_text().split())
    found = list(_sockets(TCP, LISTENING))
    return found + [one for one in _sockets(UDP, UNCONNECTED) if one.port and not low <= one.port <= high]


def _named() -> list[Socket]:
    """The same, with the namespace's addresses in the place of any."""
    here = _here()
    found = [one for one in here if one.address not in ANY]
    if len(found) == len(here):  # as in most: then nobody asks for its addresses
        return found
    own = list(map(_text, read_own().addresses))
    for one in here:
        if one.address in ANY:
            found += [one._replace(address=at) for at in own if one.address == "::" or "." in at]
    return found


def _sockets(proto: int, states: int) -> Iterator[Socket]:
    for family in (socket.AF_INET, socket.AF_INET6):
        ask = diag.ASK.pack(family, proto, 0, 0, states, bytes(48))
        for body in diag.answers(diag.BY_FAMILY, ask, diag.DUMP):
            told = diag.TOLD.unpack_from(body)
            parts = dict(diag.attributes(body[diag.TOLD.size :]))
            port, _, raw, _ = diag.IDENTITY.unpack_from(told[4])
            cgroup = int.from_bytes(parts.get(diag.CGROUP_ID, b""), "little")
            yield Socket(proto, _text(raw[:4] if family == socket.AF_INET else raw), port, cgroup, told[-1])


def _text(raw: bytes) -> str:
    if len(raw) == 4:
        return str(ipaddress.IPv4Address(raw))
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir(PROC) if name.isdigit())  # noqa: PTH208 - a Path is slow


def _held(inodes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(process, socket) for each of these sockets and each process that holds it, oldest numbers first."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for pid in _pids():
        with suppress(OSError):
            for path in (PROC / str(pid) / "fd").iterdir():
                with suppress(OSError):
                    inode = wanted.get(os.readlink(path))  # noqa: PTH115 - there are many, and a Path is slow
                    if inode is not None:
                        yield pid, inode
