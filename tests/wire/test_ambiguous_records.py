"""Records that two readers could understand differently are refused one by one, with the path."""

import gzip
import json

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain import json_text
from aegisflux.domain.errors import Invalid, Refused
from aegisflux.services.ingest.body import plain
from aegisflux.wire import msgpack_keys
from aegisflux.wire.foreign.common import document
from aegisflux.wire.foreign.records import split

DOUBLED = [
    (b'{"a":1,"a":2}', "a: expected each key"),
    (b'{"a":{"b":[0,{"c":1,"d":2,"c":3}]}}', r"a.b\[1\].c: expected each key"),
    (b'{"a":1,"\\u0061":2}', "a: expected each key"),
    (b'{"a" :1,"a" :2}', "a: expected each key"),
    (b'{"x.y":{"z":1,"z":1}}', r'\["x.y"\].z: expected each key'),
    (b'{"\\ud83d\\ude00":1,"\xf0\x9f\x98\x80":2}', r"expected each key"),
    (b'\xef\xbb\xbf{"a":1}', "without a byte order mark"),
    (b'{"a":NaN}', "a JSON object"),
    (b'{"a":"\\ud800"}', "a JSON object"),
    (b'{"a":1e999}', "a JSON object"),
]


@pytest.mark.parametrize(("line", "words"), DOUBLED, ids=range(len(DOUBLED)))
def test_one_line_is_refused_and_the_others_are_read(line, words):
    good = b'{"a":1,"b":[{"a":1},{"a":2}]}'
    for body, kind in (
        (b"\n".join([good, line, good]), "application/x-ndjson"),
        (b"[" + b",".join([good, line, good]) + b"]", "application/json"),
    ):
        if kind == "application/json" and not words.endswith("each key"):
            continue  # an array of what is no JSON is refused whole
        first, bad, last = split(body, kind, "native")
        assert document(first) == document(last) == json.loads(good)
        with pytest.raises(Invalid, match=words):
            document(bad)


PACKED = [
    (b"\x82\xa1a\x01\xa1a\x02", "a: expected each key of a map once"),
    (b"\x82\xa1a\x01\xd9\x01a\x02", "a: expected each key of a map once"),
    (b"\x81\xa1b\x92\x00\x82\xa1c\xc0\xa1c\xc0", r"b\[1\].c: expected each key"),
    (b"\xde\x00\x02\xa1a\x01\xa1a\x02", "a: expected each key"),
    (b"\x82\x01\x01\xcc\x01\x02", "1: expected each key"),
    (b"\x81\xa1a", "truncated"),
    (b"\xc1", "a MessagePack value"),
    (b"\x81\xa1a\xa1\xff", "a MessagePack value"),
    (b"\x81\x80\x01", "a MessagePack value"),
    (b"\x91" * 5000 + b"\x00", "a MessagePack value"),
]


@pytest.mark.parametrize(("data", "words"), PACKED, ids=range(len(PACKED)))
def test_maps_of_messagepack_have_each_key_once(data, words):
    with pytest.raises(Invalid, match=words):
        msgpack_keys.parse(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_packed_otherwise_than_we_do_is_read_too(value):
    data = msgspec.msgpack.encode(value)
    assert msgpack_keys.parse(data) == value
    assert msgpack_keys._walk(data, 0, "") == len(data)


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.sampled_from([":", ":a", '"', "\\", '":'])
)
TREES = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(PLAIN.map(str), inner), max_leaves=20
)


@given(TREES, st.booleans(), st.sampled_from([(",", ":"), (", ", " : ")]))
def test_whatever_has_each_key_once_is_read(tree, escaped, separators):
    body = json.dumps(tree, ensure_ascii=escaped, separators=separators).encode()
    assert json_text.parse(body) == tree


@given(st.dictionaries(st.text(), TREES, min_size=1), st.data())
def test_no_key_that_comes_twice_passes(tree, data):
    again = data.draw(st.sampled_from(sorted(tree)))
    parts = [
        f"{json.dumps(k, ensure_ascii=False)}:{json.dumps(v, ensure_ascii=False)}" for k, v in tree.items()
    ]
    parts.insert(data.draw(st.integers(0, len(parts))), f"{json.dumps(again)}:{json.dumps(data.draw(TREES))}")
    with pytest.raises(Invalid, match="once"):
        json_text.parse(("[{" + ",".join(parts) + "}]").encode())


BODY = b'{"a":1}\n' * 4000
BROKEN = {
    "gzip, cut": ("gzip", gzip.compress(BODY)[:-9]),
    "gzip, a wrong sum": ("gzip", gzip.compress(BODY)[:-8] + bytes(8)),
    "gzip, its head alone": ("gzip", gzip.compress(BODY)[:5]),
    "gzip, something behind": ("gzip", gzip.compress(BODY) + b"x"),
    "gzip that is none": ("gzip", BODY),
    "zstd, cut": ("zstd", zstandard.compress(BODY)[:-3]),
    "zstd, its head alone": ("zstd", zstandard.compress(BODY)[:5]),
    "zstd, a second one cut": ("zstd", zstandard.compress(BODY) + zstandard.compress(BODY)[:-3]),
    "zstd, something behind": ("zstd", zstandard.compress(BODY) + b"x"),
    "zstd that is none": ("zstd", BODY),
    "zstd, a window without bound": ("zstd", zstandard.compress(BODY)[:4] + b"\x00\xff" + bytes(20)),
}


@pytest.mark.parametrize(("encoding", "body"), BROKEN.values(), ids=BROKEN.keys())
def test_a_body_that_is_cut_or_broken_is_refused_whole(encoding, body):
    """Of a zstd frame that was cut the part that had come was taken for all of it."""
    with pytest.raises(Refused):
        plain(body, encoding)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_whole_bodies_are_read(frames):
    assert plain(gzip.compress(BODY) * frames, "gzip") == BODY * frames
    assert plain(zstandard.compress(BODY) * frames, "zstd") == BODY * frames
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(BODY)
    assert plain(streamed * frames, "zstd") == BODY * frames
