"""The audit log: each line's hash covers the hash of the line before, and a head names the last one.

An edit breaks a hash, a removed line leaves a gap in the numbers, a cut-off tail disagrees with the head.
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b, sha256
from hmac import digest as hmac_of
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

GENESIS: Final = bytes(32)
_encode = msgspec.json.Encoder(order="sorted").encode


class Entry(Struct, frozen=True):
    """Who did what to which object, from where and why. `before` and `after` are digests or short values."""

    actor: str
    action: str
    object: str
    source: str = ""
    before: str = ""
    after: str = ""
    reason: str = ""
    request_id: str = ""


class Line(Struct, frozen=True):
    """An entry in its place; `at` is in milliseconds since the epoch."""

    seq: int
    at: int
    entry: Entry
    hash: bytes = b""


class Head(Struct, frozen=True):
    """The number and hash of the last line, and a MAC that only the control plane can make."""

    seq: int
    hash: bytes
    mac: bytes


def line_of(row: Mapping[str, Any]) -> Line:
    """A line from its row."""
    entry = Entry(**{name: row[name] for name in Entry.__struct_fields__})
    return Line(row["seq"], row["at"], entry, row["hash"])


def hash_of(previous: bytes, seq: int, at: int, entry: Entry) -> bytes:
    """The hash of a line after the line of hash `previous`."""
    return sha256(previous + _encode((seq, at, entry))).digest()


def mac_of(key: bytes, seq: int, digest: bytes) -> bytes:
    """The MAC of a head."""
    return _keyed(key, seq.to_bytes(8, "big") + digest)


def _keyed(key: bytes, data: bytes) -> bytes:
    return blake2b(data, key=key[:64], digest_size=32).digest()


def gate_key(key: bytes) -> bytes:
    """The key of the gate that the store has in front of the log; no MAC of a head can be made with it."""
    return _keyed(key, b"gate")


def gate_pads(key: bytes) -> tuple[bytes, bytes]:
    """The key of the gate as HMAC-SHA256 (RFC 2104) begins with it, inside and outside."""
    padded = gate_key(key).ljust(64, b"\0")
    return bytes(byte ^ 0x36 for byte in padded), bytes(byte ^ 0x5C for byte in padded)


def gate_of(key: bytes, what: Literal["line", "head"], seq: int, digest: bytes) -> bytes:
    """What lets a line, or a head, of this number and hash into the store."""
    return hmac_of(gate_key(key), f"{what} {seq} {digest.hex()}".encode(), "sha256")


def following(head: Head, key: bytes, at: int, entry: Entry) -> tuple[Line, Head]:
    """The next line and the head that then holds."""
    seq = head.seq + 1
    digest = hash_of(head.hash, seq, at, entry)
    return Line(seq, at, entry, digest), Head(seq, digest, mac_of(key, seq, digest))


def first_head(key: bytes) -> Head:
    """The head of an empty log."""
    return Head(0, GENESIS, mac_of(key, 0, GENESIS))


def problems(lines: Iterable[Line], head: Head, key: bytes) -> Iterator[str]:
    """What is wrong with a log, in words; nothing when it is whole."""
    previous, expected, broken = GENESIS, 1, False
    for line in lines:
        if line.seq != expected:
            yield f"gap: line {expected} is missing, line {line.seq} follows"
            broken = True
        elif hash_of(previous, line.seq, line.at, line.entry) != line.hash:
            yield f"edit: line {line.seq} does not have the hash that its content gives"
            broken = True
        previous, expected = line.hash, line.seq + 1
    if head.seq != expected - 1:
        yield f"cut-off: the head names line {head.seq}, the last line is {expected - 1}"
    elif head.hash != previous and not broken:
        yield f"edit: the head has another hash than line {head.seq}"
    if mac_of(key, head.seq, head.hash) != head.mac:
        yield "edit: the head was not written by this control plane"
