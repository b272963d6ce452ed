"""Batches of events as bytes. Typed at once when all is well; one by one only when something is not."""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from aegisflux.domain.enriched import EnrichedBatch
from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.event import MAX_BATCH, MAX_BATCH_BYTES, BootId, Event, EventBatch
from aegisflux.domain.manifest import HostId

# ValidationError is a DecodeError; what msgspec raises for bad UTF-8 and for deep nesting is neither.
BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ENCODER: Final = msgspec.msgpack.Encoder()
_BATCH: Final = msgspec.msgpack.Decoder(EventBatch)
_EVENT: Final[msgspec.msgpack.Decoder[Event]] = msgspec.msgpack.Decoder(Event)
_ENRICHED: Final = msgspec.msgpack.Decoder(EnrichedBatch)


class Loose(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch whose events are not looked at yet."""

    host_id: HostId
    boot_id: BootId
    sent_ns: int
    events: tuple[Raw, ...]
    lost: dict[str, int] = {}


_LOOSE: Final = msgspec.msgpack.Decoder(Loose)


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
        raise Invalid("batch", "an EventBatch", str(error)) from None


def decode_loose(data: bytes) -> Loose:
    """A batch whose frame is well; raises OverLimit or Invalid."""
    if len(data) > MAX_BATCH_BYTES:
        raise OverLimit("batch_bytes", MAX_BATCH_BYTES, len(data), "events")
    try:
        loose = _LOOSE.decode(data)
    except BROKEN as error:
        raise Invalid("batch", "an EventBatch", str(error)) from None
    if not 1 <= len(loose.events) <= MAX_BATCH:
        raise OverLimit("batch_events", MAX_BATCH, len(loose.events), "events")
    return loose


def encode_event(event: Event) -> bytes:
    """One event as it stands in a batch."""
    return _ENCODER.encode(event)


def decode_event(data: bytes | Raw) -> Event:
    """One event; raises Invalid with the path of the field."""
    try:
        return _EVENT.decode(data)
    except BROKEN as error:
        raise Invalid("event", "an event of the schema", str(error)) from None


def encode_enriched(batch: EnrichedBatch) -> bytes:
    """An enriched batch as MessagePack."""
    return _ENCODER.encode(batch)


def decode_enriched(data: bytes) -> EnrichedBatch:
    """An enriched batch; raises Invalid."""
    try:
        return _ENRICHED.decode(data)
    except BROKEN as error:
        raise Invalid("batch", "an EnrichedBatch", str(error)) from None
