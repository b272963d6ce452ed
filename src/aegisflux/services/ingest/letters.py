"""Dead letters: what was refused, with the reason and its bytes; looked at, and put in again."""

import base64
from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

from aegisflux.domain.errors import BROKEN, AegisError, Invalid, NotFound, Refused
from aegisflux.ports.bus import Bus, Message
from aegisflux.runtime import metrics
from aegisflux.runtime.letters import letter_room
from aegisflux.services.ingest.intake import check
from aegisflux.wire import subjects
from aegisflux.wire.foreign import FORMATS

STREAM = subjects.stream_of(subjects.dead("x")).name
HTTP = subjects.HTTP
REASON, SUBJECT, HOST, TIME = "Aegisflux-Reason", "Aegisflux-Subject", "Aegisflux-Host", "Aegisflux-Time"
FORMAT, FORM, BOOT, INDEX = "Aegisflux-Format", "Aegisflux-Form", "Aegisflux-Boot", "Aegisflux-Index"
REASON_CHARS = 500
SHOWN_BYTES = 256 << 10


class Letter(Struct, frozen=True):
    """A dead letter in a list. `time_ns` is when it was refused, `subject` where it came from."""

    id: int
    time_ns: int
    stream: str
    subject: str
    host_id: str
    reason: str
    size: int


class Page(Struct, frozen=True):
    """Dead letters, oldest first; `next_cursor` is the `cursor` of the next page."""

    items: tuple[Letter, ...]
    next_cursor: int | None


class Whole(Struct, frozen=True):
    """A dead letter with its bytes (base64), and what they say where they can be read."""

    letter: Letter
    headers: dict[str, str]
    payload: str
    decoded: Any = None


class Replayed(Struct, frozen=True):
    """What became of a letter, or (`dry_run`) what would: how many of its events go on, and why the others
    do not. `sequence` is its place in the stream of its subject.
    """

    id: int
    subject: str
    dry_run: bool
    accepted: int
    refused: tuple[str, ...]
    sequence: int | None = None


Again = Callable[[Message, bool, int], Awaitable[Replayed]]


class Letters:
    """Dead letters of the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._room = letter_room("ingest")
        self.posted: Again | None = None

    async def bury(self, stream: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Keep what was refused; the same bytes for the same reason are kept once, for a while. Of a host
        that used up its share of letters nothing is kept, and that is counted."""
        metrics.dead_letters.inc()
        if not self._room.take(headers.get(HOST, ""), len(payload)):
            return
        reason = " ".join(headers[REASON].split())[:REASON_CHARS]
        told = {**headers, REASON: reason}
        digest = blake2b(payload + reason.encode(), digest_size=12).hexdigest()
        msg_id = f"dead:{headers.get(HOST, '')}:{headers.get(BOOT, '')}:{headers.get(INDEX, '')}:{digest}"
        where = subjects.dead(stream)
        await self._bus.publish(where, payload[: subjects.MAX_LETTER], msg_id=msg_id, headers=told)

    async def page(self, stream: str | None, after: int, limit: int) -> Page:
        """Letters above an id, of one stream or all; raises Invalid for a stream that is none."""
        if stream is not None and stream not in subjects.DEAD_STREAMS:
            raise Invalid("stream", " or ".join(subjects.DEAD_STREAMS), stream)
        subject = subjects.dead(stream) if stream is not None else ">"
        found = await self._bus.read(STREAM, after, limit, subject)
        more = len(found) == limit or (found and await self._bus.read(STREAM, found[-1].sequence, 1, subject))
        return Page(tuple(map(letter_of, found)), found[-1].sequence if more else None)

    async def one(self, number: int) -> Whole:
        """A letter; raises NotFound."""
        message = await self._message(number)
        shown = message.payload[:SHOWN_BYTES]
        return Whole(
            letter_of(message),
            dict(message.headers),
            base64.b64encode(message.payload).decode(),
            _decoded(message) if len(shown) == len(message.payload) else None,
        )

    async def replay(self, number: int, dry_run: bool, now_ns: int) -> Replayed:
        """Put a letter in again, through the checks of its way; raises NotFound or Refused."""
        message = await self._message(number)
        if message.headers.get(FORMAT) in FORMATS:
            assert self.posted is not None
            return await self.posted(message, dry_run, now_ns)
        subject = message.headers.get(SUBJECT, "")
        if subjects.matches(subjects.ALL_TELEMETRY, subject):
            outcome = check(message.payload, subjects.host_of(subject), now_ns)
            accepted = len(outcome.batch.events) if outcome.batch else 0
            reasons = tuple(refusal.reason for refusal in outcome.refused)
        elif subject == subjects.RAW or subjects.matches(subjects.ALL_INVENTORIES, subject):
            accepted, reasons = 1, ()
        else:
            raise Refused(f"dead letter {number}: what came on {subject or 'no subject'} is never replayed")
        if dry_run:
            return Replayed(number, subject, True, accepted, reasons)
        msg_id, marked = f"replay:{number}:{now_ns}", {"Aegisflux-Replay": str(number)}
        sequence = await self._bus.publish(subject, message.payload, msg_id=msg_id, headers=marked)
        return Replayed(number, subject, False, accepted, reasons, sequence)

    async def _message(self, number: int) -> Message:
        found = await self._bus.read(STREAM, number - 1, 1)
        if not found or found[0].sequence != number:
            raise NotFound(f"dead letter {number} does not exist, or is older than the bus keeps")
        return found[0]


def letter_of(message: Message) -> Letter:
    """A letter as it stands in a list."""
    given = message.headers
    subject = given.get(SUBJECT, "")
    try:
        host = given.get(HOST) or subjects.host_of(subject)
    except AegisError:
        host = ""
    stamp = given.get(TIME, "")
    return Letter(
        id=message.sequence,
        time_ns=int(stamp) if stamp.isdecimal() else message.stored_ns,
        stream=message.subject.rpartition(".")[2],
        subject=subject,
        host_id=host,
        reason=given.get(REASON, ""),
        size=len(message.payload),
    )


def _decoded(message: Message) -> Any:
    """What the bytes say: MessagePack, JSON or text; None where they are none of it."""
    try:
        if message.headers.get(FORM, "msgpack") == "msgpack":
            return _plain(msgspec.msgpack.decode(message.payload))
        if message.headers[FORM] == "json":
            return msgspec.json.decode(message.payload)
    except BROKEN:
        pass
    try:
        return message.payload.decode()
    except UnicodeDecodeError:
        return None


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    plain = msgspec.to_builtins(value, str_keys=True, builtin_types=())
    msgspec.json.encode(plain)
    return plain
