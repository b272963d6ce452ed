"""What a compressed body costs is bounded by its bytes, however its parts lie."""

import gzip
import time
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.services.ingest.body import MAX_PARTS, MAX_PLAIN, plain

ZSTD = zstandard.ZstdCompressor()


def zipped(data: bytes, level: int = 1) -> bytes:
    return gzip.compress(data, level, mtime=0)


COMPRESS = {"gzip": zipped, "zstd": ZSTD.compress}
BOMBS = {
    "200,000 empty members": ("gzip", zipped(b"") * 200_000, "compressed_parts"),
    "700,000 empty frames": ("zstd", ZSTD.compress(b"") * 700_000, "compressed_parts"),
    "members of a byte": ("gzip", zipped(b"x") * 100_000, "compressed_parts"),
    "frames of a byte": ("zstd", ZSTD.compress(b"x") * 100_000, "compressed_parts"),
    "empty ones before a large one": ("gzip", zipped(b"") * 5000 + zipped(b"x" * 9999), "compressed_parts"),
    "stored blocks without a byte": (
        "gzip",
        b"\x1f\x8b\x08" + bytes(6) + b"\xff" + b"\x00\x00\x00\xff\xff" * 3_000_000,
        "a whole gzip stream",
    ),
    "one large member": ("gzip", zipped(bytes(MAX_PLAIN + 1)), "decompressed"),
    "one large frame": ("zstd", ZSTD.compress(bytes(MAX_PLAIN + 1)), "decompressed"),
    "skippable frames": ("zstd", (b"\x50\x2a\x4d\x18" + bytes(4)) * 500_000, "compressed_parts"),
}  # fmt: skip


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_refused_before_it_costs_much(what):
    encoding, body, words = BOMBS[what]
    assert len(body) <= 16 << 20, "no larger one comes"
    began = time.process_time()
    with pytest.raises((OverLimit, Invalid), match=words):
        plain(body, encoding)
    assert time.process_time() - began < 5, "it took 33 s"


@pytest.mark.parametrize("encoding", COMPRESS)
def test_as_many_parts_as_tools_make_are_read(encoding):
    one = COMPRESS[encoding](b"0123456789")
    assert plain(one * MAX_PARTS, encoding) == b"0123456789" * MAX_PARTS
    with pytest.raises(OverLimit):
        plain(one * (MAX_PARTS + 1), encoding)


@given(st.lists(st.binary(max_size=300), max_size=20), st.sampled_from(sorted(COMPRESS)), st.data())
def test_parts_are_joined_and_a_cut_is_noticed(parts, encoding, data):
    body = b"".join(map(COMPRESS[encoding], parts))
    assert plain(body, encoding) == b"".join(parts)
    if parts:
        last = COMPRESS[encoding](parts[-1])
        cut = data.draw(st.integers(1, len(last) - 1))
        with pytest.raises(Invalid):
            plain(body[:-cut], encoding)


@given(st.integers(1, 200_000), st.integers(0, 9))
def test_a_large_member_is_read_whole(size, level):
    text = zlib.crc32(b"x").to_bytes(4, "big") * (size // 4 + 1)
    assert plain(zipped(text, level), "gzip") == text
