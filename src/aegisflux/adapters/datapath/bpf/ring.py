"""A ring buffer that is read without taking anything away: the consumer's position is moved by `release`.

libbpf's own consumer releases each record as it is read. See kernel/bpf/ringbuf.c for the form: a page
with the consumer's position, a page with the producer's, and the data twice in a row.
"""

import mmap
import struct
from collections.abc import Iterator
from typing import Final

BUSY, DISCARD = 1 << 31, 1 << 30
HEADER: Final = 8
_WORD: Final = struct.Struct("<Q")
_LENGTH: Final = struct.Struct("<I")


class Unread:
    """The unread part of a ring of `size` bytes. Positions only rise. The data is mapped while it is read:
    each of its pages would count as ours twice."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._fd, self._size = fd, size
        self._ours = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._theirs = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)

    @property
    def begin(self) -> int:
        """Where the oldest record lies."""
        return int(_WORD.unpack_from(self._ours)[0])

    @property
    def end(self) -> int:
        """Where the next record will lie."""
        return int(_WORD.unpack_from(self._theirs)[0])

    def records(self) -> Iterator[tuple[bytes, int]]:
        """Each record that is whole, and the position behind it; nothing is released."""
        at, end, page = self.begin, self.end, mmap.PAGESIZE
        if at == end:
            return
        with mmap.mmap(self._fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page) as data:
            while at < end:
                offset = page + at % self._size
                (length,) = _LENGTH.unpack_from(data, offset)
                if length & BUSY:
                    return
                size = length & ~DISCARD
                at += (size + HEADER + 7) & ~7
                if not length & DISCARD:
                    yield data[offset + HEADER : offset + HEADER + size], at

    def release(self, position: int) -> None:
        """Everything before the position may be written over."""
        if self.begin < position <= self.end:
            _WORD.pack_into(self._ours, 0, position)

    def close(self) -> None:
        """Let go of the memory."""
        self._ours.close()
        self._theirs.close()
