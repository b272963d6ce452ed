"""Snapshot -> Tables: overlaps flattened to disjoint intervals, each with the class that judges it.

A class is {parent class, prefix length, own list}; classes that are equal are one class, so 90,000
hosts with the same list cost one. The verdict walks from the innermost class outwards.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from aegisflux.domain.embedded import with_forms
from aegisflux.domain.errors import OverLimit
from aegisflux.domain.net import Cidr
from aegisflux.domain.snapshot import Entry, Ruleset
from aegisflux.domain.tables import (
    CLASS,
    DENY,
    DENY_ANY,
    EGRESS,
    INGRESS,
    KIND_DENY,
    KIND_LIST,
    KIND_PEER,
    LIST,
    LIST_ANY,
    MAX_BYTES,
    MAX_CLASSES,
    MAX_INDEX_BITS,
    MAX_LEVELS,
    NO_CLASS,
    PEER,
    PEER_ANY,
    PROTO_ANY,
    PROTO_TCP,
    PROTO_UDP,
    Tables,
    item_key,
    wild_bit,
)

_BITS: Final = {KIND_LIST: (LIST, LIST_ANY), KIND_PEER: (PEER, PEER_ANY), KIND_DENY: (DENY, DENY_ANY)}
_PROTO: Final = {"tcp": PROTO_TCP, "udp": PROTO_UDP, "any": PROTO_ANY}
_DIRECTIONS: Final = {"egress": (EGRESS,), "ingress": (INGRESS,), "both": (EGRESS, INGRESS)}

Atom = tuple[int, int, int, int]
OwnList = tuple[int, tuple[int, ...]]


def compile_tables(rules: Ruleset) -> Tables:
    """The tables of a snapshot; raises OverLimit by the limit's name, never a part."""
    atoms = _atoms_by_prefix(rules)
    classes = _Classes(f"snapshot of service {rules.service_id}, version {rules.version}")
    v4 = _flatten([p for p in atoms if p.family == 4], atoms, classes)
    v6 = _flatten([p for p in atoms if p.family == 6], atoms, classes)
    bits, index = _index(v4)
    tables = Tables(
        index_bits=bits,
        v4_index=index,
        v4_leaves=array("Q", [start | cls << 32 for start, cls in v4]).tobytes(),
        v6_starts=b"".join(start.to_bytes(16, "big") for start, _ in v6),
        v6_classes=array("H", [cls for _, cls in v6]).tobytes(),
        classes=b"".join(classes.records),
        items=classes.items.tobytes(),
        ingress=rules.ingress is not None,
    )
    if tables.size() > MAX_BYTES:
        raise OverLimit("table_bytes", MAX_BYTES, tables.size(), classes.what)
    return tables


def _atoms_by_prefix(rules: Ruleset) -> dict[Cidr, list[Atom]]:
    found: dict[Cidr, list[Atom]] = defaultdict(list)
    for cidr, atom in _atoms(rules):
        found[cidr].append(atom)
    return found


def _atoms(rules: Ruleset) -> Iterator[tuple[Cidr, Atom]]:
    """Every entry as (direction, protocol, port, kind), once a direction."""
    lists: tuple[tuple[tuple[Entry, ...], tuple[int, ...], int], ...] = (
        (rules.edges, (EGRESS,), KIND_LIST),
        (rules.ingress or (), (INGRESS,), KIND_LIST),
        (rules.peers, (EGRESS, INGRESS), KIND_PEER),
    )
    for entries, directions, kind in lists:
        for e in entries:
            for direction in directions:
                yield e.cidr, (direction, _PROTO[e.proto], e.port, kind)
    for e in with_forms(rules.deny):
        for direction in _DIRECTIONS[e.direction]:
            yield e.cidr, (direction, _PROTO[e.proto], e.port, KIND_DENY)


