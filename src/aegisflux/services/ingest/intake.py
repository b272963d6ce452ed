"""One message of a host: what of it goes on, and what is refused with which reason. Pure."""

from collections.abc import Sequence
from typing import Final

from msgspec import Raw, Struct

from aegisflux.domain import intake
from aegisflux.domain.errors import AegisError, Invalid, Refused
from aegisflux.domain.event import EventBatch
from aegisflux.wire.events import (
    Loose,
    decode_batch,
    decode_event,
    decode_loose,
    encode_batch,
    encode_event,
    is_event,
)

BATCH: Final = -1
MAX_LETTERS: Final = 20  # of one message: each costs a publish


class Refusal(Struct, frozen=True):
    """Bytes that do not go on: one event as a batch of its own, or (`place` BATCH) the whole message. Of many
    refused events the last ones share a letter; `events` counts them.
    """

    place: int
    reason: str
    payload: bytes
    events: int = 1


class Outcome(Struct, frozen=True):
    """What becomes of a message. `payload` is None when nothing goes on; it is the very bytes that came
    when all is well. `batch` is the frame of what goes on, `clamped` counts the events with another time.
    """

    payload: bytes | None
    batch: EventBatch | None
    refused: tuple[Refusal, ...] = ()
    clamped: int = 0

    @property
    def msg_id(self) -> str:
        """The same for the same events of the same host, however often they come."""
        assert self.batch is not None
        events = self.batch.events
        return f"{self.batch.host_id}:{self.batch.boot_id}:{events[0].seq}-{events[-1].seq}:{len(events)}"


def check(data: bytes, host: str, arrival: int) -> Outcome:
    """Judge a message of the host that its subject proves; `arrival` in nanoseconds since the epoch."""
    try:
        batch = decode_batch(data)
    except Invalid:
        return _picked(data, host, arrival)
    except Refused as error:
        return _whole(data, error)
    try:
        return _judged(data, batch, host, arrival)
    except Refused as error:
        return _whole(data, error)


def _judged(data: bytes, batch: EventBatch, host: str, arrival: int) -> Outcome:
    judged = intake.judge(batch, host, arrival)
    return Outcome(data, batch) if judged.events is None else _remade(batch, judged)


def _whole(data: bytes, error: AegisError) -> Outcome:
    return Outcome(None, None, (Refusal(BATCH, str(error), data),))


def _remade(batch: EventBatch, judged: intake.Judged) -> Outcome:
    """The batch with what goes on of it, encoded anew."""
    refused = _letters(
        batch,
        [(place, Raw(encode_event(batch.events[place]))) for place, _ in judged.refused],
        [why for _, why in judged.refused[: MAX_LETTERS + 1]],
    )
    assert judged.events, "the first event of a batch always rises"
    made = _with(batch, judged.events)
    return Outcome(encode_batch(made), made, refused, judged.clamped)


def _picked(data: bytes, host: str, arrival: int) -> Outcome:
    """The slow way: event by event, as far as the frame is well."""
    try:
        loose = decode_loose(data)
        if loose.host_id != host:
            raise Invalid("host_id", f"{host}, which its subject proves", loose.host_id)
        good, refused = _events(loose)
        if not good:
            return Outcome(None, None, refused)
        # What goes on is decoded once more: whoever reads it later meets no surprise.
        made = encode_batch(_loose(loose, tuple(good)))
        remade = _judged(made, decode_batch(made), host, arrival)
    except Refused as error:
        return _whole(data, error)
    return Outcome(remade.payload, remade.batch, (*refused, *remade.refused), remade.clamped)


def _events(loose: Loose) -> tuple[list[Raw], tuple[Refusal, ...]]:
    good: list[Raw] = []
    refused: list[tuple[int, Raw]] = []
    for place, raw in enumerate(loose.events):
        if is_event(raw):
            good.append(raw)
        else:
            refused.append((place, raw))
    reasons = [_reason(raw) for _, raw in refused[: MAX_LETTERS + 1]]
    return good, _letters(loose, refused, reasons)


def _reason(raw: Raw) -> str:
    try:
        decode_event(raw)
    except Refused as error:
        return str(error)
    raise AssertionError("is_event says that it is none")


def _letters(
    frame: EventBatch | Loose, refused: Sequence[tuple[int, Raw]], reasons: Sequence[str]
) -> tuple[Refusal, ...]:
    """Refused events as batches that can be put in again, one each as long as they are few. There is a
    reason for each that has a letter of its own, and for the first of the rest."""
    alone, rest = refused[:MAX_LETTERS], refused[MAX_LETTERS:]
    letters = [
        Refusal(place, why, encode_batch(_loose(frame, (raw,))))
        for (place, raw), why in zip(alone, reasons, strict=False)
    ]
    if rest:
        together = encode_batch(_loose(frame, tuple(raw for _, raw in rest)))
        reason = f"{len(rest)} events; the first: {reasons[MAX_LETTERS]}"
        letters.append(Refusal(rest[0][0], reason, together, len(rest)))
    return tuple(letters)


def _loose(frame: EventBatch | Loose, events: tuple[Raw, ...]) -> Loose:
    lost = frame.lost if len(events) > 1 else {}  # counters once, not with each letter
    return Loose(
        host_id=frame.host_id, boot_id=frame.boot_id, sent_ns=frame.sent_ns, events=events, lost=lost
    )


def _with(frame: EventBatch, events: tuple[object, ...]) -> EventBatch:
    return EventBatch(
        host_id=frame.host_id,
        boot_id=frame.boot_id,
        sent_ns=frame.sent_ns,
        events=events,  # type: ignore[arg-type]
        lost=frame.lost,
    )
