"""MACs of rows that no line of the audit log says in full: of contents, and of what hosts had.

They are made with the key of tokens' rows, each kind apart. A row of them is never changed into one that was
valid and means more: a content stays as it is, and what a host had before leads nowhere new.
"""

from collections.abc import Mapping
from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import Any, Final

import msgspec

CONTENT: Final = (
    "service_id", "version", "digest", "rules_digest", "tables_digest", "tables_format", "entries",
    "ttl_seconds", "mode", "on_expiry", "established", "created_at", "created_by", "author", "copy_of",
    "payload_sha256",
)  # fmt: skip
HAD: Final = ("service_id", "host_id", "versions")
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {"content": CONTENT, "had": HAD}
"""The columns of a row of each kind that its MAC is over."""
_encode = msgspec.json.Encoder(order="sorted").encode


def mac_of(key: bytes, kind: str, row: Mapping[str, Any]) -> bytes:
    """The MAC of a row."""
    meant = [kind, {name: _plain(row[name]) for name in COLUMNS[kind]}]
    return blake2b(_encode(meant), key=key[:64], digest_size=32).digest()


def is_sealed(key: bytes, kind: str, row: Mapping[str, Any], mac: bytes | None) -> bool:
    """Whether the MAC is that of the row."""
    return mac is not None and compare_digest(mac_of(key, kind, row), mac)


def payload_digest(payload: bytes) -> bytes:
    """What a content's MAC has of its payload."""
    return sha256(payload).digest()


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
