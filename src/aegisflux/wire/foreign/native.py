"""Our own events as others may send them: as `domain.event` has them; the sequence is given here."""

import msgspec

from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import Event
from aegisflux.wire.foreign.common import Record, document


def event(record: Record, seq: int, now_ns: int) -> Event:
    """The event; its `time_ns` is the time of arrival where it has none."""
    value = document(record)
    try:
        found: Event = msgspec.convert({"time_ns": now_ns, **value, "seq": seq, "clamped": False}, Event)
    except (msgspec.ValidationError, TypeError) as error:
        raise Invalid("event", "an event of the schema", str(error)) from None
    return found
