"""A body as records: lines, elements of a JSON array, or values of MessagePack. Lazy, so that a caller can
stop at a bound.
"""

import json
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, Invalid
from aegisflux.wire.foreign import auditd
from aegisflux.wire.foreign.common import Record

MAX_RECORD: Final = 512 << 10
TEXT_FORMATS: Final = ("auditd", "sshd")
MSGPACK: Final = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
_GAP: Final = re.compile(r"[ \t\r\n]*")
_SCAN: Final = json.JSONDecoder().raw_decode


def split(body: bytes, content_type: str, form: str) -> Iterator[Record]:
    """The records of a body; raises Invalid where it cannot be split."""
    kind = content_type.partition(";")[0].strip().lower()
    if form == "auditd":
        for group in auditd.grouped(_lines(body)):
            yield Record(group, "text")
    elif form in TEXT_FORMATS:
        for line in _lines(body):
            yield Record(line, "text")
    elif kind in MSGPACK:
        yield from _unpacked(body)
    elif body.lstrip()[:1] == b"[":
        yield from _elements(body)
    elif kind == "application/json" and _is_object(body):
        yield Record(body.strip(), "json")
    else:
        for line in _lines(body):
            yield Record(line, "json")


def _lines(body: bytes) -> Iterator[bytes]:
    """Lines that are not empty."""
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        line = body[start:end].strip()
        if line:
            yield line
        start = end + 1


def _is_object(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except BROKEN:
        return False
    return True


def _elements(body: bytes) -> Iterator[Record]:
    """Elements of a JSON array, one at a time: an array of millions of zeros is not built."""
    text = body.decode("utf-8", "surrogateescape")  # bytes that are no text are the fault of their element
    at = _gap(text, _gap(text, 0) + 1)
    if text[at : at + 1] == "]":
        return
    while True:
        try:
            _, end = _SCAN(text, at)
        except (ValueError, RecursionError) as error:
            raise Invalid("body", "a JSON array", str(error)[:200]) from None
        yield Record(text[at:end].encode("utf-8", "surrogateescape"), "json")
        at = _gap(text, end)
        mark, at = text[at : at + 1], _gap(text, at + 1)
        if mark == "]" and at == len(text):
            return
        if mark != ",":
            raise Invalid("body", "a JSON array", f"{mark!r} after an element")


def _gap(text: str, at: int) -> int:
    found = _GAP.match(text, at)
    return found.end() if found else at


def _unpacked(body: bytes) -> Iterator[Record]:
    """Maps of an array; a single map is one record."""
    head = body[:1]
    if head and (0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        yield Record(body, "msgpack")
        return
    bounded = 50_001  # a caller refuses more, and an array of nothing but nil is not built
    count = _array_length(body)
    if count > bounded:
        raise Invalid("body", f"an array of at most {bounded - 1}", count)
    try:
        found = msgspec.msgpack.decode(body, type=list[msgspec.Raw])
    except BROKEN as error:
        raise Invalid("body", "an array of MessagePack", in_words(error)) from None
    for raw in found:
        yield Record(bytes(raw), "msgpack")


def _array_length(body: bytes) -> int:
    head = body[0] if body else 0
    if 0x90 <= head <= 0x9F:
        return head & 15
    if head in (0xDC, 0xDD):
        return int.from_bytes(body[1 : 3 if head == 0xDC else 5], "big")
    raise Invalid("body", "an array of MessagePack", body[:8])
