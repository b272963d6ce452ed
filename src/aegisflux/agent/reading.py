"""One reading of the cgroup v2 tree, kept from events since: what is in it, and what is watched (inotify).

Names of cgroups are bytes that any user may choose in a subtree that was delegated to them. Paths here are
decoded with `surrogateescape`; what is no printable text is left out and counted.
"""

import ctypes
import errno
import os
import struct
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Final

from aegisflux.agent.nested import Nested
from aegisflux.domain.text import is_printable, name_bytes
from aegisflux.runtime.cgroupfs import given_by_root

IN_ATTRIB: Final = 0x4
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_Q_OVERFLOW: Final = 0x4000
IN_ISDIR: Final = 0x40000000
IN_FLAGS: Final = IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | 0x01000000
MAX_CGROUPS: Final = 65_536
MAX_DELEGATED: Final = 4096  # cgroups below delegated directories that are looked at, only for their names
MAX_SKIPPED: Final = 1024
READ_AT_ONCE: Final = 1024  # directories that are read for what events tell; more are read in a thread
EVENT: Final = struct.Struct("iIII")
libc: Final = ctypes.CDLL(None, use_errno=True)


def stat_of(path: bytes) -> os.stat_result:
    """Return what stat says of a path of bytes; raises OSError or ValueError."""
    return os.stat(path)  # noqa: PTH116 - a Path would be text


def decoded(raw: bytes) -> str:
    """Return a name as the paths here hold it."""
    return raw.decode("utf-8", "surrogateescape")


