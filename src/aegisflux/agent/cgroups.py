"""The cgroup v2 tree: where it is, what is in it, and being told at once when it changes (inotify)."""

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.domain.errors import Unavailable
from aegisflux.runtime import procfs

IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_Q_OVERFLOW: Final = 0x4000
IN_ISDIR: Final = 0x40000000
IN_FLAGS: Final = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | 0x01000000
IN_NONBLOCK_CLOEXEC: Final = 0o4000 | 0o2000000
MAX_CGROUPS: Final = 65_536
EVENT: Final = struct.Struct("iIII")


def v2_root(mountinfo: str) -> Path:
    """The root of the cgroup v2 tree in the text of /proc/self/mountinfo; raises Unavailable."""
    for mount in procfs.mounts(mountinfo):
        if mount.kind == "cgroup2" and mount.root == "/":
            return Path(mount.point)
    raise Unavailable("no cgroup v2 tree is mounted: expected a cgroup2 line in /proc/self/mountinfo")


def own_cgroup(text: str) -> str | None:
    """The path in the text of /proc/self/cgroup, None in the root of the v2 tree."""
    for line in text.split("\n"):  # a name may hold what else ends a line of text
        if line.startswith("0::"):
            return line[3:].strip("/") or None
    return None


def settle(root: Path, attach: Path, name: str) -> tuple[str | None, Path | None]:
    """The agent's own cgroup, and its path where it was made now.

    An agent that lives where the programs are attached cannot be told from its services by that cgroup: it
    moves to one of its own below it. One that lives above is not judged at all. Raises Unavailable.
    """
    own = own_cgroup(procfs.kernel_text(procfs.PROC / "self/cgroup"))
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

    It is `blind` where the kernel had no watch left for some cgroup: then only reading the tree tells.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or v2_root(procfs.kernel_text(procfs.PROC / "self/mountinfo"))
        self.own = own_cgroup(procfs.kernel_text(procfs.PROC / "self/cgroup"))
        self._tree: dict[str, int] = {}
        self._watches: dict[int, str] = {}
        self._fd = -1
        self.blind = False
        self._call: Callable[[], None] | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)

    def scan(self) -> Mapping[str, int]:
        """See `Cgroups.scan`."""
        if self._fd < 0 or self.blind:
            self._tree = dict(self._walk(""))
        return dict(self._tree)

    def rescan(self) -> bool:
        """See `Cgroups.rescan`: in case an event was missed, and whether watches have come free."""
        before, self.blind = self._tree, False
        self._tree = dict(self._walk(""))
        return before != self._tree

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
        self._tree = dict(self._walk(""))
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

    def _watch(self, path: str) -> bool:
        target = str(self.root / path) if path else str(self.root)
        number = self._libc.inotify_add_watch(self._fd, target.encode(), IN_FLAGS)
        if number >= 0:
            self._watches[number] = path
        elif ctypes.get_errno() != errno.ENOENT:
            self.blind = True
        return int(number) >= 0

    def _walk(self, path: str) -> Iterator[tuple[str, int]]:
        """All cgroups below `path`; each is watched before it is read, so that no child is missed."""
        pending, count = [path], 0
        while pending:
            here = pending.pop()
            if self._fd >= 0 and here:
                self._watch(here)
            try:
                with os.scandir(self.root / here if here else self.root) as entries:
                    found = [(e.name, e.inode()) for e in entries if e.is_dir(follow_symlinks=False)]
            except OSError:
                continue
            for name, inode in found:
                child = f"{here}/{name}" if here else name
                count += 1
                if count > MAX_CGROUPS:
                    return
                yield child, inode
                pending.append(child)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65_536)
        except BlockingIOError:
            return
        offset, changed = 0, False
        while offset < len(data):
            number, mask, _, length = EVENT.unpack_from(data, offset)
            name = data[offset + EVENT.size : offset + EVENT.size + length].rstrip(b"\0").decode()
            offset += EVENT.size + length
            changed = self._event(number, mask, name) or changed
        if changed and self._call is not None:
            self._call()

    def _event(self, number: int, mask: int, name: str) -> bool:
        if mask & IN_Q_OVERFLOW:
            return self.rescan()
        parent = self._watches.get(number)
        if parent is None or not mask & IN_ISDIR:
            return False
        path = f"{parent}/{name}" if parent else name
        if mask & (IN_CREATE | IN_MOVED_TO):
            try:
                self._tree[path] = (self.root / path).stat().st_ino
            except OSError:
                return False
            self._tree.update(self._walk(path))
            return True
        below = path + "/"
        for gone in [p for p in self._tree if p == path or p.startswith(below)]:
            del self._tree[gone]
        for watch in [n for n, p in self._watches.items() if p == path or p.startswith(below)]:
            self._watches.pop(watch)
        return True


class FixedCgroups:
    """`Cgroups` that somebody else decides: simulations and tests change `tree` and call `changed`."""

    blind = False

    def __init__(self, tree: dict[str, int] | None = None, own: str | None = None) -> None:
        self.tree = tree or {}
        self.own = own
        self._calls: list[Callable[[], None]] = []

    def scan(self) -> Mapping[str, int]:
        """See `Cgroups.scan`."""
        return dict(self.tree)

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
