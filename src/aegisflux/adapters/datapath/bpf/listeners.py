"""Listening sockets, found by looking: TCP that listens, and UDP bound without a peer outside of the ports
that the kernel gives to clients.

In the agent's own network namespace an address is as the socket has it; in another one `0.0.0.0` and `::` are
told as that namespace's own addresses, so that two of them can be told apart. Each new agent tells all that
it finds once. A socket that came and went between two looks is not seen. Nobody takes another's room: see
`listening`.
"""

import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from aegisflux.adapters.datapath.bpf import diag
from aegisflux.adapters.datapath.bpf.listening import ROOT, Key, Look, Origin, account_of_uid
from aegisflux.adapters.datapath.bpf.namespaces import account_of, inside_each, namespaces
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
HERE, THERE = Path("/proc/self/ns/net"), Path("/proc/thread-self/ns/net")
SCAN_SECONDS: Final = 0.5
ANY: Final = ("0.0.0.0", "::")  # noqa: S104


class Socket(NamedTuple):
    """One listening socket, as the kernel tells it."""

    proto: int
    address: bytes
    port: int
    cgroup_id: int
    inode: int


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
        self._origins: dict[Key, Origin] = {}
        self._waiting: list[tuple[Key, Holder, bool]] = []
        self._holders: dict[int, Holder] = {}
        self._unread: set[int] = set()
        self._lost, self._over = 0, 0
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
                self._origins.pop(key, None)
            else:
                self._known[key] = holder
        del self._waiting[: cursor - self._told]
        self._told = cursor

    def resume(self, cursor: int) -> None:
        """See `Source.resume`: numbers go on, all that listens is told again."""
        self._told, self._known, self._origins, self._waiting = cursor, {}, {}, []

    def owner(self, proto: int, port: int, cgroup: str) -> tuple[int, int, str]:
        """Who listens there, as of the last look."""
        return self._found_by.get((proto, port, cgroup), NOBODY)

    _found_by: Mapping[tuple[int, int, str], Holder] = {}

    def lost(self) -> Mapping[str, int]:
        """See `Source.lost`: network namespaces whose sockets could not be read, and listeners beyond what
        one account, or all users together, may have."""
        return {"namespaces": self._lost, "shares": self._over}

    def close(self) -> None:
        """Nothing to let go of."""

    def remove(self) -> None:
        """Nothing is attached."""

    def _look(self) -> None:
        self._cgroups.begin()
        look = Look({key: self._origins[key] for key in self._known})
        unread = _Walk(look, self._named).everywhere()
        self._lost += len(unread - self._unread)
        self._unread, self._over = unread, max(self._over, look.over)
        self._hold({inode for _, inode in look.found.values()})
        found = {key: self._holders.get(inode, NOBODY) for key, (_, inode) in look.found.items()}
        self._origins |= {key: origin for key, (origin, _) in look.found.items()}
        self._found_by = {(key.proto, key.port, key.cgroup): holder for key, holder in found.items()}
        gone = [(key, holder, True) for key, holder in self._known.items() if look.is_gone(key)]
        new = [(key, holder, False) for key, holder in found.items() if self._known.get(key) != holder]
        self._waiting = [*gone, *new]

    def _named(self, cgroup_id: int) -> str | None:
        name = self._cgroups.name(cgroup_id)
        return name if self._is_below(name) else None

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


