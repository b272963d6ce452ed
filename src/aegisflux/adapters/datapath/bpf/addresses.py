"""The own addresses of every network namespace that matters, kept in the map `own` and told of by netlink.

Namespaces that matter: the agent's own, those of governed processes, and those that `ip netns` named.
Nothing here holds one alive: between readings no descriptor of a namespace is open.

Root's come first: those of users are read in turns, each of a limited time and followed by a rest, so that
who changes addresses all the time keeps nobody else's from being known.
"""

import os
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.adapters.datapath.bpf.namespaces import NAMED, Owner, cookie, inside, owner_at, owner_of
from aegisflux.adapters.datapath.bpf.own import OwnMap
from aegisflux.adapters.datapath.bpf.routes import Read, read_own
from aegisflux.adapters.datapath.bpf.shares import MOST, MOST_NAMESPACES, ORDER, Share, admitted
from aegisflux.adapters.datapath.bpf.watch import Changed
from aegisflux.adapters.datapath.bpf.watches import Watches
from aegisflux.domain.net import Address, address_of
from aegisflux.domain.own_addresses import Standing, likeliest_first

WAYS_KEPT: Final = 3
SURE: Final = 60.0
TURN_SECONDS: Final = 0.05
REST: Final = 10
"""How much longer than a turn the rest after it is."""

OURS: Final = "/proc/self/ns/net"
OF_USERS: Final = (
    f"own addresses: network namespaces of other user namespaces have more than {MOST['users']} addresses "
    f"and local routes, or are more than {MOST_NAMESPACES['users']}"
)
"""Without names and numbers, since who makes such namespaces would fill the log with them."""


class Way(Struct):
    """How a namespace can be entered; `pids` is whether a process lives in it, else it is only named."""

    paths: list[str]
    pids: bool
    owner: Owner

    def share(self) -> Share:
        """Whose room in the map it takes."""
        if self.paths[0] == OURS:
            return "host"
        return "root" if self.owner == "ours" else "users"

    def is_users(self) -> bool:
        """Whether it takes users' room."""
        return self.share() == "users"

    def is_reached(self, by_all: bool) -> bool:
        """Whether others reach the host by its addresses: never by those that a user may choose."""
        return self.owner != "user" and (by_all or self.pids)


class Seen(Struct, frozen=True):
    """A namespace as it was read at `at`; `number` is its nsid, None where it has none; `is_told` is whether
    its changes reach us."""

    way: Way
    cookie: int
    number: int | None
    read: Read
    at: float
    is_told: bool


def ways_in(pids: Iterable[int], known: Container[int] = ()) -> tuple[dict[int, Way], dict[Share, int]]:
    """Ways into our own namespace, those of these processes and the named ones, by inode; and how many more
    of each share there were than are taken. Our own comes first; what is `known` is kept."""
    found: dict[int, Way] = {}
    for path, is_pid in _paths(pids):
        with suppress(OSError):
            inode = os.stat(path).st_ino  # noqa: PTH116 - there are many, and a Path is slow
            way = found.get(inode)
            if way is None:
                way = found[inode] = Way([], is_pid, owner_at(path))
            if len(way.paths) < WAYS_KEPT:
                way.paths.append(path)
            way.pids = way.pids or is_pid
    taken, left = admitted(((inode, way.share()) for inode, way in found.items()), known)
    return {inode: way for inode, way in found.items() if inode in taken}, left


def _read_here(most: int) -> tuple[int, Read]:
    return cookie(), read_own(most)