class _Classes:
    """Equal classes and equal item lists are stored once."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.records: list[bytes] = []
        self.levels: list[int] = []
        self.items = array("I")
        self._ids: dict[tuple[int, int, OwnList], int] = {}
        self._lists: dict[tuple[Atom, ...], OwnList] = {}
        self._starts: dict[tuple[int, ...], int] = {}

    def id_of(self, parent: int, plen: int, atoms: list[Atom]) -> int:
        own = self._own(tuple(sorted(atoms)))
        key = (parent, plen, own)
        known = self._ids.get(key)
        return known if known is not None else self._add(key)

    def _own(self, atoms: tuple[Atom, ...]) -> OwnList:
        known = self._lists.get(atoms)
        if known is None:
            known = self._lists[atoms] = own_list(atoms)
        return known

    def _add(self, key: tuple[int, int, OwnList]) -> int:
        parent, plen, (wild, items) = key
        level = 1 if parent == NO_CLASS else self.levels[parent] + 1
        if level > MAX_LEVELS:
            raise OverLimit("levels", MAX_LEVELS, level, f"{self.what}: nested prefixes")
        if len(self.records) >= MAX_CLASSES:
            raise OverLimit("classes", MAX_CLASSES, MAX_CLASSES + 1, self.what)
        start = self._starts.get(items)
        if start is None:
            start = self._starts[items] = len(self.items)
            self.items.extend(items)
        self._ids[key] = len(self.records)
        self.records.append(CLASS.pack(parent, plen, wild, start, len(items)))
        self.levels.append(level)
        return self._ids[key]


class _Open(Struct):
    last: int
    cls: int


def own_list(atoms: tuple[Atom, ...]) -> OwnList:
    """(wild bits, sorted items) of one class; `any` with a port becomes its TCP and its UDP item."""
    wild = 0
    exact: dict[int, int] = defaultdict(int)
    for direction, proto, port, kind in atoms:
        if port == 0:
            wild |= wild_bit(direction, proto, kind)
            continue
        named, via_any = _BITS[kind]
        for p in (PROTO_TCP, PROTO_UDP) if proto == PROTO_ANY else (proto,):
            exact[item_key(direction, p, port)] |= via_any if proto == PROTO_ANY else named
    return wild, tuple(sorted(key << 8 | bits for key, bits in exact.items()))


def _flatten(prefixes: list[Cidr], atoms: dict[Cidr, list[Atom]], classes: _Classes) -> list[tuple[int, int]]:
    """Disjoint (start, class) intervals that cover the family's whole space, ascending from 0."""
    out: list[tuple[int, int]] = [(0, NO_CLASS)]
    open_: list[_Open] = []
    for prefix in sorted(prefixes):
        _close(open_, prefix.value, out)
        parent = open_[-1].cls if open_ else NO_CLASS
        cls = classes.id_of(parent, prefix.plen, atoms[prefix])
        open_.append(_Open(prefix.last, cls))
        _emit(out, prefix.value, cls)
    top = (1 << (32 if prefixes and prefixes[0].family == 4 else 128)) - 1
    _close(open_, top + 1, out, top)
    return out


def _close(open_: list[_Open], before: int, out: list[tuple[int, int]], top: int | None = None) -> None:
    """End every open prefix that lies wholly before `before`."""
    while open_ and open_[-1].last < before:
        last = open_.pop().last
        if last != top:
            _emit(out, last + 1, open_[-1].cls if open_ else NO_CLASS)


def _emit(out: list[tuple[int, int]], start: int, cls: int) -> None:
    if out[-1][0] == start:
        out.pop()
    if not out or out[-1][1] != cls:
        out.append((start, cls))


def _index(leaves: list[tuple[int, int]]) -> tuple[int, bytes]:
    """The first level of IPv4: about one bucket a leaf, so that small snapshots stay small."""
    bits = min(MAX_INDEX_BITS, (len(leaves) - 1).bit_length())
    shift = 32 - bits
    index = array("I", bytes(4 * ((1 << bits) + 1)))
    bucket = 0
    for position, (start, _) in enumerate(leaves):
        while bucket <= start >> shift:
            index[bucket] = position
            bucket += 1
    while bucket <= 1 << bits:
        index[bucket] = len(leaves)
        bucket += 1
    return bits, index.tobytes()
