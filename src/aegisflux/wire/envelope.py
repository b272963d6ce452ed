"""Signed bytes: DSSE pre-authentication encoding in a MessagePack envelope.

Payload bytes are kept as they came and never encoded again. A manifest travels beside the key set
that the root signed, so that an agent that missed a rotation can still check it.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN
from aegisflux.domain.trust import NotOurs, Signed

MANIFEST: Final = "application/vnd.aegisflux.manifest.v1+msgpack"
KEY_SET: Final = "application/vnd.aegisflux.keys.v1+msgpack"
CONTENT: Final = "application/vnd.aegisflux.content.v1+msgpack+zstd"
CONFIRM: Final = "application/vnd.aegisflux.confirm.v1+msgpack"
ANSWER: Final = "application/vnd.aegisflux.answer.v1+msgpack"
HEARTBEAT: Final = "application/vnd.aegisflux.heartbeat.v1+msgpack"

T = TypeVar("T")
Sign = Callable[[bytes], bytes]


class Signature(Struct, frozen=True, array_like=True):
    keyid: str
    sig: bytes


class Envelope(Struct, frozen=True):
    """DSSE (https://github.com/secure-systems-lab/dsse), with raw bytes in the place of base64."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]


class ManifestMessage(Struct, frozen=True):
    """What lies on a host's desired-state subject."""

    keys: Envelope
    manifest: Envelope


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: type and payload, each behind its length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, keyid: str, sign: Sign) -> Envelope:
    """Sign a payload."""
    return Envelope(payload_type, payload, (Signature(keyid, sign(pae(payload_type, payload))),))


def opened(envelope: Envelope, payload_type: str) -> Signed:
    """The payload for `domain.trust`; raises NotOurs where the envelope is of another type."""
    if envelope.payload_type != payload_type:
        raise NotOurs("bad_schema", f"expected {payload_type}, got another type")
    signatures = tuple((s.keyid, s.sig) for s in envelope.signatures[:8])
    return Signed(envelope.payload, pae(payload_type, envelope.payload), signatures)


def encode(message: Envelope | ManifestMessage) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_envelope(data: bytes, limit: int) -> Envelope:
    """Read an envelope of at most `limit` bytes; raises NotOurs."""
    return _decode(data, limit, Envelope)


def decode_manifest_message(data: bytes, limit: int) -> ManifestMessage:
    """Read a host's desired state of at most `limit` bytes; raises NotOurs."""
    return _decode(data, limit, ManifestMessage)


def _decode(data: bytes, limit: int, kind: type[T]) -> T:
    if len(data) > limit:
        raise NotOurs("over_limit", f"{len(data)} bytes, at most {limit}")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except BROKEN as err:
        raise NotOurs("bad_schema", f"{kind.__name__}: {in_words(err, kind)}") from None