class _Walk:
    """One look at the sockets of all network namespaces, each answer of the kernel as it comes."""

    def __init__(self, look: Look, name: Callable[[int], str | None]) -> None:
        """`name` is the path of a cgroup, None where its sockets are not told."""
        self._look, self._name = look, name
        self._accounts: dict[int, str | None] = {}

    def everywhere(self) -> set[int]:
        """Look into those that processes live in; which of these could not be read: one that fails leaves the
        others. Raises Unavailable where none can be read."""
        own = HERE.stat().st_ino
        unread: set[int] = set()
        spaces = namespaces(_pids(), unread)
        try:
            self._accounts = {inode: account_of(fd) for inode, fd in spaces.items()}
            for inode, answer in self._answers(own, spaces).items():
                if isinstance(answer, OSError | ValueError | struct.error):
                    unread.add(inode)
                elif isinstance(answer, Exception):
                    raise answer
        finally:
            for fd in spaces.values():
                os.close(fd)
        for inode in unread:
            self._look.leave(inode)
        if not spaces:
            raise Unavailable("listeners: no network namespace can be read")
        return unread

    def _answers(self, own: int, spaces: Mapping[int, int]) -> dict[int, Exception | None]:
        """What went wrong in each: ours at once, the others by one thread that goes through them."""
        found: dict[int, Exception | None] = {}
        if own in spaces:
            try:
                self._here(own, is_own=True)
            except (OSError, ValueError, struct.error) as error:
                found[own] = error
        if others := {inode: fd for inode, fd in spaces.items() if inode != own}:
            found |= dict(zip(others, inside_each(others.values(), self._there), strict=True))
        return found

    def _there(self) -> None:
        self._here(THERE.stat().st_ino, is_own=False)

    def _here(self, namespace: int, *, is_own: bool) -> None:
        """Those of the calling thread's namespace; in another one than the agent's with its addresses in the
        place of any."""
        account, own, names = self._accounts.get(namespace), _Addresses(), dict[int, str | None]()
        for uid, one in _listening():
            origin = Origin(namespace, account or account_of_uid(uid))
            if not self._look.may_go_on(origin):
                if account is not None:
                    return  # all that follows is of the same account
                continue
            name = names.get(one.cgroup_id, "?")
            if name == "?":
                name = names[one.cgroup_id] = self._name(one.cgroup_id)
            if name is None:
                continue
            address = _text(one.address)
            told = [address] if is_own or address not in ANY else own.in_place_of(address)
            for at in told:
                if at != address and not self._look.may_go_on(origin):
                    break
                self._look.take(origin, Key(one.proto, at, one.port, name), one.inode)
        if own.cut:
            self._look.leave(namespace)


class _Addresses:
    """Those of the calling thread's namespace, asked for where a socket is bound to any: in most none is."""

    def __init__(self) -> None:
        self._own: list[str] | None = None
        self.cut = False

    def in_place_of(self, address: str) -> list[str]:
        if self._own is None:
            read = read_own()
            self._own, self.cut = list(map(_text, read.addresses)), read.cut
        return [at for at in self._own if address == "::" or "." in at]


def _listening() -> Iterator[tuple[int, Socket]]:
    """User and socket of each that listens in the calling thread's namespace."""
    low, high = map(int, PORTS.read_text().split())
    yield from _sockets(TCP, LISTENING)
    for uid, one in _sockets(UDP, UNCONNECTED):
        if one.port and not low <= one.port <= high:
            yield uid, one


def _sockets(proto: int, states: int) -> Iterator[tuple[int, Socket]]:
    for family in (socket.AF_INET, socket.AF_INET6):
        ask = diag.ASK.pack(family, proto, 0, 0, states, bytes(48))
        for body in diag.answers(diag.BY_FAMILY, ask, diag.DUMP):
            *_, identity, _, _, _, uid, inode = diag.TOLD.unpack_from(body)
            parts = dict(diag.attributes(body[diag.TOLD.size :]))
            port, _, raw, _ = diag.IDENTITY.unpack_from(identity)
            cgroup = int.from_bytes(parts.get(diag.CGROUP_ID, b""), "little")
            yield uid, Socket(proto, raw[:4] if family == socket.AF_INET else raw, port, cgroup, inode)


def _text(raw: bytes) -> str:
    if len(raw) == 4:
        return str(ipaddress.IPv4Address(raw))
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir(PROC) if name.isdigit())  # noqa: PTH208 - a Path is slow


def _held(inodes: Iterable[int], clock: Callable[[], float] = time.monotonic) -> Iterator[tuple[int, int]]:
    """(process, socket) for each of these sockets and a process that holds it: root's processes first, then
    those of each user, the oldest numbers first. The descriptors of one user, as many as they are,
    take no more than `SCAN_SECONDS`."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    by_account: dict[str, list[int]] = {ROOT: []}
    for pid in _pids():
        with suppress(OSError):
            uid = os.stat(PROC / str(pid)).st_uid  # noqa: PTH116 - there are many, and a Path is slow
            by_account.setdefault(account_of_uid(uid), []).append(pid)
    for pids in by_account.values():
        until = clock() + SCAN_SECONDS
        for pid, inode in _descriptors(pids, wanted):
            if inode is not None:
                yield pid, inode
            if not wanted:
                return
            if clock() > until:
                break


def _descriptors(pids: Iterable[int], wanted: dict[str, int]) -> Iterator[tuple[int, int | None]]:
    """Each descriptor of these processes: which of the wanted sockets it is, that is wanted no more then."""
    for pid in pids:
        with suppress(OSError), os.scandir(PROC / str(pid) / "fd") as entries:
            for entry in entries:
                with suppress(OSError):
                    yield pid, wanted.pop(os.readlink(entry.path), None)  # noqa: PTH115 - a Path is slow
