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
from aegisflux.domain.bounds import Count, Signed64
from aegisflux.domain.errors import BROKEN, Unavailable

Lane = Literal["flows", "events"]
LANES: Final[tuple[Lane, ...]] = ("flows", "events")  # in the order of sacrifice
MARKS: Final = "marks"
SLOT: Final = 8192
WINDOW: Final = 256
RESERVE: Final = 10_000
SEGMENT_BYTES: Final = 4 << 20
SEGMENTS: Final = 16
META_BYTES: Final = 512


class Marks(Struct, array_like=True):
    """What is remembered beside the records; all but `sent` is forgotten at the next boot.

    turn:     the higher one of the two copies is the newer
    reserved: sequences below may have been given
    sent:     by lane: all numbers below the first one are settled, and these distances above it
    lost:     events by where and kind
    cursors:  of sources, where no record is left that says it
    """

    turn: Count
    host_id: str
    boot_id: str
    reserved: Count
    sent: dict[str, tuple[Count, list[Count]]]
    lost: dict[str, Count]
    cursors: dict[str, Signed64]


class _Progress:
    """How far a lane is sent. Numbers are handed out rising, with gaps, and settled in any order.

    upto:    all below are settled
    beyond:  settled above it
    pending: handed out, not settled
    """

    def __init__(self) -> None:
        self.upto, self._high = 0, -1
        self.beyond: set[int] = set()
        self.pending: set[int] = set()

    def recall(self, upto: int, distances: Iterable[int]) -> None:
        """Where an earlier agent was."""
        self.upto, self._high = upto, upto - 1
        self.beyond = {upto + n for n in distances}

    def waits(self, n: int) -> bool:
        """Whether a number is still to be settled."""
        return n >= self.upto and n not in self.beyond

    @property
    def next(self) -> int:
        """The first number that was certainly never settled."""
        return max(self.beyond, default=self.upto - 1) + 1

    def take(self, n: int) -> int:
        """A number is handed out; how many that wait below it were not."""
        missing = sum(map(self.waits, range(self._high + 1, n)))
        self._high = n
        self.pending.add(n)
        return missing

    def settle(self, n: int) -> bool:
        """A number is done; False when it was forgotten."""
        if n not in self.pending:
            return False
        self.pending.remove(n)
        self.beyond.add(n)
        self._move(min(self.pending, default=self._high + 1))
        return True

    def forget(self, last: int) -> None:
        """Nothing up to this number is to be settled any more."""
        if last >= self.upto:
            self._high = max(self._high, last)
            self.pending = {n for n in self.pending if n > last}
            self._move(last + 1)

    def marks(self) -> tuple[int, list[int]]:
        """What `recall` takes."""
        return self.upto, sorted(n - self.upto for n in self.beyond)

    def _move(self, upto: int) -> None:
        self.upto = upto
        self.beyond = {n for n in self.beyond if n >= upto}


