"""Which program a process runs, and which cgroup a number is: what flows and listeners are told with.

Bounded memories of what was seen last, and a look at /proc and at the tree where that does not help. A
process or a cgroup that is gone unseen stays unknown.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.runtime.cgroupfs import numbered
from aegisflux.wire.records import text_of

MOST_PROGRAMS: Final = 16_384
MOST_GONE: Final = 1024
TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Programs:
    """Paths of programs by (pid, start)."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._paths: dict[tuple[int, int], str] = {}

    def began(self, pid: int, start_ns: int, path: str) -> None:
        """A process became this program."""
        if len(self._paths) >= MOST_PROGRAMS:
            del self._paths[next(iter(self._paths))]
        self._paths[pid, start_ns] = path

    def path(self, pid: int, start_ns: int) -> str:
        """Empty where nobody knows."""
        found = self._paths.get((pid, start_ns))
        if found is None and pid and self.start_ns(pid) == start_ns // TICK_NS * TICK_NS:
            found = self.running(pid)
            self.began(pid, start_ns, found)
        return found or ""

    def running(self, pid: int) -> str:
        """What the process runs now."""
        try:
            return text_of(os.fsencode((self._proc / str(pid) / "exe").readlink())).removesuffix(" (deleted)")
        except OSError:
            return ""

    def start_ns(self, pid: int) -> int:
        """When it began by /proc, which knows ticks only; 0 where it is gone."""
        with suppress(OSError, ValueError, IndexError):
            fields = (self._proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
            return int(fields[19]) * TICK_NS
        return 0

    def exactly(self, pid: int) -> int:
        """When it began, in ns where its exec was seen, else in ticks."""
        ticks = self.start_ns(pid)
        for known, start in reversed(self._paths):
            if known == pid and start // TICK_NS * TICK_NS == ticks:
                return start
        return ticks


class CgroupNames:
    """Paths of cgroups below the v2 root, without a leading slash, by their number."""

    def __init__(self, root: Path) -> None:
        self._root, self._looked = root, False
        self._names: dict[int, str] = {}
        self._gone: set[int] = set()

    def begin(self) -> None:
        """The tree may have changed: an unknown number is worth one look."""
        self._looked = False

    def name(self, number: int) -> str:
        """Empty where it is gone, and for the root."""
        found = self._names.get(number)
        if found is None and not self._looked and number not in self._gone:
            self._looked = True
            self._names = dict(_tree(self._root))
            found = self._names.get(number)
            if found is None:  # what carries the number is older than this look, and no number is given twice
                self._gone = {number, *self._gone} if len(self._gone) < MOST_GONE else {number}
        return found or ""


def _tree(root: Path) -> Iterator[tuple[int, str]]:
    at = len(os.fsencode(root)) + 1
    return ((number, text_of(os.fsencode(folder)[at:])) for number, folder in numbered(root))
