"""Python mirror of bpf/aegis_maps.h: the blob of one generation, and the small shared structures.

`pack` turns compiled tables into blocks of 128 bytes, `unpack` turns blocks back and refuses any that
`pack` would not have made. Little-endian, as the kernels that we support.
"""

import struct
import sys
from array import array
from typing import Final

from msgspec import Struct

from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.domain.snapshot import Established, Expiry, Mode
from aegisflux.domain.tables import DENY_BITS, Tables

LAYOUT: Final = 2
BLOCK: Final = 128
MAX_SLOTS: Final = 256
SLOT_NONE: Final = 256
SLOT_AGENT: Final = 257
SLOT_ROWS: Final = 258
COUNTERS: Final = 16
V6_LEVELS: Final = 7
MAX_FAILSAFE: Final = 16
MAX_PATH: Final = 256

D_CLOSED, D_KEEP, D_INGRESS, D_DENIES = 1, 2, 4, 8
DESCRIPTOR: Final = struct.Struct("<QQIBBBB4I7I8I4x")
IDENTITY: Final = struct.Struct("<Q32s32s")
CONTROL: Final = struct.Struct("<QIIIIII")
STATE: Final = struct.Struct("<QQIHH16sHBBIQQ")
UDP_KEY: Final = struct.Struct("<Q16sHHI")
UDP_FLOW: Final = struct.Struct("<QQQBB2xIQQQQQQQQ16sQII")
FAILSAFE_LIST: Final = struct.Struct("<II")
FAILSAFE_RULE: Final = struct.Struct("<16s16sQHBBB3x")
OWN_KEY: Final = struct.Struct("<IQ16s")
OWN_NETNS_BITS: Final = 64
OWN_BITS: Final = 64 + 128
LISTENER_KEY: Final = struct.Struct("<QII")
FLOW_KEY: Final = struct.Struct("<Q16s16sIIHBB4x")
FLOW_COUNT: Final = struct.Struct("<QQQQQQQII")
DENIED: Final = struct.Struct("<QQII16s16sHHBBBBBB6x")

REASONS: Final = {
    1: "unmanaged",
    2: "failsafe",
    3: "expired_open",
    4: "expired_closed",
    5: "malformed",
    6: "deny",
    7: "allow",
    8: "unrestricted",
    9: "no_match",
    10: "kept",
}
C_LOST_FLOWS: Final = 0
C_WOULD_BLOCK, C_UDP_CREATED, C_LOST_EVENTS, C_TOO_DEEP, C_NO_STORAGE = 11, 12, 13, 14, 15
W_REASON, W_PLEN_SHIFT, W_PEER, W_ANY, W_WILD = 0xF, 4, 1 << 12, 1 << 13, 1 << 14
W_MATCH, W_INGRESS, W_DENY, W_REFUSED, W_BITS = 1 << 15, 1 << 16, 1 << 17, 1 << 18, 24

CB_LOCAL, CB_TCP, CB_STORAGE, CB_EXPIRED = 0x4, 0x8, 0x10, 0x20


class Descriptor(Struct, frozen=True):
    """How one generation is used. `generation` is even and never used again; flows that were not refused
    since generation `previous` are live (equal to `generation`: none is)."""

    generation: int
    previous: int
    deadline_cell: int
    mode: Mode
    on_expiry: Expiry
    established: Established
    service_id: int
    version: int
    digest: str
    tables_digest: str


class Malformed(Refused):
    """The blocks are not what `pack` makes."""


def pack(tables: Tables, descriptor: Descriptor) -> bytes:
    """The blob: descriptor, identity, then each section from a block boundary on."""
    if sys.byteorder != "little":
        raise Unavailable("datapath: only little-endian machines are supported")
    levels = _v6_levels(tables.v6_starts)
    leaf_pad = tables.v4_leaves[-8:] * 16
    sections = [
        _padded(tables.v4_index),
        tables.v4_leaves + leaf_pad[: -len(tables.v4_leaves) % BLOCK],
        *(_padded(level, b"\xff") for level in levels),
        _padded(tables.v6_classes),
        _padded(tables.classes),
        _padded(tables.items),
    ]
    offsets, at = [], 2
    for section in sections:
        offsets.append(at)
        at += len(section) // BLOCK
    head = _descriptor_block(tables, descriptor, offsets, len(levels), at)
    ident = IDENTITY.pack(
        descriptor.version, _digest_bytes(descriptor.digest), _digest_bytes(descriptor.tables_digest)
    )
    return b"".join([head, ident.ljust(BLOCK, b"\0"), *sections])


