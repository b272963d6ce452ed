"""Maps of MessagePack that mean one thing: a key that comes twice is refused with its path, as in JSON."""

from typing import Any, Final

import msgspec

from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import Invalid
from aegisflux.domain.paths import step

# Head byte: how many bytes say the length, and what follows beside that many bytes.
_SIZED: Final = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
                 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}  # fmt: skip
_FIXED: Final = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1,
                 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}  # fmt: skip
_MANY: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # length bytes, values for each item


def parse(data: bytes, what: str = "a MessagePack value") -> Any:
    """Return what bytes of MessagePack say; raises Invalid, by path where a key comes twice."""
    try:
        found = msgspec.msgpack.decode(data)
        # What is written as we would write it has each key once. Only else it is read byte by byte.
        if msgspec.msgpack.encode(found) != data:
            _walk(data, 0, "")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise Invalid("", what, in_words(error)) from None
    return found


def _walk(data: bytes, at: int, path: str) -> int:
    """Where the value that begins at a byte ends; raises Invalid where a map in it has a key twice."""
    head = data[at]
    at += 1
    if head < 0x80 or head >= 0xE0:
        return at
    if 0xA0 <= head <= 0xBF:
        return at + (head & 31)
    if head in _FIXED:
        return at + _FIXED[head]
    if head in _SIZED:
        width, more = _SIZED[head]
        return at + width + more + int.from_bytes(data[at : at + width], "big")
    if head in _MANY:
        width, each = _MANY[head]
        count, at = int.from_bytes(data[at : at + width], "big"), at + width
    else:
        count, each = head & 15, 2 if head < 0x90 else 1
    return _walk_map(data, at, count, path) if each == 2 else _walk_list(data, at, count, path)


def _walk_list(data: bytes, at: int, count: int, path: str) -> int:
    for n in range(count):
        at = _walk(data, at, step(path, n))
    return at


def _walk_map(data: bytes, at: int, count: int, path: str) -> int:
    seen: set[Any] = set()
    for _ in range(count):
        end = _walk(data, at, path)
        key = msgspec.msgpack.decode(data[at:end])
        inner = step(path, str(key))
        if key in seen:
            raise Invalid(inner, "each key of a map once", f"the key {key!r} twice")
        seen.add(key)
        at = _walk(data, end, inner)
    return at
