"""Our own events as others may send them: as `domain.event` has them; the sequence is given here."""

from aegisflux.domain.decoding import converted
from aegisflux.domain.event import Event
from aegisflux.wire.foreign.common import Record, document


def event(record: Record, seq: int, now_ns: int) -> Event:
    """The event; its `time_ns` is the time of arrival where it has none."""
    value = document(record)
    found: Event = converted({"time_ns": now_ns, **value, "seq": seq, "clamped": False}, Event)
    return found