def _is_in(changed: Changed, seen: Seen) -> bool:
    return seen.number in changed.numbers or (changed.here and seen.way.paths[0] == OURS)


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
        watch: Watches | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = OwnMap(own_fd)
        self._pids, self._by_all, self._watch, self._clock = pids, by_all, watch, clock
        self._seen: dict[int, Seen] = {}
        self._trouble: dict[int, str] = {}
        self._of_users: set[int] = set()
        self._due: dict[int, Way] = {}
        self._left: dict[Share, int] = {}
        self.reached: tuple[Address, ...] = ()

    def refresh(self) -> None:
        """Look for namespaces, and read those that are new, have changed, tell nothing or were not read for
        long, of users as many as one turn has time for; those that went leave the map."""
        self._look(self._drained())
        self._take_turn(at_once=True)

    def heed(self) -> None:
        """Read again what changed since the last call: root's all, users' when it is their turn."""
        changed = self._drained()
        if changed.everything:
            self._look(changed)
        elif again := self._changed_in(changed, of_users=False):
            entered = self._read_again(again)
            self._write_all(again.keys() & self._seen.keys())
            if not entered:
                self._look(changed)
        self._take_turn()

    def _drained(self) -> Changed:
        """What changed of root's; what ended is forgotten at once."""
        if self._watch is None:
            return Changed(everything=True)
        changed = self._watch.drain()
        self._forget(changed, of_users=False)
        return changed

    def _forget(self, changed: Changed, *, of_users: bool) -> None:
        for inode, seen in list(self._seen.items()):
            if seen.number in changed.gone and seen.way.is_users() == of_users:
                self._own.drop(seen.cookie)
                del self._seen[inode]

    def _changed_in(self, changed: Changed, *, of_users: bool) -> dict[int, Way]:
        return {
            inode: seen.way
            for inode, seen in self._seen.items()
            if seen.way.is_users() == of_users and (changed.everything or _is_in(changed, seen))
        }

    def _take_turn(self, *, at_once: bool = False) -> None:
        """Read of users' namespaces what is due, for as long as a turn is, in the order in which it came."""
        began = self._clock()
        if self._watch is not None:
            changed = self._watch.drain_users(at_once=at_once)
            if changed is None:
                return
            self._forget(changed, of_users=True)
            for inode, way in self._changed_in(changed, of_users=True).items() if changed else ():
                self._due.setdefault(inode, way)
        done = []
        while self._due and self._clock() - began < TURN_SECONDS:
            inode = next(iter(self._due))
            if self._read_again({inode: self._due.pop(inode)}):
                done.append(inode)
        self._write_all(done)
        if self._watch is not None and (done or self._due):
            self._watch.rest(REST * (self._clock() - began))

    def _look(self, changed: Changed) -> None:
        self._own.read()
        ways, self._left = ways_in(self._pids(), self._seen)
        # one that cannot be entered this time keeps what is known of it
        self._seen = {i: replace(seen, way=ways[i]) for i, seen in self._seen.items() if i in ways}
        self._trouble = {inode: text for inode, text in self._trouble.items() if inode in ways}
        self._of_users &= ways.keys()
        now = self._clock()
        due = {i: way for i, way in ways.items() if self._is_due(i, changed, now)}
        self._due = {i: ways[i] for i in self._due if i in ways}
        self._due |= {i: way for i, way in due.items() if way.is_users()}
        self._read_again({i: way for i, way in due.items() if not way.is_users()})
        self._own.keep_only(seen.cookie for seen in self._seen.values())
        self._write_all(self._seen)

    def _is_due(self, inode: int, changed: Changed, now: float) -> bool:
        seen = self._seen.get(inode)
        if seen is None or not seen.is_told or now - seen.at > SURE:
            return True
        if seen.way.is_users():
            return self._watch is None
        return changed.everything or _is_in(changed, seen)

    def unknown(self) -> int:
        """How many namespaces' own addresses are not known."""
        return len(self._trouble) + len(self._of_users) + sum(self._left.values())

    def troubles(self) -> list[str]:
        """What could not be done at the last readings, in words."""
        found = list(self._trouble.values())
        if more := self._left.get("root"):
            most = MOST_NAMESPACES["root"]
            found.append(f"own addresses: {more} network namespaces beyond the first {most}")
        if self._of_users or "users" in self._left:
            found.append(OF_USERS)
        return [f"{text}: there a refused call ends in a time-out, not at once" for text in found]

    def _read_again(self, wanted: Mapping[int, Way]) -> bool:
        """Whether all could be entered."""
        entered = True
        for inode, way in wanted.items():
            seen = self._read_one(inode, way)
            if seen is None:
                entered = False
            else:
                self._seen[inode] = seen
        return entered

    def _read_one(self, inode: int, way: Way) -> Seen | None:
        """None where no way leads in any more."""
        ours = way.paths[0] == OURS
        for path in way.paths:
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    # the process went, or even the namespace, and another has its number
                    if os.fstat(fd).st_ino != inode or owner_of(fd) != way.owner:
                        continue
                    number = self._listen_to(fd, way)
                    at = self._clock()
                    made, read = inside(fd, partial(_read_here, MOST[way.share()]))
                    told = self._watch is not None and (ours or number is not None)
                    return Seen(way, made, number, read, at, told)
                finally:
                    os.close(fd)
        return None

    def _listen_to(self, fd: int, way: Way) -> int | None:
        share = way.share()
        if self._watch is None:
            return None
        return self._watch.listen_to(fd, is_ours=share == "host", is_users=share == "users")

    def _write_all(self, inodes: Collection[int]) -> None:
        """Bring these into the map: first goes what makes room, then the host is written, and users' last."""
        whole = []
        for inode in inodes:
            self._trouble.pop(inode, None)
            self._of_users.discard(inode)
            seen = self._seen[inode]
            if seen.read.cut:
                self._own.drop(seen.cookie)
                self._fail(inode, f"more than {MOST[seen.way.share()]}")
            else:
                whole.append((ORDER.index(seen.way.share()), inode))
        for _, inode in sorted(whole):
            seen = self._seen[inode]
            if self._own.put({seen.cookie: seen.read.all()}, seen.way.share()).without_room:
                self._fail(inode, f"no room for {len(seen.read.all())} in the map")
        self.reached = likeliest_first(self._reached())

    def _fail(self, inode: int, why: str) -> None:
        way = self._seen[inode].way
        if way.share() == "users":
            self._of_users.add(inode)
        else:
            where = f"own addresses of network namespace {inode} ({way.paths[0]})"
            self._trouble[inode] = f"{where}: {why}"

    def _reached(self) -> dict[Address, Standing]:
        """By what others reach this host; what several namespaces have counts by its best."""
        found: dict[Address, Standing] = {}
        for seen in self._seen.values():
            if seen.way.is_reached(self._by_all):
                for raw, standing in seen.read.addresses.items():
                    address = address_of(raw)
                    found[address] = min(standing, found.get(address, standing))
        return found
