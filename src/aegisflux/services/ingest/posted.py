"""What third parties post: records of a known format become events of the host that the token is bound to.

The boot id is made of the digest of the request and its key, the sequence is the place in it: a request
that is sent again adds nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256

from msgspec import Raw, Struct

from aegisflux.domain import intake
from aegisflux.domain.errors import Busy, Invalid, OverLimit, Refused
from aegisflux.domain.event import MAX_BATCH_BYTES, Event, EventBatch
from aegisflux.domain.shares import Share, Shares
from aegisflux.domain.text import printable
from aegisflux.ports.bus import Message
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.lanes import Lane
from aegisflux.services.ingest.intake import Outcome
from aegisflux.services.ingest.letters import (
    BOOT,
    FORM,
    FORMAT,
    HOST,
    HTTP,
    INDEX,
    REASON,
    SUBJECT,
    TIME,
    Letters,
    Replayed,
)
from aegisflux.wire import subjects
from aegisflux.wire.events import Loose, decode_batch, encode_batch, encode_event
from aegisflux.wire.foreign import FORMATS
from aegisflux.wire.foreign.common import Record
from aegisflux.wire.foreign.records import split

MAX_POSTED = 50_000
MAX_NAMED = MAX_LETTERS = 1000
BATCH_EVENTS, BATCH_BYTES = 500, 256 << 10
FRAME_BYTES = 256
TURN = 200
AT_ONCE, EACH, IN_ALL = 4, 4, 16
LARGE_EACH, LARGE_IN_ALL = 2, 8  # they wait with their bodies
POSTED = Share(rate=float(2 << 20), burst=float(64 << 20))  # bytes of a host, decompressed
# What a request and a record cost at least: a request is a source of its own, which is a row for weeks.
REQUEST_BYTES, RECORD_BYTES = 64 << 10, 256
log = logs.get("posted")
Through = Callable[[Outcome, int], Awaitable[None]]


class Place(Struct, frozen=True):
    """A record that was refused, by its place in the request, from 0."""

    index: int
    reason: str


class Answer(Struct, frozen=True):
    """What became of a request. `id` is the boot id of its events; `refused` names the first 1000 of
    `refused_count`, and as many are kept as dead letters.
    """

    accepted: int
    refused: tuple[Place, ...]
    refused_count: int
    id: str


class Posted:
    """Requests of third parties, each host in turn: four at once, of large ones one."""

    def __init__(
        self, through: Through, letters: Letters, scarce: Shares, is_scarce: Callable[[], bool]
    ) -> None:
        self._through, self._letters = through, letters
        self._share, self._scarce, self._is_scarce = Shares(POSTED), scarce, is_scarce
        self._room = Lane("events", AT_ONCE, AT_ONCE, IN_ALL, EACH)
        self._large = Lane("large bodies of events", 1, 1, LARGE_IN_ALL, LARGE_EACH)

    @asynccontextmanager
    async def turn(self, host: str, *, large: bool) -> AsyncIterator[None]:
        """Its turn to be read and taken; `large` when its body is, or may become so. Raises Busy where too
        many of this host wait, or it posted more than its share."""
        if seconds := self._seconds(host):
            raise Busy(f"{host}: more than its share of events: try again in {seconds:.0f} s")
        async with (self._large if large else self._room).of(host):
            yield

    def _seconds(self, host: str) -> float:
        """Until the host may post again."""
        now = time.monotonic()
        scarce = self._scarce.wait(host, now) if self._is_scarce() else 0.0
        return max(self._share.wait(host, now), scarce)

    def _use(self, host: str, size: int) -> None:
        now = time.monotonic()
        self._share.use(host, float(size), now)
        if self._is_scarce():
            self._scarce.use(host, float(size), now)

    async def take(
        self, body: bytes, content_type: str, form: str, host: str, key: str, now_ns: int
    ) -> Answer:
        """Events of a request of the host's token; raises Invalid or OverLimit when nothing of it can be
        read, Unavailable when not all is stored: sent again, it adds what is missing.
        """
        if form not in FORMATS:
            raise Invalid("format", " or ".join(FORMATS), form)
        boot = boot_of(key, body)
        self._use(host, max(len(body), REQUEST_BYTES))
        events: list[Event] = []
        bad: list[tuple[int, Record, str]] = []
        for index, record in enumerate(split(body, content_type, form)):
            if index >= MAX_POSTED:
                raise OverLimit("posted_events", MAX_POSTED, index + 1, "request")
            read = _read(record, form, index, now_ns)
            if isinstance(read, str):
                bad.append((index, record, read))
            else:
                events.append(read)
            if index % TURN == TURN - 1:
                await asyncio.sleep(0)
        more = RECORD_BYTES * (len(events) + len(bad)) - len(body)
        self._use(host, max(0, more))
        for outcome in batches(events, host, boot, now_ns):
            await self._through(outcome, now_ns)
        for index, record, reason in bad[:MAX_LETTERS]:
            await self._bury(host, boot, form, index, record, reason, now_ns)
        metrics.intake_refused.inc(len(bad))
        named = tuple(Place(index, reason) for index, _, reason in bad[:MAX_NAMED])
        return Answer(len(events), named, len(bad), boot)

    async def again(self, message: Message, dry_run: bool, now_ns: int) -> Replayed:
        """A letter of a request, read once more."""
        given = message.headers
        record = Record(message.payload, given[FORM])
        read = _read(record, given[FORMAT], int(given[INDEX]), now_ns)
        if isinstance(read, str):
            if dry_run:
                return Replayed(message.sequence, subjects.RAW, True, 0, (read,))
            raise Refused(f"dead letter {message.sequence}: {read}")
        if not dry_run:
            for outcome in batches([read], given[HOST], given[BOOT], now_ns):
                await self._through(outcome, now_ns)
        return Replayed(message.sequence, subjects.RAW, dry_run, 1, ())

    async def _bury(
        self, host: str, boot: str, form: str, index: int, record: Record, reason: str, now_ns: int
    ) -> None:
        headers = {REASON: reason, SUBJECT: "", HOST: host, TIME: str(now_ns), BOOT: boot}
        headers |= {FORMAT: form, FORM: record.form, INDEX: str(index)}
        await self._letters.bury(HTTP, record.data, headers)


def boot_of(key: str, body: bytes) -> str:
    """Of a request. Another body under the same key is another one: its events are not taken for known."""
    told = sha256(key.encode()).digest() if key else b""
    return "http:" + sha256(told + body).hexdigest()[:32]


def _read(record: Record, form: str, index: int, now_ns: int) -> Event | str:
    """The event of a record, or why there is none."""
    try:
        event = FORMATS[form].event(record, index + 1, now_ns)
    except Refused as error:
        return str(error)
    except Exception as error:  # a defect of a reader: this record is refused, and the others are not
        log.exception("a record cannot be read", format=form, index=index)
        return f"record: it cannot be read as {form}: {type(error).__name__}: {printable(str(error))[:200]}"
    if len(encode_event(event)) > MAX_BATCH_BYTES - FRAME_BYTES:
        return f"event: over the limit batch_bytes: at most {MAX_BATCH_BYTES}"
    return intake.clamp(event, now_ns) if intake.is_ahead(event, now_ns + intake.FUTURE_NS) else event


def batches(events: Sequence[Event], host: str, boot: str, now_ns: int) -> Iterator[Outcome]:
    """Events of one request as batches of the bus; the same ones each time that it comes."""
    held: list[Event] = []
    size = 0
    for event in events:
        length = len(encode_event(event))
        if held and (len(held) == BATCH_EVENTS or size + length > BATCH_BYTES):
            yield _outcome(held, host, boot, now_ns)
            held, size = [], 0
        held.append(event)
        size += length
    if held:
        yield _outcome(held, host, boot, now_ns)


def _outcome(events: Sequence[Event], host: str, boot: str, now_ns: int) -> Outcome:
    raws = tuple(Raw(encode_event(event)) for event in events)
    data = encode_batch(Loose(host_id=host, boot_id=boot, sent_ns=now_ns, events=raws))
    batch: EventBatch = decode_batch(data)
    return Outcome(data, batch, clamped=sum(event.clamped for event in events))
