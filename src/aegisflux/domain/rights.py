"""API tokens, enrolment tokens and decisions as the audit log has them: which rows of the store are believed.

Who can write the store can make a row, change one, or put back one that was valid once. A row is therefore
believed only as the last line of the audit log about it says, that of an API token only with a MAC by a key
outside of the store too: one that was revoked never lives again, under no other id either. The log is
followed from a mark that is kept outside of the store, so that neither a cut-off tail nor an older store
brings anything back: no token, no key of a host that was released, no key that signed before a rotation.
"""

from collections.abc import Iterable, Mapping
from copy import copy
from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from aegisflux.domain.audit import GENESIS, Entry, Line, hash_of
from aegisflux.domain.bounds import Serial, Small, Version
from aegisflux.domain.decided import NONE, believed_by, decided
from aegisflux.domain.errors import Refused

ISSUE, SEAL, REVOKE = "token.issue", "token.seal", "token.revoke"
OBJECT: Final = "token/"
ALL: Final = "tokens"
ROWS: Final = "rows"
"""The object of the line which says that rows of before there were MACs of them have been looked at."""
ENROLMENT_DIGITS: Final = 16
MOST_ENROLMENTS: Final = 10_000
RELEASE, ENROL, REPLACE_KEYS = "host.release", "host.enroll", "keys.replace"
KEYS: Final = "keys/"
KEY_LINES: Final = frozenset({"keys.first", "keys.add", "keys.switch", "keys.remove", REPLACE_KEYS})
ENDINGS: Final = frozenset({
    REVOKE, RELEASE, *KEY_LINES, "snapshot.withdraw", "snapshot.rollback", "panic", "service.delete",
    "rollout.aborted", "rollout.rolled_back", "host.relabel", "host.suspicion",
})  # fmt: skip
"""Lines that take a right away: an older store would give it back, so the mark follows them at once."""
FORMAT: Final = 2
"""Raise it when `Rights` keeps more of the log than before: the whole log is then read once more."""
MAX_DIGITS: Final = 15
_encode = msgspec.json.Encoder(order="sorted").encode


class Token(Struct, frozen=True, kw_only=True):
    """All that a row of `tokens` means, but for its end by revocation. Times are seconds since the epoch."""

    id: str
    name: str
    role: str
    hash: bytes
    created_at: int
    created_by: str
    expires_at: int | None
    host_id: str | None


class Broken(Refused):
    """The audit log is not the one that was followed so far."""


class Headless(Broken):
    """The head of the audit log is gone or not ours: nothing can be changed on top of it."""


class Rights(Struct, kw_only=True):
    """What the lines of the log say of rights.

    live:   what was said of each API token that was issued, by its id
    ended:  the hashes of those that were revoked, by id; "" where the line is too old to name it
    sealed: tokens that were issued before rows had MACs have been looked at; none of them is believed later
    enrolments: what each enrolment token gives that is not used, the newest, by the first digits of its hash
    sealed_rows: the same of contents and of what hosts had
    decided: what was said of plans, of changes that wait and of rollouts, see `domain.decided`
    released: the names of hosts that were released, by the digest of the key that they had; a key that an
            admin let enrol again is none of them
    keys:   the version of the newest key set
    keyring: the ids of the keys that may sign
    retired: the ids of keys that signed before a rotation
    """

    live: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    sealed: bool = False
    enrolments: dict[str, str] = field(default_factory=dict)
    sealed_rows: bool = False
    decided: dict[str, str] = field(default_factory=dict)
    released: dict[str, str] = field(default_factory=dict)
    keys: Version = 0
    keyring: dict[str, bool] = field(default_factory=dict)
    retired: dict[str, bool] = field(default_factory=dict)

    def copy(self) -> "Rights":
        """Another one that says the same."""
        found = copy(self)
        for name in self.__struct_fields__:
            if isinstance(part := getattr(self, name), dict):
                setattr(found, name, dict(part))
        return found

    def take(self, entry: Entry) -> bool:
        """Follow one line; whether a right may not begin or end by it before the mark is written."""
        match entry.action:
            case "host.token":
                number, _, text = entry.after.partition(" ")
                self.enrolments[number] = text
                while len(self.enrolments) > MOST_ENROLMENTS:
                    del self.enrolments[next(iter(self.enrolments))]
            case "host.enroll":
                self.enrolments.pop(entry.before, None)
                if entry.reason != "repeated":
                    self.released.pop(key_digest(entry.after.partition(" ")[0]), None)
            case "host.release":
                self.released[key_digest(entry.before)] = entry.object.removeprefix("host/")
            case action if action in KEY_LINES:
                self._took_keys(entry)
            case "audit.adopt":
                self._adopted(entry)
            case _:
                self._took_token(entry)
        for name, text in decided(entry):
            self._take_decided(name, text)
        return entry.action in ENDINGS or entry.action in (ISSUE, SEAL)

    def _adopted(self, entry: Entry) -> None:
        if entry.object == ROWS:
            self.sealed_rows = True
        else:
            self._take_decided(entry.object, entry.after)

    def _take_decided(self, name: str, text: str) -> None:
        if text == NONE:
            self.decided.pop(name, None)
        elif believed_by(name):
            self.decided[name] = text

    def _took_keys(self, entry: Entry) -> None:
        number = entry.object.removeprefix(KEYS)
        if number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS:
            self.keys = max(self.keys, int(number))
        if entry.action in ("keys.remove", REPLACE_KEYS):
            self.retired.update(dict.fromkeys(entry.before.split(), True))
        if entry.after:
            self.keyring[entry.after] = True
        self.keyring = {key: True for key in self.keyring if key not in self.retired}

    def _took_token(self, entry: Entry) -> None:
        number = entry.object.removeprefix(OBJECT)
        if entry.action == SEAL and entry.object == ALL:
            self.sealed = True
        elif entry.action in (ISSUE, SEAL) and number not in self.ended:
            self.live[number] = entry.after
        elif entry.action == REVOKE:
            self.live.pop(number, None)
            self.ended[number] = entry.before

    def keep_ended(self, before: "Rights") -> None:
        """What ended by `before` has ended, whatever the lines that these are from leave out."""
        for number in before.ended:
            self.live.pop(number, None)
        self.ended |= before.ended
        self.released |= before.released
        self.retired |= before.retired
        self.keys = max(self.keys, before.keys)

    def released_host(self, key: str) -> str:
        """The name of the host that had this public key (base64) and was released; empty: there is none."""
        return self.released.get(key_digest(key), "")

    def is_revoked(self, token_hash: bytes) -> bool:
        """Whether a token of this hash was revoked, whatever number it had."""
        return token_hash.hex() in self.ended.values()

    def has_ended(self, token: Token) -> bool:
        """Whether the token was revoked, by its number or by its hash."""
        return token.id in self.ended or self.is_revoked(token.hash)

    def doubt_of(self, name: str, text: str) -> str:
        """Why a row that decides something is not believed, in words; empty: it is as its last line says."""
        known = self.decided.get(name)
        if known == text:
            return ""
        what = f"the audit log says {known}" if known else "the audit log has no line that says all of it"
        return f"{name}: {what}; the store has {text}"

    def doubt(self, token: Token) -> str:
        """Why a row is not believed, in words; empty: it is."""
        if self.has_ended(token):
            return "the audit log says that it was revoked"
        if token.id not in self.live:
            return "the audit log has no line that issued it"
        if self.live[token.id] != said(token):
            return "it is not as the audit log says that it was issued"
        return ""

    def adopts(self, token: Token) -> bool:
        """Whether a row of before there were MACs is to get one: once, and as far as its line tells."""
        known = self.live.get(token.id)
        return not self.sealed and known is not None and known == _short(token)


