"""A snapshot as signed content: canonical JSON, its digests, its tables, compressed."""

from hashlib import sha256
from typing import Any

import msgspec
import rfc8785
import zstandard

from aegisflux.domain.compile import compile_tables
from aegisflux.domain.errors import Invalid
from aegisflux.domain.manifest import Content
from aegisflux.domain.snapshot import MapSnapshot, ruleset
from aegisflux.domain.tables import TABLES_FORMAT

MAX_SNAPSHOT = 64 << 20
_RULES_ONLY = ("version", "ttl_seconds", "meta")
_encode = msgspec.json.Encoder(order="sorted").encode


def canonical_json(snapshot: MapSnapshot, without: tuple[str, ...] = ()) -> bytes:
    """RFC 8785 bytes of a canonical snapshot. All but `meta` is ASCII words and integers below 2**53."""
    fields: dict[str, Any] = {
        name: getattr(snapshot, name) for name in snapshot.__struct_fields__ if name not in without
    }
    parts = [
        b'"%s":%s' % (name.encode(), _meta_json(value) if name == "meta" else _encode(value))
        for name, value in sorted(fields.items())
        if value is not msgspec.UNSET
    ]
    return b"{" + b",".join(parts) + b"}"


def digest_of(data: bytes) -> str:
    return "sha256:" + sha256(data).hexdigest()


def content_of(snapshot: MapSnapshot) -> Content:
    """Compile a canonical snapshot; raises OverLimit by the limit's name."""
    body = canonical_json(snapshot)
    tables = compile_tables(ruleset(snapshot))
    return Content(
        service_id=snapshot.service_id,
        version=snapshot.version,
        digest=digest_of(body),
        rules_digest=digest_of(canonical_json(snapshot, _RULES_ONLY)),
        tables_format=TABLES_FORMAT,
        tables_digest=tables.digest(),
        entries=snapshot.entries(),
        ttl_seconds=snapshot.ttl_seconds,
        mode=snapshot.mode,
        on_expiry=snapshot.on_expiry,
        established=snapshot.established,
        tables=tables,
        snapshot=body,
    )


def packed(content: Content) -> bytes:
    """Compressed bytes to be signed."""
    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(
        msgspec.msgpack.encode(content)
    )


def unpacked(stored: bytes) -> bytes:
    """Canonical JSON of a snapshot as the store has it."""
    return zstandard.ZstdDecompressor().decompress(stored, max_output_size=MAX_SNAPSHOT)


def _meta_json(meta: dict[str, Any]) -> bytes:
    try:
        return rfc8785.dumps(meta)
    except rfc8785.CanonicalizationError as err:
        raise Invalid("meta", "JSON that RFC 8785 can write", str(err)) from None
