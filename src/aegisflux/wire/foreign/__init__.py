"""What people already have, as our events: each parser gives a typed event of a record, or says why not."""

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from aegisflux.domain.event import Event
from aegisflux.wire.foreign import auditd, falco, native, ocsf, sshd, tetragon
from aegisflux.wire.foreign.common import Record


class Format(Struct, frozen=True):
    """How records of a format are read: `event(record, seq, now_ns)` raises Invalid with the reason."""

    event: Callable[[Record, int, int], Event]


FORMATS: Final[dict[str, Format]] = {
    "native": Format(native.event),
    "falco": Format(falco.event),
    "tetragon": Format(tetragon.event),
    "auditd": Format(auditd.event),
    "sshd": Format(sshd.event),
    "ocsf": Format(ocsf.event),
}
