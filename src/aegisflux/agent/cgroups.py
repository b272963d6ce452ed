"""The cgroup v2 tree: where it is, what is in it, and being told at once when it changes (inotify).

Names of cgroups are bytes that any user may choose in a subtree that was delegated to them. Paths here are
decoded with `surrogateescape`; what is no printable text is left out and counted.
"""

import asyncio
import ctypes
import errno
import os
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.agent.nested import Nested
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.text import is_printable, name_bytes
from aegisflux.runtime.cgroupfs import given_by_root, own_cgroup, v2_root

IN_ATTRIB: Final = 0x4
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_Q_OVERFLOW: Final = 0x4000
IN_ISDIR: Final = 0x40000000
IN_FLAGS: Final = IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | 0x01000000
IN_NONBLOCK_CLOEXEC: Final = 0o4000 | 0o2000000
MAX_CGROUPS: Final = 65_536
MAX_DELEGATED: Final = 4096  # cgroups below delegated directories that are looked at, only for their names
MAX_SKIPPED: Final = 1024
EVENT: Final = struct.Struct("iIII")
READ_BYTES: Final = 16_384  # of events at a time: the loop does other work in between


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _stat(path: bytes) -> os.stat_result:
    return os.stat(path)  # noqa: PTH116 - a Path would be text


def settle(root: Path, attach: Path, name: str) -> tuple[str | None, Path | None]:
    """The agent's own cgroup, and its path where it was made now.

    An agent that lives where the programs are attached cannot be told from its services by that cgroup: it
    moves to one of its own below it. One that lives above is not judged at all. Raises Unavailable.
    """
    own = own_cgroup()
    home = (root / (own or "")).resolve()
    if attach.resolve() != home:
        return (None if home in attach.resolve().parents else own), None
    made = home / name
    try:
        made.mkdir(exist_ok=True)
        (made / "cgroup.procs").write_text("0")
    except OSError as error:
        raise Unavailable(
            f"the agent lives in {home}, where its programs are attached, and cannot move to {made} "
            f"({error.strerror}): start it in a cgroup of its own, as deploy/aegisflux-agent.service does"
        ) from error
    return str(made.relative_to(root.resolve())), made


def leave(made: Path | None) -> None:
    """Go back to where `settle` found us, and remove what it made."""
    if made is not None:
        with suppress(OSError):
            (made.parent / "cgroup.procs").write_text("0")
            made.rmdir()


