"""The own addresses of every network namespace that matters, kept in the map `own` and told of by netlink.

Namespaces that matter: the agent's own, those of governed processes, and those that `ip netns` named. Nothing
here holds one alive: between readings no descriptor of a namespace is open.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.adapters.datapath.bpf.namespaces import NAMED, cookie, inside
from aegisflux.adapters.datapath.bpf.own import OwnMap
from aegisflux.adapters.datapath.bpf.routes import MOST_OWN, Read, read_own
from aegisflux.adapters.datapath.bpf.watch import Changed, Watch
from aegisflux.domain.net import Address, address_of

MOST_NAMESPACES: Final = 1024
WAYS_KEPT: Final = 3
SURE: Final = 60.0
OURS: Final = "/proc/self/ns/net"


class Way(Struct):
    """How a namespace can be entered; `pids` is whether a process lives in it, else it is only named."""

    paths: list[str]
    pids: bool


class Seen(Struct, frozen=True):
    """A namespace as it was read at `at`; `number` is its nsid, None where it has none; `is_told` is whether
    its changes reach us."""

    paths: tuple[str, ...]
    pids: bool
    cookie: int
    number: int | None
    read: Read
    at: float
    is_told: bool


def ways_in(pids: Iterable[int]) -> tuple[dict[int, Way], int]:
    """Ways into our own namespace, those of these processes and the named ones, by inode; and how many more
    there were than are taken. Our own comes first, the named ones last."""
    found: dict[int, Way] = {}
    left: set[int] = set()
    for path, is_pid in _paths(pids):
        with suppress(OSError):
            inode = Path(path).stat().st_ino
            if inode not in found and len(found) >= MOST_NAMESPACES:
                left.add(inode)
                continue
            way = found.setdefault(inode, Way([], is_pid))
            if len(way.paths) < WAYS_KEPT:
                way.paths.append(path)
            way.pids = way.pids or is_pid
    return found, len(left)


def _is_in(changed: Changed, seen: Seen) -> bool:
    return seen.number in changed.numbers or (changed.here and seen.paths[0] == OURS)


def _paths(pids: Iterable[int]) -> Iterator[tuple[str, bool]]:
    yield OURS, True
    yield from ((f"/proc/{pid}/ns/net", True) for pid in pids)
    with suppress(OSError):
        yield from ((str(path), False) for path in sorted(NAMED.iterdir()))


class Addresses:
    """Reads, writes the map behind `own_fd`, and listens. `pids` gives the processes whose namespaces matter.

    by_all: the host is reached by the addresses of every namespace, else by those of these processes'
    """

    def __init__(
        self,
        own_fd: int,
        pids: Callable[[], Iterable[int]],
        by_all: bool,
        watch: Watch | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = OwnMap(own_fd)
        self._pids, self._by_all, self._watch, self._clock = pids, by_all, watch, clock
        self._seen: dict[int, Seen] = {}
        self._trouble: dict[int, str] = {}
        self.more = 0
        self.reached: frozenset[Address] = frozenset()

    def refresh(self) -> None:
        """Look for namespaces, and read those that are new, have changed, tell nothing or were not read for
        long; those that went leave the map."""
        self._look(self._drained())

    def heed(self) -> None:
        """Read again what changed since the last call."""
        changed = self._drained()
        if changed.everything:
            self._look(changed)
        elif changed:
            again = {i: seen for i, seen in self._seen.items() if _is_in(changed, seen)}
            if not self._read_again({i: (s.paths, s.pids) for i, s in again.items()}):
                self._look(changed)

    def _drained(self) -> Changed:
        """What changed; what ended is forgotten at once."""
        if self._watch is None:
            return Changed(everything=True)
        changed = self._watch.drain()
        for inode, seen in list(self._seen.items()):
            if seen.number in changed.gone:
                self._own.drop(seen.cookie)
                del self._seen[inode]
        return changed

    def _look(self, changed: Changed) -> None:
        self._own.read()
        ways, self.more = ways_in(self._pids())
        # one that cannot be entered this time keeps what is known of it
        self._seen = {inode: seen for inode, seen in self._seen.items() if inode in ways}
        self._trouble = {inode: text for inode, text in self._trouble.items() if inode in ways}
        due, now = {}, self._clock()
        for inode, way in ways.items():
            paths, seen = tuple(way.paths), self._seen.get(inode)
            if (
                seen is None
                or changed.everything
                or _is_in(changed, seen)
                or not seen.is_told
                or now - seen.at > SURE
            ):
                due[inode] = (paths, way.pids)
            else:
                self._seen[inode] = replace(seen, paths=paths, pids=way.pids)
                self._write(inode, seen)
        self._read_again(due)
        self._own.keep_only(seen.cookie for seen in self._seen.values())

    def troubles(self) -> list[str]:
        """What could not be done at the last readings, in words."""
        found = list(self._trouble.values())
        if self.more:
            found.append(f"own addresses: {self.more} network namespaces beyond the first {MOST_NAMESPACES}")
        return [f"{text}: there a refused call ends in a time-out, not at once" for text in found]

    def _read_again(self, wanted: Mapping[int, tuple[tuple[str, ...], bool]]) -> bool:
        """Whether all could be entered; what changed is in the map then."""
        entered = True
        for inode, (paths, pids) in wanted.items():
            seen = self._read_one(inode, paths, pids)
            if seen is None:
                entered = False
                continue
            self._seen[inode] = seen
            self._write(inode, seen)
        self.reached = frozenset(
            address_of(raw)
            for seen in self._seen.values()
            if self._by_all or seen.pids
            for raw in seen.read.addresses
        )
        return entered

    def _read_one(self, inode: int, paths: tuple[str, ...], pids: bool) -> Seen | None:
        """None where no way leads in any more."""
        ours = paths[0] == OURS
        for path in paths:
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if os.fstat(fd).st_ino != inode:  # the process went, and another has its number
                        continue
                    number = self._watch.listen_to(fd, ours) if self._watch is not None else None
                    at = self._clock()
                    made, read = inside(fd, lambda: (cookie(), read_own()))
                    told = self._watch is not None and (ours or number is not None)
                    return Seen(paths, pids, made, number, read, at, told)
                finally:
                    os.close(fd)
        return None

    def _write(self, inode: int, seen: Seen) -> None:
        self._trouble.pop(inode, None)
        where = f"own addresses of network namespace {inode} ({seen.paths[0]})"
        if seen.read.cut:
            self._own.drop(seen.cookie)
            self._trouble[inode] = f"{where}: more than {MOST_OWN}"
        elif self._own.put({seen.cookie: seen.read.all()}).without_room:
            self._trouble[inode] = f"{where}: no room for {len(seen.read.all())} in the map"
