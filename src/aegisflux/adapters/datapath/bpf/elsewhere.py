"""Pins of ours that are not where their owner says: in the BPF file systems of other mount namespaces.

Any user makes mount namespaces with tens of thousands of mounts, so this search is the last resort of a
panic, comes after everything is detached, and has a budget.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf, objects
from aegisflux.adapters.datapath.bpf.namespaces import owner_at
from aegisflux.adapters.datapath.bpf.pins import FOLDER
from aegisflux.runtime import procfs

SECONDS: Final = 3.0
BYTES: Final = 16 << 20
"""Of mountinfo, of all namespaces together."""

CHUNK: Final = 1 << 16


class Budget:
    """What one search may cost; `is_spent` stays true, so that the search says that it was cut."""

    def __init__(
        self, seconds: float = SECONDS, size: int = BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._until, self._size, self._clock = clock() + seconds, size, clock
        self.is_spent = False

    def take(self, size: int = 0) -> bool:
        """Whether there is time, and room for so many bytes more."""
        self._size -= size
        if self._size < 0 or self._clock() > self._until:
            self.is_spent = True
        return not self.is_spent


def here() -> list[Path]:
    """The BPF file systems of our own mount namespace."""
    return _once(_mounted("self", Path("/"), Budget()))


def everywhere(budget: Budget) -> list[Path]:
    """One path to each BPF file system that some process of this host has mounted; ours first. Mount
    namespaces of other user namespaces are left out: nobody there can load a program or pin a link."""
    found = here()
    seen = {_namespace("self")}
    for process in processes():
        if not budget.take():
            break
        with suppress(OSError):
            namespace = _namespace(process)
            if namespace not in seen:
                seen.add(namespace)
                if owner_at(f"/proc/{process}/ns/mnt") == "ours":
                    found += _mounted(process, Path(f"/proc/{process}/root"), budget)
    return _once(found)


def pinned_links(tops: list[Path]) -> Iterator[tuple[int, Path]]:
    """(link, the instance's folder) of every link that is pinned in a folder of ours in these file systems.

    Any user may mount a BPF file system and link to our pins there, and by the kernel's defaults make
    folders in one: those that are not root's are no instances.
    """
    for top in tops:
        for folder in _folders(top / FOLDER):
            with suppress(OSError):  # a folder that cannot be read leaves the others
                for path in (*folder.glob("*/*/*"), *folder.glob("*/*")):
                    if "links" in path.parent.name and not path.is_symlink():
                        with suppress(OSError):
                            yield link_number(path), folder


def link_number(pin: Path) -> int:
    """The number of the link that is pinned there. Raises OSError."""
    fd = libbpf.obj_get(str(pin))
    try:
        return objects.link(fd).number
    finally:
        os.close(fd)


def processes() -> list[str]:
    """The numbers of all processes, the oldest first."""
    return sorted((n for n in os.listdir("/proc") if n.isdigit()), key=int)  # noqa: PTH208 - a Path is slow


def _folders(top: Path) -> list[Path]:
    with suppress(OSError):
        return [folder for folder in top.iterdir() if not folder.is_symlink()] if _is_roots(top) else []
    return []


def _is_roots(path: Path) -> bool:
    return path.lstat().st_uid == os.geteuid()


def _namespace(process: str) -> str:
    return os.readlink(f"/proc/{process}/ns/mnt")  # noqa: PTH115 - there are many, and a Path is slow


def _mounted(process: str, root: Path, budget: Budget) -> list[Path]:
    told = procfs.mounts(os.fsdecode(_read(f"/proc/{process}/mountinfo", budget)))
    return [root / mount.point.lstrip("/") for mount in told if mount.kind == "bpf"]


def _read(path: str, budget: Budget) -> bytes:
    """A file of the kernel, as much of it as the budget gives."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while (part := os.read(fd, CHUNK)) and budget.take(len(part)):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _once(paths: list[Path]) -> list[Path]:
    """The first path to each file system; one that cannot be reached leaves the others."""
    found: dict[int, Path] = {}
    for path in paths:
        with suppress(OSError):
            found.setdefault(path.stat().st_dev, path)
    return list(found.values())
