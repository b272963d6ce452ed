"""JSON that means one thing: what two readers could understand differently is refused, with its path.

RFC 8259 leaves open what an object means that has a key twice; here it has no meaning. Neither have a byte
order mark, NaN and Infinity, numbers that no double holds, half a surrogate pair, or text that is not UTF-8.
"""

import json
import re
from typing import Any, Final

import msgspec

from aegisflux.domain.errors import BROKEN, Invalid
from aegisflux.domain.paths import step

_BOM: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_BYTE: Final = re.compile(r"\(byte ([0-9]+)\)")
_APART: Final = re.compile(rb'"[ \t\r\n]+:')


class _Doubled(dict[str, Any]):
    """An object that has a key more than once: `key`."""

    key = ""


def parse(body: bytes, path: str = "", what: str = "a JSON document", most: int | None = None) -> Any:
    """Return what a JSON text says; raises Invalid by the path of what is wrong in it, below `path`.

    most: how many values it may have. Values take up to 50 times the room of their text, and the time in
    which they are read is one in which nothing else runs, so that a bound of bytes alone bounds neither.
    """
    if most is not None and _marks(body) > most:
        raise Invalid(path, f"{what} of at most {most} values", "more")
    if body.startswith(_BOM):
        raise Invalid(path, f"{what} in UTF-8 without a byte order mark", body[:3].hex(" "))
    if not body.strip(b" \t\r\n"):
        raise Invalid(path, what, "nothing")
    try:
        found = msgspec.json.decode(body)
    except BROKEN as error:
        raise Invalid(path, what, _reason(error)) from None
    if not _surely_single(body, found):
        _check_keys(body, path, what)
    return found


def require_no_nul(body: bytes, found: Any) -> None:
    """Raise Invalid by the path of a text, or a key, of a parsed body that holds the character NUL, which no
    store of texts takes."""
    if b"\\u0000" not in body:
        return
    waiting = [(found, "")]
    while waiting:
        value, path = waiting.pop()
        if isinstance(value, dict):
            for key in value:
                if "\0" in key:
                    raise Invalid(path, "keys without the character NUL", key)
            waiting += [(item, step(path, key)) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(item, step(path, n)) for n, item in enumerate(value)]
        elif isinstance(value, str) and "\0" in value:
            raise Invalid(path, "text without the character NUL", value)


def _marks(body: bytes) -> int:
    """No less than how many values there are but one; marks in texts count too."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _surely_single(body: bytes, found: Any) -> bool:
    """Whether it is certain that no key comes twice, found out by counting, which is fast.

    Without a backslash, `":` ends a key or begins a string with a colon, and nothing else. A key that comes
    twice is missing from what was read, so that the same count of what is written from it is lower.
    """
    if b"\\" in body or _APART.search(body):
        return False
    return body.count(b'":') == msgspec.json.encode(found).count(b'":')


def _check_keys(body: bytes, path: str, what: str) -> None:
    doubled = False

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal doubled
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        doubled = True
        marked, seen = _Doubled(found), set[str]()
        marked.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return marked

    try:
        tree = json.JSONDecoder(object_pairs_hook=made).decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise Invalid(path, what, _reason(error)) from None
    if doubled:
        at, key = _first_doubled(tree, path)
        raise Invalid(step(at, key), "each key of an object once", f"the key {key!r} twice")


def _first_doubled(value: Any, path: str) -> tuple[str, str]:
    """The path and the key of the first object that has a key twice, from outside to inside."""
    waiting = [(value, path)]
    while waiting:
        value, path = waiting.pop()
        if isinstance(value, _Doubled):
            return path, value.key
        if isinstance(value, dict):
            waiting += [(item, step(path, key)) for key, item in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(item, step(path, n)) for n, item in reversed(list(enumerate(value)))]
    raise AssertionError("no key comes twice")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "one that is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"bytes that are not UTF-8 at byte {error.start}"
    if isinstance(error, msgspec.DecodeError) and "truncated" in str(error):
        return "one that ends too early"
    found = _BYTE.search(str(error))
    return f"text that is no JSON at byte {found[1]}" if found else "text that is no JSON"
