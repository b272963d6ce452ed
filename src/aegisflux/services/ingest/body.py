"""Bodies as they were before they were compressed, within a bound."""

import zlib
from typing import Final

import zstandard

from aegisflux.domain.errors import Invalid, OverLimit

MAX_PLAIN: Final = 64 << 20
MAX_PARTS: Final = 4096  # tools that work in parallel make members of 64 KiB and more of what they read
SLICE: Final = 4096
MAX_WINDOW: Final = 16 << 20
ENCODINGS: Final = ("identity", "gzip", "zstd")
CHUNK: Final = 1 << 20
PIECE: Final = 256  # three bytes of zstd can become 128 KiB: so many at once pass the bound by a little


def plain(body: bytes, encoding: str) -> bytes:
    """The body; raises OverLimit beyond 64 MiB, however small it came, and Invalid when it is broken."""
    if encoding in ("", "identity"):
        return body
    if encoding == "gzip":
        return _gunzipped(body)
    if encoding == "zstd":
        return _unzstd(body)
    raise Invalid("Content-Encoding", " or ".join(ENCODINGS), encoding)


def _gunzipped(body: bytes) -> bytes:
    """Members are read by slices: zlib copies all that lies behind a member when it ends."""
    found, view, at, members = bytearray(), memoryview(body), 0, 0
    try:
        while at < len(view):
            members += 1
            _few(members, "members of gzip")
            reader = zlib.decompressobj(wbits=31)
            left: bytes | memoryview = b""
            while not reader.eof:
                if not left:
                    left = view[at : at + SLICE]
                    at += len(left)
                piece = reader.decompress(left, CHUNK)
                if not (piece or left or reader.eof):
                    raise Invalid("body", "a whole gzip stream", "a part of one")
                found += piece
                _bounded(len(found))
                left = reader.unconsumed_tail
            at -= len(reader.unused_data)
    except zlib.error as error:
        raise Invalid("body", "gzip", str(error)) from None
    return bytes(found)


def _unzstd(body: bytes) -> bytes:
    found, view, at, frames = bytearray(), memoryview(body), 0, 0
    source = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        while at < len(view):
            frames += 1
            _few(frames, "frames of zstd")
            reader = source.decompressobj(write_size=CHUNK)
            while not reader.eof:
                if at >= len(view):
                    raise Invalid("body", "a whole zstd frame", "a part of one")
                found += reader.decompress(view[at : at + PIECE])
                _bounded(len(found))
                at += PIECE
            at = min(at, len(view)) - len(reader.unused_data)
    except zstandard.ZstdError as error:
        raise Invalid("body", "zstd", str(error)) from None
    return bytes(found)


def _few(count: int, what: str) -> None:
    """A part costs as much as kilobytes, however little it holds."""
    if count > MAX_PARTS:
        raise OverLimit("compressed_parts", MAX_PARTS, count, what)


def _bounded(size: int) -> None:
    if size > MAX_PLAIN:
        raise OverLimit("decompressed", MAX_PLAIN, size, "body")
