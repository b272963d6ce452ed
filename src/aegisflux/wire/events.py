"""Batches of events as bytes. Typed at once when all is well; one by one only when something is not."""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

from aegisflux.domain.bounds import BootId, Count, Name, Nanoseconds, Signed64
from aegisflux.domain.decoding import in_words
from aegisflux.domain.enriched import EnrichedBatch
from aegisflux.domain.errors import BROKEN, Invalid, OverLimit
from aegisflux.domain.event import MAX_BATCH, MAX_BATCH_BYTES, MAX_COUNTERS, Event, EventBatch
from aegisflux.domain.manifest import HostId

_ENCODER: Final = msgspec.msgpack.Encoder()
_BATCH: Final = msgspec.msgpack.Decoder(EventBatch)
_EVENT: Final[msgspec.msgpack.Decoder[Event]] = msgspec.msgpack.Decoder(Event)
_ENRICHED: Final = msgspec.msgpack.Decoder(tuple[EnrichedBatch, ...])


class Loose(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A batch whose events are not looked at yet."""

    host_id: HostId
    boot_id: BootId
    sent_ns: Nanoseconds
    events: Annotated[tuple[Raw, ...], Meta(min_length=1, max_length=MAX_BATCH)]
    lost: Annotated[dict[Name, Count], Meta(max_length=MAX_COUNTERS)] = {}


class _Counted(Struct, frozen=True, gc=False):
    """Of a batch, how many events it has."""

    events: tuple[Raw, ...]


class Taken(Struct, frozen=True, gc=False, array_like=True):
    """A batch that ingest let through: when it had it, and how far the host's clock is behind."""

    received_ns: Nanoseconds
    offset_ns: Signed64
    batch: EventBatch


class Sealed(Struct, frozen=True, gc=False, array_like=True):
    """The same with the batch as the bytes that came."""

    received_ns: Nanoseconds
    offset_ns: Signed64
    batch: Raw


_TAKEN: Final = msgspec.msgpack.Decoder(tuple[Taken, ...])
_LOOSE: Final = msgspec.msgpack.Decoder(Loose)
_COUNTED: Final = msgspec.msgpack.Decoder(_Counted)
LEAST_EVENT: Final = 64  # bytes


def encode_batch(batch: EventBatch | Loose) -> bytes:
    """A batch as MessagePack."""
    return _ENCODER.encode(batch)


def decode_batch(data: bytes) -> EventBatch:
    """A batch in which all is well; raises OverLimit or Invalid."""
    if len(data) > MAX_BATCH_BYTES:
        raise OverLimit("batch_bytes", MAX_BATCH_BYTES, len(data), "events")
    try:
        return _BATCH.decode(data)
    except BROKEN as error:
        raise Invalid("batch", "an EventBatch", in_words(error)) from None


def count_events(data: bytes) -> int:
    """How many events a message of a host has, without reading them; of one that is no batch, how many could
    be as long."""
    try:
        return len(_COUNTED.decode(data).events)
    except BROKEN:
        return 1 + len(data) // LEAST_EVENT


def decode_loose(data: bytes) -> Loose:
    """A batch whose frame is well; raises OverLimit or Invalid."""
    if len(data) > MAX_BATCH_BYTES:
        raise OverLimit("batch_bytes", MAX_BATCH_BYTES, len(data), "events")
    try:
        loose = _LOOSE.decode(data)
    except BROKEN as error:
        raise Invalid("batch", "an EventBatch", in_words(error)) from None
    if not 1 <= len(loose.events) <= MAX_BATCH:
        raise OverLimit("batch_events", MAX_BATCH, len(loose.events), "events")
    return loose


def encode_taken(batches: Iterable[Sealed]) -> bytes:
    """Batches that travel together."""
    return _ENCODER.encode(tuple(batches))


def decode_taken(data: bytes) -> tuple[Taken, ...]:
    """Batches that were let through; raises Invalid."""
    try:
        return _TAKEN.decode(data)
    except BROKEN as error:
        raise Invalid("batches", "batches that ingest let through", in_words(error)) from None


def encode_event(event: Event) -> bytes:
    """One event as it stands in a batch."""
    return _ENCODER.encode(event)


def decode_event(data: bytes | Raw) -> Event:
    """One event; raises Invalid with the path of the field."""
    try:
        return _EVENT.decode(data)
    except BROKEN as error:
        raise Invalid("event", "an event of the schema", in_words(error, Event)) from None


def is_event(data: bytes | Raw) -> bool:
    """Whether `decode_event` decodes it; what is wrong with it is not put in words, which costs most."""
    try:
        _EVENT.decode(data)
    except BROKEN:
        return False
    return True


def encode_enriched(batch: EnrichedBatch) -> bytes:
    """An enriched batch as it stands among others."""
    return _ENCODER.encode(batch)


def joined(encoded: Iterable[bytes]) -> bytes:
    """Encoded batches as one message."""
    return _ENCODER.encode(tuple(map(Raw, encoded)))


def decode_enriched(data: bytes) -> tuple[EnrichedBatch, ...]:
    """The enriched batches of a message; raises Invalid."""
    try:
        return _ENRICHED.decode(data)
    except BROKEN as error:
        raise Invalid("batches", "enriched batches", in_words(error)) from None
