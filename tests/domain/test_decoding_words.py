"""No message has the words of the library that decodes: it says what was expected, where, and what came."""

import subprocess
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from aegisflux.domain.decoding import converted, in_words
from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import Event
from aegisflux.domain.names import close

RAW = ("`", "$", "Invalid enum value", "Invalid value", "Object contains", "Object missing", "`str`")


class Inner(Struct, frozen=True, forbid_unknown_fields=True):
    word: Literal["egress", "ingress"] = "egress"
    count: Annotated[int, Meta(ge=1, le=9)] = 1


class Outer(Struct, forbid_unknown_fields=True):
    need: int
    share: float = 0.5
    flag: bool = True
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: dict[str, int] = {}


TABLE = [
    ({}, "need: expected a value (the field is required)"),
    ({"need": "1"}, "need: expected an integer, got "),
    ({"need": 1, "share": "x"}, "share: expected a number, got "),
    ({"need": 1, "flag": 3}, "flag: expected true or false, got "),
    ({"need": 1, "inner": 3}, "inner: expected an object, got "),
    ({"need": 1, "inner": {"word": "in"}}, "inner.word: expected one of egress, ingress, got "),
    ({"need": 1, "inner": {"wrod": "in"}}, "inner.wrod: expected no such field"),
    ({"need": 1, "inner": {"count": 0}}, "inner.count: expected an integer >= 1"),
    ({"need": 1, "many": [{}, {"count": 10}]}, "many[1].count: expected an integer <= 9"),
    ({"need": 1, "named": {"a": "x"}}, "named"),
    (3, "expected an object, got "),
]


@pytest.mark.parametrize(("raw", "message"), TABLE)
def test_what_is_converted(raw, message):
    with pytest.raises(Invalid) as refused:
        converted(raw, Outer)
    _said(str(refused.value), message)


@pytest.mark.parametrize(("raw", "message"), TABLE)
@pytest.mark.parametrize("form", [msgspec.msgpack, msgspec.json])
def test_what_is_decoded(raw, message, form):
    with pytest.raises(msgspec.ValidationError) as broken:
        form.decode(form.encode(raw), type=Outer)
    _said(in_words(broken.value, Outer), message)
    _said(in_words(broken.value), message.split("one of")[0])


def _said(text, message):
    assert text.startswith(message)
    assert not [word for word in RAW if word in text], text


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80junk", b"\xa1\xff"])
def test_bytes_that_are_no_value_are_told_as_they_are(data):
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)) as broken:
        msgspec.msgpack.decode(data, type=Outer)
    assert in_words(broken.value, Outer)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"type": "exce"}, "type: expected one of "),
        ({"type": 3}, "type: expected "),
        ({}, "type: expected a value"),
    ],
)
def test_kinds_of_events_are_named(raw, message):
    with pytest.raises(Invalid) as refused:
        converted(raw, Event)
    _said(str(refused.value), message)


@pytest.mark.parametrize(
    ("name", "meant"), [("DB", "db"), ("Web", "web"), ("db", "DB"), ("WBE", "web"), ("Frontend", "front-end")]
)
def test_the_case_of_a_name_hides_no_other_one(name, meant):
    assert close(name, [meant, "zzz"]) == f"; did you mean {meant}?"


def test_nobody_tells_the_words_of_the_library():
    """Where a handler of what cannot be decoded makes text of the error it is `in_words` or `converted`."""
    folder = Path(__file__).resolve().parents[2] / "src"
    found = subprocess.run(
        [
            "grep",
            "-rnE",
            "-A2",
            r"except .*(BROKEN|ValidationError|MsgspecError).* as \w+",
            "--include=*.py",
            ".",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line for line in found.stdout.splitlines() if ": {err" in line or "str(err" in line]
    assert told == [line for line in told if "== message" in line or "json_text" in line]
