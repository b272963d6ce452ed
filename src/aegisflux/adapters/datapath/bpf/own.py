"""The map `own`: which addresses and prefixes are own, by the cookie of the network namespace.

A namespace is known once its marks are there, which are written last. The hooks of the calls refuse nothing
that might be own, so a namespace that cannot be written whole is taken out: then its packets decide.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.shares import Share, room
from aegisflux.wire import layout

Prefix = tuple[int, bytes]
"""Length and network of the 128-bit form (IPv4 mapped)."""

OWN_VALUE, READ_VALUE = b"\1", b"\0"
MARKS: Final[tuple[Prefix, ...]] = ((0, bytes(16)), (96, bytes(10) + b"\xff\xff" + bytes(4)))
"""That the namespace was read: for IPv6, and for IPv4, which no prefix of IPv6 covers."""


class Written(Struct, frozen=True):
    """What a call changed: namespaces taken out because nothing uses them, and those without room."""

    pruned: int = 0
    without_room: tuple[int, ...] = ()


class OwnMap:
    """The map behind this descriptor; it remembers what it wrote and what `read` found."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._known: dict[int, dict[Prefix, bytes]] = {}
        self._shares: dict[int, Share] = {}

    def read(self) -> None:
        """Look at what the kernel holds: another process may have written or taken away."""
        known: defaultdict[int, dict[Prefix, bytes]] = defaultdict(dict)
        for key, value in libbpf.read_hash(self._fd, layout.OWN_KEY.size, 1):
            bits, number, network = layout.OWN_KEY.unpack(key)
            known[number][bits - layout.OWN_NETNS_BITS, network] = value
        self._known = dict(known)

    def put(self, own: Mapping[int, Iterable[Prefix]], share: Share = "root") -> Written:
        """Make these the own addresses of these namespaces, as far as their share of the map has room; the
        others stay as they are."""
        without = [number for number, wanted in own.items() if not self._put(number, set(wanted), share)]
        return Written(without_room=tuple(without))

    def keep_only(self, living: Iterable[int]) -> Written:
        """Take out every other namespace."""
        gone = self._known.keys() - set(living)
        for number in gone:
            self.drop(number)
        return Written(pruned=len(gone))

    def drop(self, number: int) -> None:
        """Nothing is known of this namespace any more; its marks go first."""
        self._shares.pop(number, None)
        for prefix in sorted(self._known.pop(number, {})):
            libbpf.delete(self._fd, _key(number, prefix))

    def _put(self, number: int, wanted: set[Prefix], share: Share) -> bool:
        """Whether there was room; where there is none, all of the namespace is taken out. What is new is
        written before the old goes; where both together have no room, it is unknown for that moment."""
        most = room(share, self._used(share, number))
        held = self._known.get(number, {})
        if len(held.keys() | wanted | set(MARKS)) > most:
            self.drop(number)
        if len(wanted | set(MARKS)) > most:
            return False
        self._shares[number] = share
        known = self._known.setdefault(number, {})
        try:
            for prefix in wanted:
                self._write(number, prefix, OWN_VALUE)
            for prefix in known.keys() - wanted - set(MARKS):
                libbpf.delete(self._fd, _key(number, prefix))
                del known[prefix]
            for mark in MARKS:
                if mark not in wanted:  # else every address of the family is own, by the same key
                    self._write(number, mark, READ_VALUE)
        except OSError:
            self.drop(number)
            return False
        return True

    def _used(self, share: Share, but: int) -> int:
        """Entries of the other namespaces of this share."""
        return sum(
            len(known) for n, known in self._known.items() if n != but and self._shares.get(n) == share
        )

    def _write(self, number: int, prefix: Prefix, value: bytes) -> None:
        known = self._known[number]
        if known.get(prefix) != value:
            libbpf.update(self._fd, _key(number, prefix), value)
            known[prefix] = value


def _key(number: int, prefix: Prefix) -> bytes:
    bits, network = prefix
    return layout.OWN_KEY.pack(layout.OWN_NETNS_BITS + bits, number, network)
