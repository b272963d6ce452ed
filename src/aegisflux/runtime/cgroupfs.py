"""The cgroup v2 tree: where it is mounted, what is in it, and who writes in a directory of it (ADR 0028)."""

import ctypes
import errno
import os
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.selectors import root_only
from aegisflux.domain.text import name_bytes
from aegisflux.runtime import procfs
from aegisflux.runtime.procfs import Mount

MEMBERS: Final = (b"cgroup.procs", b"cgroup.threads")  # who may write them may move processes
KERNFS_HANDLE: Final = 0xFE


def v2_mounts(mountinfo: str | None = None) -> list[Mount]:
    """Return the mounts of cgroup v2 trees, of this process or in the text of a mountinfo; raises OSError."""
    return [mount for mount in procfs.mounts(mountinfo) if mount.kind == "cgroup2"]


def v2_root(mountinfo: str | None = None, *, part: bool = False) -> Path:
    """Return where the whole cgroup v2 tree is mounted, with `part` also a part of it where that is all there
    is. Raises Unavailable or OSError."""
    found = v2_mounts(mountinfo)
    whole = [mount for mount in found if mount.root == "/"]
    for mount in whole or (found if part else ()):
        return Path(mount.point)
    raise Unavailable("no cgroup v2 tree is mounted: expected a cgroup2 line in /proc/self/mountinfo")


def own_cgroup(text: str | None = None) -> str | None:
    """Return the path of this process's cgroup, or of the text of a /proc/self/cgroup; None in the root of
    the v2 tree. Raises OSError."""
    found = procfs.kernel_text(procfs.PROC / "self/cgroup") if text is None else text
    for line in found.split("\n"):  # a name may hold what else ends a line of text
        if line.startswith("0::"):
            return line[3:].strip("/") or None
    return None


def number_at(folder: Path) -> int | None:
    """Return the number of the cgroup at a path, None where there is none."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def numbered(top: Path) -> Iterator[tuple[int, str]]:
    """Yield number and folder of each cgroup from the top down; one that goes meanwhile is left out."""
    for folder, _, _ in os.walk(top):
        with suppress(OSError):
            yield os.stat(folder).st_ino, folder  # noqa: PTH116 - there are many, and a Path is slow


def shallow_first(top: Path, go_on: Callable[[], bool]) -> Iterator[tuple[int, str]]:
    """Yield number and folder of each cgroup while `go_on` says so: those near the top first, and those that
    users made after all of root's. A user has cgroups as many and as deep as they like."""
    roots, users = deque([str(top)]), deque[str]()
    while (roots or users) and go_on():
        folder = (roots or users).popleft()
        with suppress(OSError):
            yield os.stat(folder).st_ino, folder  # noqa: PTH116 - there are many, and a Path is slow
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not go_on():
                        return
                    if entry.is_dir(follow_symlinks=False):
                        (users if entry.stat(follow_symlinks=False).st_uid else roots).append(entry.path)


def paths_of(numbers: Collection[int]) -> dict[int, str]:
    """Folder of each of these cgroups that is seen from here, by its number. The kernel finds each by a
    handle, so that it costs nothing how many others there are."""
    try:
        top = v2_root(part=True)
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (Unavailable, OSError):
        return {}
    try:
        found = {number: _path_of(fd, number) for number in numbers}
    except OSError:  # a kernel, or a sandbox, without handles of cgroups
        wanted = set(numbers)
        return {number: folder for number, folder in numbered(top) if number in wanted}
    finally:
        os.close(fd)
    return {number: path for number, path in found.items() if path is not None}


def _path_of(mount: int, number: int) -> str | None:
    """None where the cgroup went or lies outside of this mount. Raises OSError without handles."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = libc.open_by_handle_at(mount, struct.pack("=IiQ", 8, KERNFS_HANDLE, number), flags)
    if fd < 0:
        if ctypes.get_errno() in (errno.ESTALE, errno.ENOENT):
            return None
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - it is text of the kernel
        same = os.stat(path)  # noqa: PTH116 - as above
        is_here = (same.st_ino, same.st_dev) == (number, os.fstat(mount).st_dev)
    except OSError:
        return None
    finally:
        os.close(fd)
    return path if is_here else None


def given_by_root(folder: bytes, roots: Collection[int] = (0,)) -> bool:
    """Whether root alone makes directories in it and moves processes into it; false where it is gone."""
    try:
        found = [os.stat(folder)]  # noqa: PTH116 - a Path would be text
    except OSError:
        return False
    for name in MEMBERS:
        with suppress(OSError):
            found.append(os.stat(folder + b"/" + name))  # noqa: PTH116 - a Path would be text
    return all(root_only(one.st_uid, one.st_mode, roots) for one in found)


def named_by_root(root: bytes, path: str) -> bool:
    """Whether root alone names the cgroup at `path`, and moves processes into it from outside.

    This asks each directory above it. One that does not exist gives no name; who makes it is asked then.
    """
    here, above = root, [root]
    for part in name_bytes(path).split(b"/")[:-1]:
        here += b"/" + part
        above.append(here)
    return all(given_by_root(folder) for folder in above if os.path.lexists(folder))