class Spool:
    """The spool of a host in a folder; every method raises Unavailable when the disk refuses.

    lost:    events by where and kind, since the host booted; of what is damaged, batches
    cursors: of sources, behind what is durable here
    """

    def __init__(
        self, folder: Path, host_id: str, boot_id: str, bound: int, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder, self._host, self._boot, self._bound = folder, host_id, boot_id, bound
        size = max(1, min(segment_bytes, bound // SEGMENTS))
        self._logs: dict[str, Log] = {lane: Log(folder / lane, lane, size) for lane in LANES}
        self._next: dict[str, int] = dict.fromkeys(LANES, 0)
        self._sent: dict[str, _Progress] = {lane: _Progress() for lane in LANES}
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
        highest = max(map(self._take_over, LANES))
        self._seq = self._reserved = max(self._reserved, highest + 1)
        if found is not None and found.host_id != self._host:
            self._forget_all()

    def first(self, count: int) -> int:
        """The first of so many sequences, none of which was ever given in this boot."""
        if self._seq + count > self._reserved:
            self._reserved = self._seq + count + RESERVE
            self.remember()
        return self._seq

    def append(
        self, lane: Lane, batch: bytes, kinds: Mapping[str, int], last: int, cursors: Mapping[str, int]
    ) -> bool:
        """Keep a batch of the sequences from `first` to `last`, and the cursors behind it, in one.

        An empty batch keeps only cursors. False: the spool was full of what is dearer, and took only these.
        """
        kept = not batch or self._room(lane, len(batch) + META_BYTES)
        if not kept:
            self.count("spool", kinds)
            batch = b""
        meta = Meta(self._next[lane], self._boot, self._seq, last, dict(kinds), dict(cursors))
        self._logs[lane].append(meta, batch)
        self._seq = max(self._seq, last + 1)
        self.cursors.update(cursors)
        if batch:
            self._next[lane] += 1
        return kept

    def exchange(self, done: Iterable[Record], most: int) -> list[Record]:
        """These need not be sent any more; up to `most` others that are to be sent, flows last."""
        settled = False
        for record in done:
            if self._sent[record.lane].settle(record.meta.n):
                self._logs[record.lane].settle(record.meta)
                settled = True
        if settled:
            self.remember()
            for log in self._logs.values():
                log.sweep()
        found: list[Record] = []
        for lane in reversed(LANES):
            try:
                self._take(lane, found, most)
            except Unavailable:
                if not found:
                    raise
        return found

    def count(self, where: str, kinds: Mapping[str, int]) -> None:
        """Events were lost; durable with the next `remember`."""
        self.lost.update({f"{where}.{kind}": n for kind, n in kinds.items()})

    def remember(self) -> None:
        """Make durable what stands beside the records."""
        self._turn += 1
        sent = {lane: progress.marks() for lane, progress in self._sent.items()}
        marks = Marks(self._turn, self._host, self._boot, self._reserved, sent, dict(self.lost), self.cursors)
        body = msgspec.msgpack.encode(marks)
        data = crc32(body).to_bytes(4, "little") + len(body).to_bytes(4, "little") + body
        if len(data) > SLOT:
            raise Unavailable(f"spool {self._folder}: {len(data)} bytes of marks, expected at most {SLOT}")
        try:
            os.pwrite(self._fd, data, (self._turn % 2) * SLOT)
        except OSError as error:
            raise Unavailable(f"spool {self._folder}: {error.strerror}") from error

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
        with suppress(Unavailable):
            self.remember()
        for log in self._logs.values():
            log.close()
        with suppress(OSError):
            os.fdatasync(self._fd)
        os.close(self._fd)
        self._fd = -1

    def _recall(self, marks: Marks) -> None:
        self._turn = marks.turn
        for lane, (upto, distances) in marks.sent.items():
            if lane in self._sent:
                self._sent[lane].recall(upto, distances)
        if marks.boot_id == self._boot:
            self._reserved = marks.reserved
            self.lost.update(marks.lost)
            self.cursors.update(marks.cursors)

    def _take_over(self, lane: Lane) -> int:
        """Read a lane; the highest sequence of this boot in it."""
        highest, sent = 0, self._sent[lane]
        number = sent.next
        for segment, meta, has_batch in self._logs[lane].open():
            if has_batch:
                if not self._turn and not number:  # without marks nobody knows what was below
                    sent.recall(meta.n, ())
                number, segment.last = max(number, meta.n + 1), meta.n
                if sent.waits(meta.n):
                    segment.add(meta)
            if meta.boot_id == self._boot:
                highest = max(highest, meta.last)
                self.cursors.update(meta.cursors)
        self._next[lane] = number
        return highest

    def _take(self, lane: Lane, found: list[Record], most: int) -> None:
        log, sent = self._logs[lane], self._sent[lane]
        while len(found) < most and len(sent.beyond) + len(sent.pending) < WINDOW:
            record = log.read()
            if record is None:
                return
            if sent.waits(record.meta.n):
                missing = sent.take(record.meta.n)
                if missing:
                    self.count("damaged", {"batches": missing})
                found.append(record)

    def _room(self, lane: Lane, size: int) -> bool:
        """Make room by the order of sacrifice; False when what is to come is the next to be sacrificed."""
        while self.size + size > self._bound:
            victim = next((one for one in LANES if not self._logs[one].empty), None)
            if victim is None:
                return True
            if LANES.index(victim) > LANES.index(lane):
                return False
            self._evict(victim)
        return True

    def _evict(self, lane: Lane) -> None:
        """Remove the oldest segment. A batch of it that is under way counts as lost, though it may arrive."""
        self.remember()  # the cursors, before the records that say them go
        kinds, last = self._logs[lane].remove_oldest()
        self.count("spool", kinds)
        self._sent[lane].forget(last)
        self.remember()

    def _forget_all(self) -> None:
        """The spool is another host's: its batches are not ours to send."""
        for lane in LANES:
            while not self._logs[lane].empty:
                self._evict(lane)


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
    except BROKEN:
        return None
