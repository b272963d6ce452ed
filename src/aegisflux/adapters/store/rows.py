"""Enriched events as PostgreSQL's binary COPY: one row for each event.

What flows repeat (who, with whom, where) is encoded once and remembered; a row is one pack of its numbers.
The order of the columns is that of migration 0002.
"""

import struct
from functools import lru_cache
from typing import Any, Final

import msgspec

from aegisflux.domain.enriched import Context, Enriched
from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import Auth, Event, Exec, Exit, File, FlowSeen, Listen, Log, VerdictSeen
from aegisflux.domain.net import parse_address

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01, from which PostgreSQL counts
SHAPES: Final = 65_536
REMEMBERED: Final = 128  # characters of a text that is worth it
NULL: Final = b"\xff\xff\xff\xff"
_AF_INET, _AF_INET6 = 2, 3  # PGSQL_AF_INET and PGSQL_AF_INET6
_FLOW: Final = struct.Struct(">h iq ii iq iq iq iq iq iq iq").pack
_EVENT: Final = struct.Struct(">h iq ii iq").pack
_LENGTH: Final = struct.Struct(">i").pack
_INT2, _INT4, _INT8 = (struct.Struct(form).pack for form in (">ih", ">ii", ">iq"))
_JSON: Final = msgspec.json.Encoder()
FLOW_COLUMNS, EVENT_COLUMNS = 23, 10


def microseconds(time_ns: int) -> int:
    """A time as PostgreSQL stores it."""
    return time_ns // 1000 - EPOCH_US


class Rows:
    """Rows of one COPY for each table, gathered event by event."""

    def __init__(self) -> None:
        self.flows: list[bytes] = []
        self.events: list[bytes] = []

    def add(self, source: int, enriched: Enriched) -> None:
        """The row of an event."""
        event = enriched.event
        if type(event) is FlowSeen:
            self.flows.append(_flow(source, event, enriched.context))
        else:
            self.events.append(_event(source, enriched))


def copied(rows: list[bytes]) -> bytes:
    """Rows as a COPY."""
    return b"".join((HEADER, *rows, TRAILER))


_shapes: dict[tuple[object, ...], bytes] = {}


def _flow(source: int, event: FlowSeen, context: Context) -> bytes:
    key = (
        event.direction, event.verdict, event.reason, event.proto, event.local, event.peer, event.port,
        event.cgroup, event.path, context.path, context.service_id, context.peer_service_id,
        context.peer_host, context.package,
    )  # fmt: skip
    shape = _shapes.get(key)
    if shape is None:
        if len(_shapes) >= SHAPES:
            _shapes.clear()
        shape = _shapes[key] = _shape(event, context)
    # fmt: off
    numbers = _FLOW(
        FLOW_COLUMNS,
        8, event.last_ns // 1000 - EPOCH_US, 4, source, 8, event.seq, 8, event.first_ns // 1000 - EPOCH_US,
        8, event.connections, 8, event.packets_out, 8, event.packets_in,
        8, event.bytes_out, 8, event.bytes_in,
    )
    # fmt: on
    return numbers + shape


def _shape(event: FlowSeen, context: Context) -> bytes:
    package = context.package
    return b"".join(
        (
            text(event.direction),
            text(event.verdict),
            text(event.reason),
            _INT2(2, event.proto),
            inet(event.local),
            inet(event.peer),
            _INT4(4, event.port),
            _int8(context.service_id),
            _int8(context.peer_service_id),
            text(context.peer_host),
            text(context.peer_class or ""),
            text(event.cgroup),
            text(event.path or context.path),
            text(f"{package.name} {package.version}" if package else ""),
        )
    )


def _event(source: int, enriched: Enriched) -> bytes:
    event, context = enriched.event, enriched.context
    pid, path, user, peer = _facets(event, context)
    body = _body(enriched)
    return b"".join(
        (
            _EVENT(EVENT_COLUMNS, 8, event.time_ns // 1000 - EPOCH_US, 4, source, 8, event.seq),
            text(str(type(event).__struct_config__.tag)),
            _int8(context.service_id),
            _int8(pid or None),
            text(path),
            text(user),
            inet(peer) if peer else NULL,
            _LENGTH(len(body) + 1),
            b"\1",
            body,
        )
    )


Facets = tuple[int, str, str, str | None]


def _facets(event: Event, context: Context) -> Facets:
    """What people filter by: process, path, user, peer."""
    match event:
        case Exec():
            return event.pid, event.path, str(event.uid), None
        case Exit():
            return event.pid, event.path or context.path, "", None
        case Listen():
            return event.pid, event.path or context.path, "", event.address
        case VerdictSeen():
            return 0, "", "", event.peer
        case Auth():
            return event.pid, "", event.user, event.address
        case File():
            return event.pid, event.path, "" if event.uid is None else str(event.uid), None
        case Log():
            return event.pid, event.exe, "", None
    return 0, "", "", None


def _body(enriched: Enriched) -> bytes:
    """The event and its context as JSON; NUL, which jsonb cannot hold, is written `\\0`."""
    body = _JSON.encode(enriched)
    if b"\\u0000" in body:
        body = _JSON.encode(_without_nul(msgspec.to_builtins(enriched)))
    return body


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\\0")
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nul(item) for item in value]
    return value


def text(value: str) -> bytes:
    """A text field."""
    return _remembered(value) if len(value) <= REMEMBERED else _encoded(value)


@lru_cache(maxsize=65_536)
def _remembered(value: str) -> bytes:
    return _encoded(value)


def _encoded(value: str) -> bytes:
    raw = value.replace("\0", "\\0").encode("utf-8", "backslashreplace")
    return _LENGTH(len(raw)) + raw


@lru_cache(maxsize=65_536)
def inet(value: str) -> bytes:
    """An address field; NULL for what is no address."""
    try:
        address = parse_address(value)
    except Invalid:
        return NULL
    raw, family = address.packed(), _AF_INET if address.family == 4 else _AF_INET6
    return _LENGTH(4 + len(raw)) + bytes((family, 8 * len(raw), 0, len(raw))) + raw


def _int8(value: int | None) -> bytes:
    return NULL if value is None else _INT8(8, value)
