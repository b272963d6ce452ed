"""NATS identities as text: nkeys and the JWTs of operator, account and user (JWT format 2).

Nothing here signs: a signing function over the bytes comes in, so no cryptography is imported.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aegisflux.domain.errors import Invalid

Sign = Callable[[bytes], bytes]
Kind = Literal["operator", "account", "user"]
Json = dict[str, Any]

PREFIXES: Mapping[Kind, int] = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
SEED_PREFIX = 18 << 3
KEY_BYTES = 32


def public_nkey(kind: Kind, public: bytes) -> str:
    """The `O...`, `A...` or `U...` form of a raw Ed25519 public key of 32 bytes."""
    return _encoded(bytes([PREFIXES[kind]]) + _checked(public))


def seed_nkey(kind: Kind, seed: bytes) -> str:
    """The `S...` form of a raw Ed25519 seed of 32 bytes. A secret."""
    prefix = PREFIXES[kind]
    return _encoded(bytes([SEED_PREFIX | prefix >> 5, (prefix & 31) << 3]) + _checked(seed))


def operator_jwt(public: str, *, name: str, system_account: str, now: int, sign: Sign) -> str:
    """The self-signed claim of the operator that every account hangs from."""
    nats = {"type": "operator", "version": 2, "system_account": system_account}
    return _token({"iat": now, "iss": public, "name": name, "sub": public, "nats": nats}, sign)


def account_jwt(
    public: str,
    *,
    name: str,
    issuer: str,
    now: int,
    sign: Sign,
    jetstream: bool = False,
    exports: Sequence[Json] = (),
    imports: Sequence[Json] = (),
    scopes: Sequence[Json] = (),
    revocations: Mapping[str, int] | None = None,
    limited: Mapping[str, int] | None = None,
) -> str:
    """The claim of an account, signed by the operator's key; `now` is in seconds and must rise with each
    update. `limited`: bounds of the account by the server's names, such as `conn`.
    """
    limits: Json = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    limits |= {"wildcards": True, **(limited or {})}
    if jetstream:
        limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    nats: Json = {"type": "account", "version": 2, "limits": limits, "signing_keys": list(scopes)}
    nats |= {"exports": list(exports), "imports": list(imports), "revocations": dict(revocations or {})}
    return _token({"iat": now, "iss": issuer, "name": name, "sub": public, "nats": nats}, sign)


def user_jwt(
    public: str, *, name: str, account: str, issuer: str, now: int, sign: Sign, until: int = 0
) -> str:
    """The claim of a user of a scoped signing key: all that it may do stands in the scope, nothing here.
    `until`: when it ends, in seconds since the epoch; 0 for one that does not.
    """
    nats = {"type": "user", "version": 2, "issuer_account": account}
    body = {"iat": now, "iss": issuer, "name": name, "sub": public, "nats": nats}
    return _token(body | ({"exp": until} if until else {}), sign)


def deletion_jwt(public: str, *, accounts: Sequence[str], now: int, sign: Sign) -> str:
    """The word of the operator that a server is to forget these accounts."""
    nats = {"type": "generic", "version": 2, "accounts": list(accounts)}
    return _token({"iat": now, "iss": public, "sub": public, "nats": nats}, sign)


def scope(key: str, role: str, *, pub: Sequence[str], sub: Sequence[str], subs: int, payload: int) -> Json:
    """A scoped signing key: whoever it signs may publish `pub` and subscribe `sub`; an empty list means
    nothing.
    """
    template: Json = {
        "pub": _permission(pub),
        "sub": _permission(sub),
        "subs": subs,
        "data": -1,
        "payload": payload,
    }
    return {"kind": "user_scope", "key": key, "role": role, "template": template}


def service_export(subject: str) -> Json:
    """Requests to the subject are answered by this account, one reply each."""
    return {"name": subject, "subject": subject, "type": "service", "response_type": "Singleton"}


def stream_export(subject: str) -> Json:
    """Messages on the subject may be heard by an importing account."""
    return {"name": subject, "subject": subject, "type": "stream"}


def imported(export: Json, account: str, subject: str | None = None) -> Json:
    """The import of another account's export, or of the part of it that `subject` names."""
    subject = subject or export["subject"]
    return {"name": subject, "subject": subject, "account": account, "type": export["type"]}


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's JWT and the raw seed (32 bytes) of its key."""

    jwt: str
    seed: bytes

    @property
    def text(self) -> str:
        """The text of a `.creds` file, as NATS tools read it. A secret."""
        seed = seed_nkey("user", self.seed)
        return (
            f"-----BEGIN NATS USER JWT-----\n{self.jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )

    @property
    def name(self) -> str:
        """The name in the JWT: the host of an agent."""
        return str(claims(self.jwt)["name"])

    @property
    def ends(self) -> int:
        """When the JWT ends, in seconds since the epoch; 0 for one that does not."""
        return int(claims(self.jwt).get("exp", 0))

    def ended(self, now: float) -> bool:
        """Whether a server takes the JWT no more, `now` in seconds since the epoch."""
        return 0 < self.ends <= now

    @classmethod
    def parse(cls, text: str) -> "Credentials":
        """From the text of a `.creds` file; raises Invalid where the JWT or the seed is missing."""
        found = [line for line in text.splitlines() if line and not line.startswith("-")]
        if len(found) != 2 or not found[1].startswith("SU"):
            raise Invalid(
                "creds", "a NATS credentials file with a JWT and a user seed", f"{len(found)} lines"
            )
        return cls(found[0], raw_seed(found[1]))


def raw_seed(nkey: str) -> bytes:
    """The 32 bytes of an `S...` seed; raises Invalid (without the seed) when it is none."""
    try:
        data = base64.b32decode(nkey + "=" * (-len(nkey) % 8))
    except ValueError:
        raise Invalid("seed", "an nkey seed", "other text") from None
    if len(data) != KEY_BYTES + 4 or data[0] & 0xF8 != SEED_PREFIX or _crc(data[:-2]) != data[-2:]:
        raise Invalid("seed", "an nkey seed", "other text")
    return data[2:-2]


def claims(token: str) -> Json:
    """What a JWT says, unverified; raises Invalid on other text."""
    try:
        body = token.split(".")[1]
        value = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        raise Invalid("jwt", "a JWT of NATS", "other text") from None
    if not isinstance(value, dict):
        raise Invalid("jwt", "a JWT of NATS", value)
    return value


def _permission(subjects: Sequence[str]) -> Json:
    return {"allow": list(subjects)} if subjects else {"deny": [">"]}


def _token(body: Json, sign: Sign) -> str:
    body = {"jti": base64.b32encode(hashlib.sha256(_json(body)).digest()).decode().rstrip("="), **body}
    signed = _b64(_json({"typ": "JWT", "alg": "ed25519-nkey"})) + "." + _b64(_json(body))
    return signed + "." + _b64(sign(signed.encode()))


def _json(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise Invalid("key", f"{KEY_BYTES} bytes", len(key))
    return key


def _encoded(data: bytes) -> str:
    return base64.b32encode(data + _crc(data)).decode().rstrip("=")


def _crc(data: bytes) -> bytes:
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")