def key_digest(key: str) -> str:
    """How the public key of a host (base64) is kept: 16 bytes of its digest, in hexadecimal."""
    return sha256(key.encode()).hexdigest()[:32]


def enrolment_text(host: str | None, labels: Mapping[str, str], until: int) -> str:
    """What an enrolment token gives."""
    return f"{host or '*'} {labels_text(labels)} until {until}"


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels as one text, whatever their order."""
    return _encode(labels).decode()


def policy_text(policy: str) -> str:
    """What the audit log says of the policy that a plan carries out, and that its renewals follow."""
    return f"policy sha256:{sha256(policy.encode()).hexdigest()}"


class Mark(Struct, kw_only=True):
    """How far the log was followed: a line's number and hash, and what all lines up to it say.

    serial: the newest serial of a manifest that the store had
    floor:  serials of new hosts begin above this one
    format: which lines `rights` was made from, see `FORMAT`; a mark of an older version has 0
    """

    seq: Serial = 0
    hash: bytes = GENESIS
    rights: Rights = field(default_factory=Rights)
    serial: Serial = 0
    floor: Serial = 0
    format: Small = 0

    def copy(self) -> "Mark":
        """Another one at the same place."""
        return replace(self, rights=self.rights.copy())

    def follow(self, lines: Iterable[Line]) -> bool:
        """Take the lines that come next; whether the mark is to be written at once. Raises Broken."""
        told = False
        for line in lines:
            if line.seq != self.seq + 1:
                raise Broken(f"line {self.seq + 1} of the audit log is missing")
            if hash_of(self.hash, line.seq, line.at, line.entry) != line.hash:
                raise Broken(f"line {line.seq} of the audit log does not follow the line before")
            told |= self.rights.take(line.entry)
            self.seq, self.hash = line.seq, line.hash
        return told


def said(token: Token) -> str:
    """What the audit log says of a token that is issued: its name, role and host, and the digest of all."""
    return f"{_short(token)} sha256:{sha256(_meant(token)).hexdigest()}"


def mac_of(key: bytes, token: Token) -> bytes:
    """The MAC of a row."""
    return blake2b(_meant(token), key=key[:64], digest_size=32).digest()


def is_sealed(key: bytes, token: Token, mac: bytes | None) -> bool:
    """Whether the MAC is that of the row."""
    return mac is not None and compare_digest(mac_of(key, token), mac)


def _short(token: Token) -> str:
    return f"{token.name} {token.role} {token.host_id or ''}".rstrip()


def _meant(token: Token) -> bytes:
    return _encode(("token", msgspec.to_builtins(token)))
