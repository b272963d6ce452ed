"""A log of records in segment files, read in order while it is written. One thread at a time.

A record is a checksum, two lengths, what is known of it, and a batch. A process that is killed leaves at
most one record that is not whole, at the end: it is cut when the log is opened.
"""

import os
import struct
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec
from msgspec import Struct

from aegisflux.domain.bounds import Count, Signed64
from aegisflux.domain.errors import BROKEN, Unavailable

HEAD: Final = struct.Struct("<III")
CRC: Final = 4
SUFFIX: Final = ".log"
OURS: Final = "[0-9]" * 16 + SUFFIX


class Meta(Struct, frozen=True, array_like=True):
    """What is known of a record. Those without a batch only carry cursors, under the number of the next.

    n:           its number in its lane, rising
    first, last: the sequences of its events
    kinds:       how many events of which kind
    cursors:     of sources, behind the events
    """

    n: Count
    boot_id: str
    first: Count
    last: Count
    kinds: dict[str, Count]
    cursors: dict[str, Signed64]


class Record(Struct, frozen=True):
    """A record that waits to be sent."""

    lane: str
    meta: Meta
    batch: bytes


_META: Final = msgspec.msgpack.Decoder(Meta)
_ENCODER: Final = msgspec.msgpack.Encoder()


class Segment:
    """One file. `left` and `kinds` are of its batches that are not settled; `last` is its highest number."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd
        self.size = self.left = 0
        self.last = -1
        self.kinds: Counter[str] = Counter()

    def add(self, meta: Meta) -> None:
        """A batch waits."""
        self.left, self.last = self.left + 1, meta.n
        self.kinds.update(meta.kinds)

    def settle(self, meta: Meta) -> None:
        """A batch need not be sent any more."""
        self.left -= 1
        self.kinds.subtract(meta.kinds)


class Log:
    """The segments of one lane, oldest first. Methods raise Unavailable when the disk refuses."""

    def __init__(self, folder: Path, lane: str, segment_bytes: int) -> None:
        self.lane, self._folder, self._segment_bytes = lane, folder, segment_bytes
        self._segments: deque[Segment] = deque()
        self._number = 0
        self._reading: Segment | None = None
        self._offset = 0

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def left(self) -> int:
        """Batches that wait, those under way too."""
        return sum(segment.left for segment in self._segments)

    def open(self) -> Iterator[tuple[Segment, Meta, bool]]:
        """Take over what is there, cutting what is not whole; gives all records: (where, what, has a batch).

        Whoever reads this says `Segment.add` for those that are to be sent.
        """
        with _told(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in sorted(self._folder.glob(OURS)):
                segment = Segment(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
                self._segments.append(segment)
                self._number = int(path.stem) + 1
                data = path.read_bytes()
                for meta, has_batch, segment.size in _whole(data):
                    yield segment, meta, has_batch
                if segment.size < len(data):
                    os.ftruncate(segment.fd, segment.size)

    def append(self, meta: Meta, batch: bytes) -> None:
        """Write a record; it survives a kill of this process."""
        body = _ENCODER.encode(meta)
        rest = HEAD.pack(0, len(body), len(batch))[CRC:] + body + batch
        data = crc32(rest).to_bytes(CRC, "little") + rest
        segment = self._segments[-1] if self._segments else self._new()
        if segment.size and segment.size + len(data) > self._segment_bytes:
            self._sync(segment)
            segment = self._new()
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(segment.fd, data[done:], segment.size + done)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(segment.fd, segment.size)
            raise Unavailable(f"spool {segment.path}: {error.strerror}") from error
        segment.size += len(data)
        if batch:
            segment.add(meta)

    def read(self) -> Record | None:
        """The next record with a batch after the last one read; a damaged one ends its segment."""
        while True:
            segment = self._reading or (self._segments[0] if self._segments else None)
            if segment is None:
                return None
            self._reading = segment
            if self._offset >= segment.size:
                after = next((s for s in self._segments if s.path > segment.path), None)
                if after is None:
                    return None
                self._reading, self._offset = after, 0
                continue
            with _told(segment.path):
                data = _record(segment, self._offset)
            whole = next(_whole(data), None)
            if whole is None:
                self._offset = segment.size
                continue
            meta, has_batch, end = whole
            self._offset += end
            if has_batch:
                _, meta_size, _ = HEAD.unpack_from(data)
                return Record(self.lane, meta, data[HEAD.size + meta_size :])

    def settle(self, meta: Meta) -> None:
        """A batch need not be sent any more, unless its segment is gone already."""
        for segment in self._segments:
            if meta.n <= segment.last:
                segment.settle(meta)
                return

    def sweepable(self) -> bool:
        """Whether there is a segment to `sweep`."""
        return len(self._segments) > 1 and self._segments[0].left == 0

    def sweep(self) -> None:
        """Remove the oldest segments that need not be sent."""
        while self.sweepable():
            self.remove_oldest()

    def remove_oldest(self) -> tuple[Counter[str], int]:
        """Remove the oldest segment: the events in it that were not settled by kind, and its last number."""
        segment = self._segments.popleft()
        if self._reading is segment:
            self._reading, self._offset = None, 0
        os.close(segment.fd)
        with _told(segment.path):
            segment.path.unlink(missing_ok=True)
        return +segment.kinds, segment.last

    @property
    def empty(self) -> bool:
        """Whether there is no segment."""
        return not self._segments

    def close(self) -> None:
        """Make it durable, and let go."""
        for segment in self._segments:
            self._sync(segment)
            os.close(segment.fd)
        self._segments.clear()
        self._reading = None

    def _new(self) -> Segment:
        path = self._folder / f"{self._number:016}{SUFFIX}"
        with _told(path):
            segment = Segment(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        self._number += 1
        self._segments.append(segment)
        return segment

    def _sync(self, segment: Segment) -> None:
        if segment.left:
            with suppress(OSError):  # it is in the page cache, and a power loss is no kill
                os.fdatasync(segment.fd)


class _told:  # noqa: N801 - reads as a word of `with`
    """An OSError in here is Unavailable, and says where."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise Unavailable(f"spool {self._path}: {error.strerror}") from error


def _record(segment: Segment, start: int) -> bytes:
    """The bytes of a record as its head tells its size; no more than there are."""
    head = os.pread(segment.fd, HEAD.size, start)
    if len(head) < HEAD.size:
        return head
    _, meta_size, size = HEAD.unpack(head)
    return os.pread(segment.fd, min(HEAD.size + meta_size + size, segment.size - start), start)


def _whole(data: bytes) -> Iterator[tuple[Meta, bool, int]]:
    """The records at the beginning of a segment: (what, has a batch, where it ends)."""
    start = 0
    while start + HEAD.size <= len(data):
        crc, meta_size, size = HEAD.unpack_from(data, start)
        end = start + HEAD.size + meta_size + size
        if end > len(data) or crc32(memoryview(data)[start + CRC : end]) != crc:
            return
        body = start + HEAD.size
        try:
            meta = _META.decode(memoryview(data)[body : body + meta_size])
        except BROKEN:
            return
        yield meta, size > 0, end
        start = end
