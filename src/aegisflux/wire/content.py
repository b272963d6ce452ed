"""Compressed content on its way to an agent."""

import zstandard

from aegisflux.domain.errors import Invalid
from aegisflux.domain.manifest import MAX_CONTENT_BYTES


def unpacked(payload: bytes) -> bytes:
    """Decompressed bytes of at most 64 MiB; raises Invalid."""
    try:
        declared = zstandard.frame_content_size(payload)
        if not 0 < declared <= MAX_CONTENT_BYTES:
            raise Invalid("content", f"1 to {MAX_CONTENT_BYTES} decompressed bytes", declared)
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=declared)
    except zstandard.ZstdError as err:
        raise Invalid("content", "a zstd frame", str(err)) from None
