"""The files in which rpm keeps headers, beside SQLite: ndb (Packages.db) and Berkeley DB's hash (Packages).

Both are read by position, so that a database is never whole in memory.
"""

from collections.abc import Callable, Iterator
from struct import Struct, unpack_from
from typing import Any, Final

from aegisflux.domain.errors import Invalid
from aegisflux.wire.packages.rpm import MAX_HEADER

Reader = Callable[[int, int], bytes]
"""So many bytes from a position; fewer at the end of the file."""

NDB_PAGE: Final = 4096
NDB_BLOCK: Final = 16
MAX_NDB_PAGES: Final = 2048
_NDB_HEAD: Final = Struct("<4sIIII12x")
_NDB_SLOT: Final = Struct("<4sIII")
_NDB_BLOB: Final = Struct("<4sIII")

BDB_MAGIC: Final = 0x061561
BDB_HASH_PAGES: Final = (2, 13)
BDB_OVERFLOW: Final = 7
BDB_INLINE, BDB_ELSEWHERE = 1, 3
BDB_PAGE_HEAD: Final = 26
MAX_BDB_PAGES: Final = 4 << 20
SHORTEST: Final = 16  # what is shorter is no header: the last number given


def ndb_headers(read: Reader) -> Iterator[bytes]:
    """The headers of Packages.db; raises Invalid where the file is not what it says."""
    magic, version, _, pages, _ = _unpacked(_NDB_HEAD, read(0, _NDB_HEAD.size), "ndb header")
    if magic != b"RpmP" or version != 0 or not 0 < pages <= MAX_NDB_PAGES:
        raise Invalid("ndb header", "RpmP, version 0", f"{magic!r} {version}, {pages} pages of slots")
    slots = read(_NDB_HEAD.size, pages * NDB_PAGE - _NDB_HEAD.size)
    for slot, number, block, blocks in _NDB_SLOT.iter_unpack(slots[: len(slots) // 16 * 16]):
        if slot != b"Slot":
            raise Invalid("ndb slot", "Slot", slot)
        if number:
            yield _ndb_blob(read, number, block, blocks)


def _ndb_blob(read: Reader, number: int, block: int, blocks: int) -> bytes:
    head = read(block * NDB_BLOCK, _NDB_BLOB.size)
    magic, owner, _, size = _unpacked(_NDB_BLOB, head, f"ndb package {number}")
    if magic != b"BlbS" or owner != number or size > min(blocks * NDB_BLOCK, MAX_HEADER):
        raise Invalid(f"ndb package {number}", "its blob", f"{magic!r} of {owner}, {size} bytes")
    return read(block * NDB_BLOCK + _NDB_BLOB.size, size)


def bdb_headers(read: Reader) -> Iterator[bytes]:
    """The headers of a hash of Berkeley DB; raises Invalid where the file is not what it says."""
    meta = read(0, 512)
    if len(meta) < 512:
        raise Invalid("bdb header", "512 bytes", len(meta))
    order = next((o for o in "<>" if unpack_from(o + "I", meta, 12)[0] == BDB_MAGIC), "")
    if not order:
        raise Invalid("bdb header", "a hash of Berkeley DB", meta[12:16].hex())
    (size,), (last,) = unpack_from(order + "I", meta, 20), unpack_from(order + "I", meta, 32)
    if not (512 <= size <= 65_536 and size & (size - 1) == 0 and last < MAX_BDB_PAGES):
        raise Invalid("bdb header", "pages of 512 to 65536 bytes", f"{last} pages of {size}")
    file = _Bdb(read, order, size, last)
    for number in range(1, last + 1):
        yield from file.values(number)


class _Bdb:
    def __init__(self, read: Reader, order: str, size: int, last: int) -> None:
        self._read, self._order, self._size, self._last = read, order, size, last
        self._head = Struct(order + "12xIIHHBB")

    def values(self, number: int) -> Iterator[bytes]:
        """The values on a page of the hash that may be headers; a page of another kind has none."""
        page = self._read(number * self._size, self._size)
        _, _, entries, _, _, kind = self._headed(page, number)
        if kind not in BDB_HASH_PAGES:
            return
        if BDB_PAGE_HEAD + 2 * entries > self._size:
            raise Invalid(f"bdb page {number}", f"entries within {self._size} bytes", entries)
        places = unpack_from(f"{self._order}{entries}H", page, BDB_PAGE_HEAD)
        for index in range(1, entries, 2):
            at, end = places[index], places[index - 1]
            if page[at : at + 1] == bytes((BDB_ELSEWHERE,)) and at + 12 <= self._size:
                yield self._chained(*unpack_from(self._order + "II", page, at + 4))
            elif page[at : at + 1] == bytes((BDB_INLINE,)) and end - at > SHORTEST:
                yield page[at + 1 : end]

    def _chained(self, number: int, size: int) -> bytes:
        if size > MAX_HEADER:
            raise Invalid(f"bdb page {number}", f"a value of at most {MAX_HEADER} bytes", size)
        parts: list[bytes] = []
        left = size
        while left > 0:
            if not 0 < number <= self._last:
                raise Invalid("bdb overflow", f"{left} more bytes of {size}", f"page {number}")
            page = self._read(number * self._size, self._size)
            _, after, _, used, _, kind = self._headed(page, number)
            if kind != BDB_OVERFLOW or not 0 < used <= self._size - BDB_PAGE_HEAD:
                raise Invalid(f"bdb page {number}", "an overflow page", f"type {kind}, {used} bytes")
            parts.append(page[BDB_PAGE_HEAD : BDB_PAGE_HEAD + min(used, left)])
            left, number = left - used, after
        return b"".join(parts)

    def _headed(self, page: bytes, number: int) -> tuple[int, int, int, int, int, int]:
        if len(page) < self._size:
            raise Invalid(f"bdb page {number}", f"{self._size} bytes", len(page))
        found: tuple[int, int, int, int, int, int] = self._head.unpack_from(page)
        return found


def _unpacked(form: Struct, raw: bytes, what: str) -> tuple[Any, ...]:
    if len(raw) < form.size:
        raise Invalid(what, f"{form.size} bytes", len(raw))
    return form.unpack(raw)