class Reading:
    """The tree as `read` found it, and as `event` changed it since. A descriptor below 0: nothing is watched.

    blind:      the kernel had no watch left for some cgroup
    incomplete: events were lost, or tell of more than was read for them: the tree must be read again
    """

    def __init__(self, root: Path, fd: int, roots: Collection[int]) -> None:
        self._root, self.fd, self._roots = os.fsencode(root), fd, roots
        self.tree: dict[str, int] = {}
        self.delegated: set[str] = set()
        self.skipped: dict[str, None] = {}
        self.watches: dict[int, str] = {}
        self.numbers: dict[str, int] = {}
        self._nested = Nested()
        self._room = inf
        self.blind = self.incomplete = False

    def read(self, before: "Reading") -> bool:
        """Read the whole tree; whether it differs from the reading before, whose other watches end."""
        self._take(self._walk(""))
        for number in before.watches.keys() - self.watches.keys():
            libc.inotify_rm_watch(self.fd, number)
        return (self.tree, self.delegated) != (before.tree, before.delegated)

    def at(self, path: str) -> bytes:
        """Return where a cgroup lies in the file system."""
        return self._root + b"/" + name_bytes(path) if path else self._root

    def watch(self, path: str) -> bool:
        """Be told of what happens in a directory; whether the kernel tells."""
        number = int(libc.inotify_add_watch(self.fd, self.at(path), IN_FLAGS))
        if number >= 0:
            self.watches[number], self.numbers[path] = path, number
            self._nested.add(path)
        elif ctypes.get_errno() not in (errno.ENOENT, errno.ENAMETOOLONG):
            self.blind = True
        return number >= 0

    def _given_by_root(self, path: str) -> bool:
        """Whether root alone makes directories in it and moves processes into it."""
        return given_by_root(self.at(path), self._roots)

    def _take(self, found: Iterable[tuple[str, int]]) -> None:
        for path, inode in found:
            self.tree[path] = inode
            self._nested.add(path)

    def _walk(self, path: str) -> Iterator[tuple[str, int]]:
        """All cgroups below `path` that root named; each is watched before it is read, so that no child is
        missed. A directory is asked whose it is after it was read: what was in it before is root's."""
        pending, others, count = [path], deque[str](), 0
        while pending and self._has_room():
            here = pending.pop()
            if self.fd >= 0:
                self.watch(here)
            found = self._children(here)
            if not self._given_by_root(here):
                self.delegated.add(here)
                others.extend(path for path, _ in found)
                continue
            for child, inode in found:
                count += 1
                if count > MAX_CGROUPS:
                    return
                yield child, inode
                pending.append(child)
        for _ in range(MAX_DELEGATED):
            if not others or not self._has_room():
                return
            others.extend(child for child, _ in self._children(others.popleft()))

    def _has_room(self) -> bool:
        self._room -= 1
        self.incomplete |= self._room < 0
        return not self.incomplete

    def _children(self, here: str) -> list[tuple[str, int]]:
        """Cgroups in a directory; those whose names are no printable text are noted instead."""
        try:
            with os.scandir(self.at(here)) as entries:
                found = [(decoded(e.name), e.inode()) for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:
            return []
        children = [(f"{here}/{name}" if here else name, inode) for name, inode in found]
        for path, _ in children:
            if not is_printable(path):
                self._skip(path)
        return [child for child in children if is_printable(child[0])]

    def _skip(self, path: str) -> None:
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped[path] = None
            self._nested.add(path)

    def take_events(self, data: bytes) -> bool:
        """Take events as the kernel writes them; whether the tree is another than before. Those that follow
        after something is `incomplete` are left out: who reads the tree again sees what they tell."""
        offset, changed, self._room = 0, False, READ_AT_ONCE
        while offset < len(data) and not self.incomplete:
            number, mask, _, length = EVENT.unpack_from(data, offset)
            name = decoded(data[offset + EVENT.size : offset + EVENT.size + length].rstrip(b"\0"))
            offset += EVENT.size + length
            changed = self.event(number, mask, name) or changed
        return changed

    def event(self, number: int, mask: int, name: str) -> bool:
        """Take one event; whether the tree is another than before. What users do below their own directories
        never is a change: nobody is woken by it."""
        if mask & IN_Q_OVERFLOW:
            self.incomplete = True
            return False
        parent = self.watches.get(number)
        if parent is None:
            return False
        path = f"{parent}/{name}" if parent and name else parent or name
        if mask & IN_ATTRIB:
            return self._owner_changed(path if mask & IN_ISDIR else parent)
        if not mask & IN_ISDIR:
            return False
        if mask & (IN_CREATE | IN_MOVED_TO):
            return self._appeared(parent, path)
        known = path in self.tree
        self._forget(path, itself=True)
        return known

    def _appeared(self, parent: str, path: str) -> bool:
        if not is_printable(path):
            self._skip(path)
            return False
        if parent in self.delegated:
            return False
        try:
            inode = stat_of(self.at(path)).st_ino
        except OSError:
            return False
        if not self._given_by_root(parent):  # the event that says so is on its way
            return self._owner_changed(parent)
        if self.tree.get(path) == inode and path in self.numbers:  # it was read after it appeared
            return self._owner_changed(path)
        self._forget(path, itself=True)
        self._take([(path, inode)])
        self._take(self._walk(path))
        return True

    def _owner_changed(self, path: str) -> bool:
        """Look again who writes in a directory: names below it count from then on, or do so no more."""
        if path and path not in self.tree:
            return False
        if self._given_by_root(path) == (path not in self.delegated):
            return False
        self._forget(path, itself=False)
        self.delegated.discard(path)
        self._take(self._walk(path))
        return True

    def _forget(self, path: str, *, itself: bool) -> None:
        """Take away all below a cgroup, and the cgroup itself; what lies elsewhere is not looked at."""
        *below, here = self._nested.take(path)
        if not itself:
            self._nested.add(path)
        for gone in (*below, here) if itself else below:
            self.tree.pop(gone, None)
            self.skipped.pop(gone, None)
            self.delegated.discard(gone)
            number = self.numbers.pop(gone, None)
            if number is not None and self.watches.get(number) == gone:
                del self.watches[number]
                libc.inotify_rm_watch(self.fd, number)
