"""The cgroup v2 tree: where it is mounted, what is in it, and who writes in a directory of it (ADR 0028)."""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.selectors import root_only
from aegisflux.domain.text import name_bytes
from aegisflux.runtime import procfs
from aegisflux.runtime.procfs import Mount

MEMBERS: Final = (b"cgroup.procs", b"cgroup.threads")  # who may write them may move processes


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
