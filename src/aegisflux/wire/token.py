"""Enrolment: the token that an admin hands to a host, and what goes to and fro over HTTP.

A token is one line of base64url over JSON. It names the control plane and carries the SHA-256 of its CA
and of its root key, so that a host that holds one cannot be led to another control plane. The host proves
that it owns the key it asks for by signing `proof_bytes`. Nothing here signs or verifies.
"""

import base64
import binascii
import hmac
import re
from hashlib import sha256
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from aegisflux.domain.errors import Invalid

ENROLL_PATH: Final = "/api/v1/enroll"
RENEW_PATH: Final = "/api/v1/enroll/renew"
CA_PATH: Final = "/api/v1/enroll/ca"
MAX_TOKEN_CHARS: Final = 2048
PREFIX: Final = "aegis1."
RANDOM_BYTES: Final = 18
MAC_BYTES: Final = 18

Hex256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


class EnrollToken(Struct, frozen=True):
    """`url` is where to enrol, `secret` what the control plane knows by its hash. A secret as a whole."""

    url: Annotated[str, Meta(max_length=512)]
    ca_sha256: Hex256
    root_sha256: Hex256
    secret: Annotated[str, Meta(min_length=16, max_length=128)]


class EnrollRequest(Struct, frozen=True):
    """What a host posts to ENROLL_PATH; key and proof are base64 (standard alphabet) of 32 and 64 bytes."""

    token: str
    host_id: str
    agent_public_key: str
    proof: str


class EnrollAnswer(Struct, frozen=True):
    """What a host needs from now on. `root_public_key` is base64 of 32 bytes, `keys` base64 of the encoded
    envelope of the key set (type KEY_SET, signed by the root key)."""

    host_id: str
    user_jwt: str
    nats_urls: tuple[str, ...]
    ca_pem: str
    root_public_key: str
    keys: str


class RenewRequest(Struct, frozen=True):
    """What a host posts to RENEW_PATH when its user JWT has ended; `proof` is base64 of 64 bytes."""

    host_id: str
    proof: str


class Renewed(Struct, frozen=True):
    """A user JWT that ends later, and where the bus is."""

    user_jwt: str
    nats_urls: tuple[str, ...]


def token_text(token: EnrollToken) -> str:
    """The line that is given to a host. A secret."""
    return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def parse_token(text: str) -> EnrollToken:
    """Read a token; raises Invalid without repeating the token."""
    text = text.strip()
    if len(text) > MAX_TOKEN_CHARS or not text.startswith(PREFIX):
        raise Invalid("token", "an enrolment token (aegis1....)", "other text")
    body = text[len(PREFIX) :]
    try:
        return msgspec.json.decode(
            base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True), type=EnrollToken
        )
    except (ValueError, RecursionError):
        raise Invalid("token", "an enrolment token (aegis1....)", "a damaged one") from None


def sealed_secret(random: bytes, key: bytes) -> str:
    """The secret of a token: 18 random bytes, and a MAC by which the control plane knows, without a look at
    its store, that it made them."""
    return base64.urlsafe_b64encode(random + _mac(random, key)).decode()


def is_sealed(secret: str, key: bytes) -> bool:
    """Whether the control plane with this key made the secret of a token."""
    try:
        raw = base64.b64decode(secret, altchars=b"-_", validate=True)
    except ValueError:
        return False
    random, mac = raw[:RANDOM_BYTES], raw[RANDOM_BYTES:]
    return len(random) == RANDOM_BYTES and hmac.compare_digest(mac, _mac(random, key))


def _mac(random: bytes, key: bytes) -> bytes:
    return hmac.digest(key, b"aegisflux-enroll-secret-v1\0" + random, "sha256")[:MAC_BYTES]


def token_hash(text: str) -> str:
    """What the control plane stores of a token, hex."""
    return sha256(text.strip().encode()).hexdigest()


def proof_bytes(text: str, host_id: str) -> bytes:
    """What the host signs to prove that it owns the key: it is bound to this token and this name."""
    return b"aegisflux-enroll-v1\0" + bytes.fromhex(token_hash(text)) + b"\0" + host_id.encode()


def renewal_bytes(host_id: str) -> bytes:
    """What the host signs to prove that it owns its key. Who repeats it gets a JWT that is of no use without
    that key."""
    return b"aegisflux-renew-v1\0" + host_id.encode()


def ca_sha256(pem: str) -> str:
    """Hex SHA-256 of the DER bytes of the first certificate; raises Invalid on text without one."""
    found = re.search(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----", pem)
    if found is None:
        raise Invalid("ca_pem", "a PEM certificate", "other text")
    return sha256(base64.b64decode(found[1])).hexdigest()


def root_sha256(public: bytes) -> str:
    """Hex SHA-256 of a raw root public key."""
    return sha256(public).hexdigest()


def b64(data: bytes) -> str:
    """Bytes as they stand in requests and answers."""
    return base64.b64encode(data).decode()


def from_b64(text: str, path: str, length: int = 0) -> bytes:
    """The bytes, of exactly `length` where it is given; raises Invalid by path."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(path, "base64", "other text") from None
    if length and len(data) != length:
        raise Invalid(path, f"base64 of {length} bytes", f"{len(data)} bytes")
    return data
