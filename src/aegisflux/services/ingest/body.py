"""Bodies as they were before they were compressed, within a bound."""

import zlib
from typing import Final

import zstandard

from aegisflux.domain.errors import Invalid, OverLimit

MAX_PLAIN: Final = 64 << 20
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
    found, left = bytearray(), body
    try:
        while left:
            reader = zlib.decompressobj(wbits=31)
            while True:
                piece = reader.decompress(left, CHUNK)
                found += piece
                _bounded(len(found))
                if reader.eof:
                    break
                left = reader.unconsumed_tail
                if not piece and not left:
                    raise Invalid("body", "a whole gzip stream", "a part of one")
            left = reader.unused_data
    except zlib.error as error:
        raise Invalid("body", "gzip", str(error)) from None
    return bytes(found)


def _unzstd(body: bytes) -> bytes:
    found, left = bytearray(), body
    source = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        while left:
            reader = source.decompressobj(write_size=CHUNK)
            at = 0
            while not reader.eof:
                if at >= len(left):
                    raise Invalid("body", "a whole zstd frame", "a part of one")
                found += reader.decompress(left[at : at + PIECE])
                _bounded(len(found))
                at += PIECE
            left = reader.unused_data + left[at:]
    except zstandard.ZstdError as error:
        raise Invalid("body", "zstd", str(error)) from None
    return bytes(found)


def _bounded(size: int) -> None:
    if size > MAX_PLAIN:
        raise OverLimit("decompressed", MAX_PLAIN, size, "body")
