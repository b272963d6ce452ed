"""What the parsers share: bounded texts, checked numbers, times. Foreign values are never trusted."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from aegisflux.domain import json_text
from aegisflux.domain.decoding import converted
from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import MAX_TEXT, Event
from aegisflux.domain.net import parse_address
from aegisflux.wire import msgpack_keys

NAME_CHARS: Final = 256
MAX_FIELDS: Final = 64
LONGEST: Final = (1 << 63) - 1
SECOND: Final = 1_000_000_000
Severity = Literal["info", "low", "medium", "high", "critical"]
E = TypeVar("E", bound=Event)
_STAMP: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9})\d*)?\s?(Z|UTC|[+-]\d\d:?\d\d)?", re.ASCII
)


class Record(Struct, frozen=True):
    """One record as it came; `form` is json, msgpack or text."""

    data: bytes
    form: str


def document(record: Record) -> dict[str, Any]:
    """The object that a record of JSON or MessagePack holds."""
    packed = record.form == "msgpack"
    value = msgpack_keys.parse(record.data) if packed else json_text.parse(record.data, what="a JSON object")
    if not isinstance(value, dict):
        raise Invalid("", "an object", value)
    return value


def line_of(record: Record) -> str:
    """The text of a record; bytes that are not UTF-8 stand as `\\xNN`."""
    return record.data.decode("utf-8", "backslashreplace")


def text(value: object, most: int = MAX_TEXT) -> str:
    """A value as bounded text; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    found = value if isinstance(value, str) else _shown(value)
    return found[:most].replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()[:most]


def name(value: object) -> str:
    """A value as a short text."""
    return text(value, NAME_CHARS)


def _shown(value: object) -> str:
    if isinstance(value, Mapping | list):
        try:
            return msgspec.json.encode(value).decode()
        except (TypeError, ValueError, RecursionError):
            return "?"
    return str(value)


def fields_of(values: Mapping[Any, object], skip: tuple[str, ...] = ()) -> dict[str, str]:
    """The first values as the fields of a Log."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if len(found) == MAX_FIELDS:
            break
        if key not in skip and value is not None:
            found[name(key)] = text(value)
    return found


def inner(value: object, *path: str) -> Any:
    """What lies at a path of objects; None where it ends."""
    for part in path:
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def number(value: object, most: int = LONGEST) -> int | None:
    """A whole number from 0 to `most`, also as digits; None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and 0 <= value <= most else None


def needed(value: object, path: str, most: int = LONGEST) -> int:
    """A whole number that must be there."""
    found = number(value, most)
    if found is None:
        raise Invalid(path, f"a number from 0 to {most}", value)
    return found


def address(value: object) -> str | None:
    """An IP address in its usual form; None where it is none."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        return str(parse_address(value.partition("%")[0], "address"))
    except (Invalid, ValueError):
        return None


def stamp(value: object, path: str) -> int:
    """An RFC 3339 time in nanoseconds since the epoch; without a zone it is UTC."""
    found = _STAMP.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise Invalid(path, "a time of RFC 3339", value)
    *parts, digits, zone = found.groups()
    try:
        whole = datetime(*map(int, parts), tzinfo=_zone(zone))  # type: ignore[misc,arg-type]
        seconds = (whole - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    except (ValueError, OverflowError):
        raise Invalid(path, "a time of RFC 3339", value) from None
    return within(seconds * SECOND + int((digits or "0").ljust(9, "0")), path)


def _zone(given: str | None) -> timezone:
    if given in (None, "Z", "UTC"):
        return UTC
    assert given is not None
    minutes = int(given[1:3]) * 60 + int(given[-2:])
    return timezone(timedelta(minutes=minutes if given[0] == "+" else -minutes))


def within(time_ns: int, path: str) -> int:
    """A time that an event can have."""
    if not 0 <= time_ns <= LONGEST:
        raise Invalid(path, "a time since 1970", time_ns)
    return time_ns


def checked(event: E) -> E:
    """The event when it is one of the schema; raises Invalid with the path of the field."""
    found: E = converted(msgspec.to_builtins(event), type(event))
    return found