class CgroupTree:
    """`Cgroups` of the host. Where inotify works, the tree is kept from events; `scan` then costs nothing.

    It is `blind` where the kernel had no watch left for some cgroup: then only reading the tree tells. The
    owner of a delegated directory makes as many cgroups in it as the kernel allows: they are neither kept nor
    watched, so that they take no room from the rest of the tree.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or v2_root()
        self.own = own_cgroup()
        self._tree: dict[str, int] = {}
        self._delegated: set[str] = set()
        self._skipped: dict[str, None] = {}
        self._watches: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._nested = Nested()
        self._fd = -1
        self._roots = {0, os.geteuid()}
        self.blind = False
        self._call: Callable[[], None] | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)

    @property
    def delegated(self) -> frozenset[str]:
        """See `Cgroups.delegated`."""
        return frozenset(self._delegated)

    @property
    def skipped(self) -> tuple[str, ...]:
        """See `Cgroups.skipped`."""
        return tuple(self._skipped)

    def scan(self) -> Mapping[str, int]:
        """See `Cgroups.scan`."""
        if self._fd < 0 or self.blind:
            self._read_all()
        return dict(self._tree)

    def exists(self, path: str) -> bool:
        """See `Cgroups.exists`."""
        try:
            return stat.S_ISDIR(_stat(self._at(path)).st_mode)
        except (OSError, ValueError):
            return False

    def rescan(self) -> bool:
        """See `Cgroups.rescan`: in case an event was missed, and whether watches have come free."""
        before, self.blind = (self._tree, self._delegated), False
        self._read_all()
        return before != (self._tree, self._delegated)

    def on_change(self, call: Callable[[], None]) -> bool:
        """See `Cgroups.on_change`."""
        self._fd = self._libc.inotify_init1(IN_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            return False
        if not self._watch(""):
            os.close(self._fd)
            self._fd = -1
            return False
        self._call = call
        self._read_all()
        asyncio.get_running_loop().add_reader(self._fd, self._readable)
        return True

    def join(self, path: str, pid: int) -> None:
        """See `Cgroups.join`."""
        try:
            (self.root / path / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise Unavailable(f"cgroup {path}: {error.strerror}") from error

    def close(self) -> None:
        """Listen no more."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._watches.clear()
            self._numbers.clear()

    def _at(self, path: str) -> bytes:
        root = os.fsencode(self.root)
        return root + b"/" + name_bytes(path) if path else root

    def _watch(self, path: str) -> bool:
        number = self._libc.inotify_add_watch(self._fd, self._at(path), IN_FLAGS)
        if number >= 0:
            self._watches[number], self._numbers[path] = path, number
            self._nested.add(path)
        elif ctypes.get_errno() not in (errno.ENOENT, errno.ENAMETOOLONG):
            self.blind = True
        return int(number) >= 0

    def _given_by_root(self, path: str) -> bool:
        """Whether root alone makes directories in it and moves processes into it."""
        return given_by_root(self._at(path), self._roots)

    def _read_all(self) -> None:
        self._tree, self._delegated, self._skipped, self._nested = {}, set(), {}, Nested()
        for path in self._numbers:
            self._nested.add(path)
        self._take(self._walk(""))

    def _take(self, found: Iterable[tuple[str, int]]) -> None:
        for path, inode in found:
            self._tree[path] = inode
            self._nested.add(path)

    def _walk(self, path: str) -> Iterator[tuple[str, int]]:
        """All cgroups below `path` that root named; each is watched before it is read, so that no child is
        missed. A directory is asked whose it is after it was read: what was in it before is root's."""
        pending, others, count = [path], deque[str](), 0
        while pending:
            here = pending.pop()
            if self._fd >= 0 and here:
                self._watch(here)
            found = self._children(here)
            if not self._given_by_root(here):
                self._delegated.add(here)
                others.extend(path for path, _ in found)
                continue
            for child, inode in found:
                count += 1
                if count > MAX_CGROUPS:
                    return
                yield child, inode
                pending.append(child)
        for _ in range(MAX_DELEGATED):
            if not others:
                return
            others.extend(child for child, _ in self._children(others.popleft()))

    def _children(self, here: str) -> list[tuple[str, int]]:
        """Cgroups in a directory; those whose names are no printable text are noted instead."""
        try:
            with os.scandir(self._at(here)) as entries:
                found = [(_decoded(e.name), e.inode()) for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:
            return []
        children = [(f"{here}/{name}" if here else name, inode) for name, inode in found]
        for path, _ in children:
            if not is_printable(path):
                self._skip(path)
        return [child for child in children if is_printable(child[0])]

    def _skip(self, path: str) -> None:
        if len(self._skipped) < MAX_SKIPPED:
            self._skipped[path] = None
            self._nested.add(path)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        offset, changed = 0, False
        while offset < len(data):
            number, mask, _, length = EVENT.unpack_from(data, offset)
            name = _decoded(data[offset + EVENT.size : offset + EVENT.size + length].rstrip(b"\0"))
            offset += EVENT.size + length
            changed = self._event(number, mask, name) or changed
        if changed and self._call is not None:
            self._call()

    def _event(self, number: int, mask: int, name: str) -> bool:
        """Take one event; whether the tree is another than before. What users do below their own directories
        never is a change: nobody is woken by it."""
        if mask & IN_Q_OVERFLOW:
            return self.rescan()
        parent = self._watches.get(number)
        if parent is None:
            return False
        path = f"{parent}/{name}" if parent and name else parent or name
        if mask & IN_ATTRIB:
            return self._owner_changed(path if mask & IN_ISDIR else parent)
        if not mask & IN_ISDIR:
            return False
        if mask & (IN_CREATE | IN_MOVED_TO):
            return self._appeared(parent, path)
        known = path in self._tree
        self._forget(path, itself=True)
        return known

    def _appeared(self, parent: str, path: str) -> bool:
        if not is_printable(path):
            self._skip(path)
            return False
        if parent in self._delegated:
            return False
        try:
            inode = _stat(self._at(path)).st_ino
        except OSError:
            return False
        if not self._given_by_root(parent):  # the event that says so is on its way
            return self._owner_changed(parent)
        self._take([(path, inode)])
        self._take(self._walk(path))
        return True

    def _owner_changed(self, path: str) -> bool:
        """Look again who writes in a directory: names below it count from then on, or do so no more."""
        if path and path not in self._tree:
            return False
        if self._given_by_root(path) == (path not in self._delegated):
            return False
        self._forget(path, itself=False)
        self._delegated.discard(path)
        self._take(self._walk(path))
        return True

    def _forget(self, path: str, *, itself: bool) -> None:
        """Take away all below a cgroup, and the cgroup itself; what lies elsewhere is not looked at."""
        *below, here = self._nested.take(path)
        if not itself:
            self._nested.add(path)
        for gone in (*below, here) if itself else below:
            self._tree.pop(gone, None)
            self._skipped.pop(gone, None)
            self._delegated.discard(gone)
            number = self._numbers.pop(gone, None)
            if number is not None and self._watches.get(number) == gone:
                del self._watches[number]
                self._libc.inotify_rm_watch(self._fd, number)


class FixedCgroups:
    """`Cgroups` that somebody else decides: simulations and tests change `tree` and call `changed`."""

    blind = False

    def __init__(self, tree: dict[str, int] | None = None, own: str | None = None) -> None:
        self.tree = tree or {}
        self.own = own
        self.delegated: frozenset[str] = frozenset()
        self.skipped: tuple[str, ...] = ()
        self._calls: list[Callable[[], None]] = []

    def scan(self) -> Mapping[str, int]:
        """See `Cgroups.scan`."""
        return dict(self.tree)

    def exists(self, path: str) -> bool:
        """See `Cgroups.exists`."""
        return path in self.tree

    def rescan(self) -> bool:
        """See `Cgroups.rescan`."""
        return False

    def on_change(self, call: Callable[[], None]) -> bool:
        """See `Cgroups.on_change`."""
        self._calls.append(call)
        return True

    def changed(self) -> None:
        """Say that the tree changed."""
        for call in self._calls:
            call()

    def join(self, path: str, pid: int) -> None:
        """See `Cgroups.join`."""
        raise Unavailable(f"cgroup {path}: process {pid} cannot join a simulated cgroup")

    def close(self) -> None:
        """Nothing to close."""
