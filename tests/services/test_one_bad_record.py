"""One record that cannot be read leaves the others of its request, whatever is wrong with it."""

import json

import pytest

from aegisflux.domain.errors import Refused
from aegisflux.services.ingest import posted
from aegisflux.wire.foreign import FORMATS
from aegisflux.wire.foreign.records import split

NOW = 1_800_000_000 * 10**9
GOOD = {
    "process_exec": {"process": {"pid": 1, "uid": 0, "binary": "/b", "start_time": "2026-11-20T12:00:00Z"}},
    "time": "2026-11-20T12:00:00Z",
}
KPROBE = {"process": {"pid": 1, "binary": "/b"}, "function_name": "f"}


def read(body, form="tetragon", kind="application/json"):
    """Per record: an event, or why there is none."""
    return [posted._read(record, form, i, NOW) for i, record in enumerate(split(body, kind, form))]


@pytest.mark.parametrize("args", [-1, 1e308, True, "x", {"a": 1}, None, [None, 1, []]])
def test_an_element_with_strange_arguments_is_read_or_refused_alone(args):
    bad = {"process_kprobe": KPROBE | {"args": args}, "time": "2026-11-20T12:00:00Z"}
    first, _, last = read(json.dumps([GOOD, bad, GOOD]).encode())
    assert (first.path, last.path) == ("/b", "/b")


@pytest.mark.parametrize(
    "bad", [b'"\xff"', b'{"time": "\xed\xa0\x80"}', b'"\\ud800"', b"[[[]]]", b'{"process_exec": "\xc3"}']
)
def test_an_element_that_is_no_text_leaves_the_others_of_the_array(bad):
    good = json.dumps(GOOD).encode()
    first, refused, last = read(b"[" + good + b"," + bad + b" ," + good + b"]")
    assert (first.path, last.path) == ("/b", "/b")
    assert isinstance(refused, str)


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("\x1b[31m"), ValueError("y"), OverflowError(), RecursionError()]
)
def test_a_defect_of_a_reader_refuses_one_record(monkeypatch, error):
    reader = FORMATS["tetragon"]

    class Fails:
        def event(self, record, seq, now_ns):
            if b"bad" in record.data:
                raise error
            return reader.event(record, seq, now_ns)

    monkeypatch.setitem(FORMATS, "tetragon", Fails())
    first, refused, last = read(json.dumps([GOOD, {"bad": 1}, GOOD]).encode())
    assert (first.path, last.path) == ("/b", "/b")
    assert type(error).__name__ in refused
    assert refused.isprintable()


@pytest.mark.parametrize("body", [b"[", b"[1 2]", b"[1,]", b"[\xff]"])
def test_what_is_no_array_is_refused(body):
    with pytest.raises(Refused):
        read(body)