def unpack(blob: bytes) -> tuple[Descriptor, Tables]:
    """Descriptor and tables of a blob; raises Malformed unless packing them again gives the same bytes."""
    try:
        descriptor, tables = _read(blob)
        again = pack(tables, descriptor)
    except (struct.error, IndexError, ValueError) as err:
        raise Malformed(f"generation: unreadable blocks: {err}") from None
    if again != blob:
        raise Malformed("generation: the blocks differ from those of their own tables")
    return descriptor, tables


def head_of(blob: bytes) -> Descriptor:
    """The descriptor from the first two blocks."""
    f = DESCRIPTOR.unpack_from(blob)
    version, digest, tables_digest = IDENTITY.unpack_from(blob, BLOCK)
    return Descriptor(
        generation=f[0],
        previous=f[1],
        deadline_cell=f[2],
        mode="enforce" if f[3] else "observe",
        on_expiry="closed" if f[4] & D_CLOSED else "open",
        established="keep" if f[4] & D_KEEP else "cut",
        service_id=f[-3],
        version=version,
        digest="sha256:" + digest.hex(),
        tables_digest="sha256:" + tables_digest.hex(),
    )


def _descriptor_block(tables: Tables, d: Descriptor, offsets: list[int], levels: int, blocks: int) -> bytes:
    flags = (D_CLOSED if d.on_expiry == "closed" else 0) | (D_KEEP if d.established == "keep" else 0)
    flags |= (D_INGRESS if tables.ingress else 0) | (D_DENIES if _has_denies(tables) else 0)
    level_at = offsets[2 : 2 + levels] + [0] * (V6_LEVELS - levels)
    head = DESCRIPTOR.pack(
        d.generation, d.previous, d.deadline_cell, d.mode == "enforce", flags, tables.index_bits, levels,
        offsets[0], offsets[1], len(tables.v4_leaves) // 8, len(tables.v6_starts) // 16, *level_at,
        *offsets[2 + levels :], len(tables.classes) // 16, len(tables.items) // 4, d.service_id, LAYOUT,
        blocks,
    )  # fmt: skip
    return head.ljust(BLOCK, b"\0")


_WILD_DENIES: Final = 0b100100100_100100100


def _has_denies(tables: Tables) -> bool:
    if any(wild & _WILD_DENIES for (wild,) in struct.iter_unpack("<4xI8x", tables.classes)):
        return True
    return any(bits & DENY_BITS for bits in tables.items[::4])


def _v6_levels(starts: bytes) -> list[bytes]:
    """Every start as two host numbers, then every 8th, until one block holds the level."""
    numbers = array("Q", starts)
    numbers.byteswap()
    high, low = numbers[0::2], numbers[1::2]
    levels = [numbers.tobytes()] if numbers else []
    while len(high) > 8:
        high, low = high[::8], low[::8]
        pairs = array("Q", bytes(16 * len(high)))
        pairs[0::2], pairs[1::2] = high, low
        levels.append(pairs.tobytes())
    return levels


def _padded(section: bytes, fill: bytes = b"\0") -> bytes:
    return section + fill * (-len(section) % BLOCK)


def _digest_bytes(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))


def _read(blob: bytes) -> tuple[Descriptor, Tables]:
    f = DESCRIPTOR.unpack_from(blob)
    flags, bits, levels, v4_index, v4_leaves, n_leaves, n_v6 = f[4:11]
    v6_level = f[11:18]
    v6_classes, classes, items, n_classes, n_items = f[18:23]

    def section(block: int, size: int) -> bytes:
        return blob[block * BLOCK : block * BLOCK + size]

    numbers = array("Q", section(v6_level[0], 16 * n_v6) if levels else b"")
    numbers.byteswap()
    tables = Tables(
        index_bits=bits,
        v4_index=section(v4_index, 4 * ((1 << bits) + 1)),
        v4_leaves=section(v4_leaves, 8 * n_leaves),
        v6_starts=numbers.tobytes(),
        v6_classes=section(v6_classes, 2 * n_v6),
        classes=section(classes, 16 * n_classes),
        items=section(items, 4 * n_items),
        ingress=bool(flags & D_INGRESS),
    )
    return head_of(blob), tables
