"""Compiled tables of one snapshot (tables_format 1): sections of little-endian records.

What each section holds is said on its field; the kernel's blob holds the same records at
128-byte block boundaries (`wire.layout`). `find` walks them exactly as the BPF programs do and
is the datapath-independent reader of what a kernel holds; it is not the meaning of a snapshot,
which is `domain.verdict`.
"""

import struct
from hashlib import sha256
from typing import Annotated, Final

from msgspec import Meta, Struct

from aegisflux.domain.net import TCP, UDP, Address, Cidr, masked

TABLES_FORMAT: Final = 1
NO_CLASS: Final = 0xFFFF
MAX_CLASSES: Final = 65_535
MAX_LEVELS: Final = 16
MAX_BYTES: Final = 16 * 1024 * 1024
MAX_INDEX_BITS: Final = 16

EGRESS: Final = 0
INGRESS: Final = 1

LIST, LIST_ANY, PEER, PEER_ANY, DENY, DENY_ANY = 1, 2, 4, 8, 16, 32
ALLOW_BITS: Final = LIST | LIST_ANY | PEER | PEER_ANY
DENY_BITS: Final = DENY | DENY_ANY
ANY_BITS: Final = LIST_ANY | PEER_ANY | DENY_ANY
KIND_LIST, KIND_PEER, KIND_DENY = 0, 1, 2
PROTO_TCP, PROTO_UDP, PROTO_ANY = 0, 1, 2

CLASS: Final = struct.Struct("<HBxIIH2x")
LEAF: Final = struct.Struct("<IH2x")


class Tables(Struct, frozen=True):
    """The records that the kernel searches; every section is a byte string.

    index_bits:  the first level of IPv4 has 2**index_bits buckets, bucket = address >> (32 - bits)
    v4_index:    u32 x (2**bits + 1), bucket i owns leaves [index[i], index[i+1])
    v4_leaves:   {u32 start, u16 class, u16 0}, ascending, the first starts at 0
    v6_starts:   16 bytes each in network order, ascending, the first is ::
    v6_classes:  u16, parallel to v6_starts
    classes:     {u16 parent, u8 prefix length, u8 0, u32 wild, u32 item start, u16 item count, u16 0}
    items:       u32 = key << 8 | bits, key = direction << 17 | protocol << 16 | port, ascending in a class
    ingress:     whether ingress is restricted at all
    """

    index_bits: Annotated[int, Meta(ge=0, le=MAX_INDEX_BITS)]
    v4_index: bytes
    v4_leaves: bytes
    v6_starts: bytes
    v6_classes: bytes
    classes: bytes
    items: bytes
    ingress: bool

    def sections(self) -> tuple[bytes, ...]:
        return (self.v4_index, self.v4_leaves, self.v6_starts, self.v6_classes, self.classes, self.items)

    def size(self) -> int:
        """Bytes of all sections."""
        return sum(map(len, self.sections()))

    def digest(self) -> str:
        """`sha256:` over the format, the scalars, and each section behind its length."""
        h = sha256(struct.pack("<III", TABLES_FORMAT, self.index_bits, self.ingress))
        for section in self.sections():
            h.update(struct.pack("<I", len(section)))
            h.update(section)
        return "sha256:" + h.hexdigest()


class Match(Struct, frozen=True):
    """One matching entry: its prefix and how it was written."""

    deny: bool
    peer: bool
    cidr: Cidr
    any_proto: bool
    port: int


def wild_bit(direction: int, proto: int, kind: int) -> int:
    return 1 << (direction * 9 + proto * 3 + kind)


def item_key(direction: int, proto: int, port: int) -> int:
    return direction << 17 | proto << 16 | port


def find(tables: Tables, direction: int, proto: int, address: Address, port: int | None) -> Match | None:
    """The entry that decides an initiation: innermost matching deny, else innermost matching allow.

    `proto` is the IP protocol number; `port` is ignored unless TCP or UDP.
    """
    allow: Match | None = None
    cls = _class_of(tables, address)
    for _ in range(MAX_LEVELS):
        if cls == NO_CLASS:
            break
        parent, plen, wild, start, count = CLASS.unpack_from(tables.classes, cls * CLASS.size)
        cidr = masked(address.family, address.value, plen)
        for match in _matches(tables, cidr, wild, start, count, direction, proto, port):
            if match.deny:
                return match
            allow = allow or match
        cls = parent
    return allow


def _class_of(tables: Tables, address: Address) -> int:
    if address.family == 4:
        shift = 32 - tables.index_bits
        lo, hi = struct.unpack_from("<II", tables.v4_index, 4 * (address.value >> shift))
        while lo < hi:
            mid = (lo + hi) // 2
            if LEAF.unpack_from(tables.v4_leaves, mid * 8)[0] <= address.value:
                lo = mid + 1
            else:
                hi = mid
        return int(LEAF.unpack_from(tables.v4_leaves, (lo - 1) * 8)[1])
    lo, hi, key = 0, len(tables.v6_starts) // 16, address.packed()
    while lo < hi:
        mid = (lo + hi) // 2
        if tables.v6_starts[mid * 16 : mid * 16 + 16] <= key:
            lo = mid + 1
        else:
            hi = mid
    return int(struct.unpack_from("<H", tables.v6_classes, (lo - 1) * 2)[0])


def _matches(
    tables: Tables,
    cidr: Cidr,
    wild: int,
    start: int,
    count: int,
    direction: int,
    proto: int,
    port: int | None,
) -> list[Match]:
    """Matches of one class: denies, then exact port before 0, named protocol before any, list before peer."""
    found: list[Match] = []
    code = {TCP: PROTO_TCP, UDP: PROTO_UDP}.get(proto)
    if code is not None and port is not None:
        key = item_key(direction, code, port)
        for i in range(start, start + count):
            (item,) = struct.unpack_from("<I", tables.items, i * 4)
            if item >> 8 == key:
                found += _exact(item & 0xFF, cidr, port)
    for p in (PROTO_ANY,) if code is None else (code, PROTO_ANY):
        for kind in (KIND_DENY, KIND_LIST, KIND_PEER):
            if wild & wild_bit(direction, p, kind):
                found.append(Match(kind == KIND_DENY, kind == KIND_PEER, cidr, p == PROTO_ANY, 0))
    return sorted(found, key=lambda m: not m.deny)


def _exact(bits: int, cidr: Cidr, port: int) -> list[Match]:
    order = (DENY, DENY_ANY, LIST, PEER, LIST_ANY, PEER_ANY)
    return [
        Match(bool(b & DENY_BITS), bool(b & (PEER | PEER_ANY)), cidr, bool(b & ANY_BITS), port)
        for b in order
        if bits & b
    ]
