"""What the host keeps until the bus has it: batches of events and the cursors behind them, bounded, on disk.

An append survives a kill of the agent (the page cache is enough for that), and so does what was sent. When
the spool is full, the oldest flows go first, then the oldest of everything else, each counted by kind. A
batch that is sent again has the same bytes and the same sequences. One thread at a time.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal
from zlib import crc32

import msgspec
from msgspec import Struct

from aegisflux.agent.segments import Log, Meta, Record
from aegisflux.domain.errors import Unavailable

Lane = Literal["flows", "events"]
LANES: Final[tuple[Lane, ...]] = ("flows", "events")  # in the order of sacrifice
MARKS: Final = "marks"
SLOT: Final = 8192
WINDOW: Final = 256
RESERVE: Final = 10_000
SEGMENT_BYTES: Final = 4 << 20
SEGMENTS: Final = 16


class Marks(Struct, array_like=True):
    """What is remembered beside the records; all but `sent` is forgotten at the next boot.

    turn:     the higher one of the two copies is the newer
    reserved: sequences below may have been given
    sent:     by lane: all numbers below the first one are settled, and these distances above it
    lost:     events by where and kind
    cursors:  of sources, where no record is left that says it
    """

    turn: int
    host_id: str
    boot_id: str
    reserved: int
    sent: dict[str, tuple[int, list[int]]]
    lost: dict[str, int]
    cursors: dict[str, int]


class Spool:
    """The spool of a host in a folder; every method raises Unavailable when the disk refuses."""

    def __init__(
        self, folder: Path, host_id: str, boot_id: str, bound: int, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder, self._host, self._boot, self._bound = folder, host_id, boot_id, bound
        size = max(1, min(segment_bytes, bound // SEGMENTS))
        self._logs: dict[str, Log] = {lane: Log(folder / lane, lane, size) for lane in LANES}
        self._next: dict[str, int] = dict.fromkeys(LANES, 0)
        self._upto: dict[str, int] = dict.fromkeys(LANES, 0)
        self._beyond: dict[str, set[int]] = {lane: set() for lane in LANES}
        self._fd = -1
        self._turn = 0
        self._seq = self._reserved = 1
        self.lost: Counter[str] = Counter()
        self.cursors: dict[str, int] = {}

    def open(self) -> None:
        """Take over what an earlier agent left."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self._folder / MARKS, flags, 0o600)
            found = _newest(os.pread(self._fd, 2 * SLOT, 0))
        except OSError as error:
            raise Unavailable(f"spool {self._folder}: {error.strerror}") from error
        if found is not None:
            self._recall(found)
        highest = 0
        for lane in LANES:
            highest = max(highest, self._take_over(lane))
        self._seq = self._reserved = max(self._reserved, highest + 1)
        if found is not None and found.host_id != self._host:
            self._forget_all()

    def first(self, count: int) -> int:
        """The first of so many sequences, none of which was ever given in this boot."""
        if self._seq + count > self._reserved:
            self._reserved = self._seq + count + RESERVE
            self._remember()
        return self._seq

    def append(
        self, lane: Lane, batch: bytes, kinds: Mapping[str, int], last: int, cursors: Mapping[str, int]
    ) -> None:
        """Keep a batch of the sequences from `first` to `last`, and the cursors behind it, in one.

        An empty batch keeps only cursors. A flow that finds the spool full of other things is lost itself.
        """
        if batch and not self._room(lane, len(batch)):
            self.count("spool", kinds)
            batch = b""
        meta = Meta(self._next[lane], self._boot, self._seq, last, dict(kinds), dict(cursors))
        self._logs[lane].append(meta, batch)
        self._seq = max(self._seq, last + 1)
        self.cursors.update(cursors)
        if batch:
            self._next[lane] += 1

    def exchange(self, done: Iterable[Record], most: int) -> list[Record]:
        """These need not be sent any more; up to `most` others that are to be sent, flows last."""
        settled = list(done)
        for record in settled:
            self._settle(record)
        if settled:
            self._remember()
            for log in self._logs.values():
                log.sweep()
        found: list[Record] = []
        for lane in reversed(LANES):
            below = self._upto[lane] + WINDOW
            while len(found) < most and (record := self._logs[lane].read(below)) is not None:
                if self._waits(lane, record.meta.n):
                    found.append(record)
        return found

    def count(self, where: str, kinds: Mapping[str, int]) -> None:
        """Events were lost; kept with the next marks."""
        self.lost.update({f"{where}.{kind}": n for kind, n in kinds.items()})

    def remember(self) -> None:
        """Keep what was counted."""
        self._remember()

    @property
    def waiting(self) -> int:
        """Batches that were not settled."""
        return sum(log.left for log in self._logs.values())

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(log.size for log in self._logs.values())

    def close(self) -> None:
        """Make everything durable, and let go."""
        if self._fd < 0:
            return
        self._remember()
        for log in self._logs.values():
            log.close()
        with suppress(OSError):
            os.fdatasync(self._fd)
        os.close(self._fd)
        self._fd = -1

    def _recall(self, marks: Marks) -> None:
        self._turn = marks.turn
        for lane, (upto, beyond) in marks.sent.items():
            self._upto[lane], self._beyond[lane] = upto, {upto + n for n in beyond}
        if marks.boot_id == self._boot:
            self._reserved = marks.reserved
            self.lost.update(marks.lost)
            self.cursors.update(marks.cursors)

    def _take_over(self, lane: Lane) -> int:
        """Read a lane; the highest sequence of this boot in it."""
        highest = 0
        number = self._upto[lane]
        for segment, meta, has_batch in self._logs[lane].open():
            if has_batch:
                number = max(number, meta.n + 1)
                segment.last = max(segment.last, meta.n)
                if self._waits(lane, meta.n):
                    segment.add(meta)
            if meta.boot_id == self._boot:
                highest = max(highest, meta.last)
                self.cursors.update(meta.cursors)
        self._next[lane] = number
        return highest

    def _waits(self, lane: str, n: int) -> bool:
        return n >= self._upto[lane] and n not in self._beyond[lane]

    def _settle(self, record: Record) -> None:
        lane, n = record.lane, record.meta.n
        if not self._waits(lane, n):
            return
        self._logs[lane].settle(record.meta)
        self._beyond[lane].add(n)
        self._advance(lane)

    def _advance(self, lane: str) -> None:
        while self._upto[lane] in self._beyond[lane]:
            self._beyond[lane].remove(self._upto[lane])
            self._upto[lane] += 1

    def _room(self, lane: Lane, size: int) -> bool:
        """Make room by the order of sacrifice; False when what is to come is the next to be sacrificed."""
        while self.size + size > self._bound:
            victim = next((one for one in LANES if not self._logs[one].empty), None)
            if victim is None or LANES.index(victim) > LANES.index(lane):
                return victim is None
            self._evict(victim)
        return True

    def _evict(self, lane: Lane) -> None:
        """Remove the oldest segment. A batch of it that is under way counts as lost, though it may arrive."""
        self._keep_cursors()
        kinds, last = self._logs[lane].remove_oldest()
        self.count("spool", kinds)
        if last >= self._upto[lane]:
            self._upto[lane] = last + 1
            self._beyond[lane] = {n for n in self._beyond[lane] if n > last}
            self._advance(lane)
        self._remember()

    def _keep_cursors(self) -> None:
        """Before the records that say them go."""
        self._remember()

    def _forget_all(self) -> None:
        """The spool is another host's: its batches are not ours to send."""
        for lane in LANES:
            while not self._logs[lane].empty:
                self._evict(lane)

    def _remember(self) -> None:
        self._turn += 1
        sent = {
            lane: (self._upto[lane], sorted(n - self._upto[lane] for n in self._beyond[lane]))
            for lane in LANES
        }
        marks = Marks(self._turn, self._host, self._boot, self._reserved, sent, dict(self.lost), self.cursors)
        body = msgspec.msgpack.encode(marks)
        data = crc32(body).to_bytes(4, "little") + len(body).to_bytes(4, "little") + body
        if len(data) > SLOT:
            raise Unavailable(f"spool {self._folder}: {len(data)} bytes of marks, expected at most {SLOT}")
        try:
            os.pwrite(self._fd, data, (self._turn % 2) * SLOT)
        except OSError as error:
            raise Unavailable(f"spool {self._folder}: {error.strerror}") from error


def _newest(data: bytes) -> Marks | None:
    """The newer one of the copies that are whole."""
    found = [marks for start in (0, SLOT) if (marks := _marks(data[start : start + SLOT])) is not None]
    return max(found, key=lambda marks: marks.turn, default=None)


def _marks(data: bytes) -> Marks | None:
    size = int.from_bytes(data[4:8], "little")
    body = data[8 : 8 + size]
    if not size or len(body) != size or crc32(body).to_bytes(4, "little") != data[:4]:
        return None
    try:
        return msgspec.msgpack.decode(body, type=Marks)
    except msgspec.DecodeError:
        return None
