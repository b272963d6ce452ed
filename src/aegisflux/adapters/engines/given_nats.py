"""NATS servers that somebody else runs: what we rely on, as far as they say it of themselves.

Limits of accounts are in the claims that we push. The configuration of a server is of those who run it: where
it does not keep what SECURITY.md promises, that is said in words.
"""

import asyncio
import ssl
from collections.abc import Iterable, Iterator
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from aegisflux.adapters.engines import nats
from aegisflux.domain.bounds import Count
from aegisflux.domain.errors import BROKEN, shown

HOW_TO: Final = "see docs/howto/use-a-nats-of-your-own.md"
SECONDS: Final = 5.0
PORT: Final = 4222
NANOSECONDS: Final = 1_000_000_000
INFO: Final = b"INFO "

Known = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]


class Limits(Struct, frozen=True):
    """What a server says of its configuration, in bytes and nanoseconds."""

    max_payload: Known
    max_pending: Known
    write_deadline: Known
    ping_interval: Known
    ping_max: Count
    server_name: str = "without a name"


class Answer(Struct, frozen=True):
    """The answer of one server."""

    data: Limits


class Greeting(Struct, frozen=True):
    """What a server says to each client at first."""

    tls_required: bool = False


def remarks(answers: Iterable[bytes]) -> list[str]:
    """Where the servers that answered hold more, or for longer, than we promise; in words."""
    told = list(answers)
    if not told:
        return [f"the server does not say what its limits are, the system user may not ask; {HOW_TO}"]
    return [f"{text}; {HOW_TO}" for answer in told for text in _of(answer)]


def _of(answer: bytes) -> Iterator[str]:
    try:
        limits = msgspec.json.decode(answer, type=Answer).data
    except BROKEN:
        yield "a server does not say what its limits are"
        return
    who = f"server {_name(limits.server_name)}"
    seconds = limits.write_deadline / NANOSECONDS
    dead = limits.ping_interval * (limits.ping_max + 1) / NANOSECONDS
    longest = nats.PING_SECONDS * (nats.UNANSWERED_PINGS + 1)
    if limits.max_payload < nats.MAX_PAYLOAD:
        yield f"{who}: max_payload: expected at least {nats.MAX_PAYLOAD}, got {limits.max_payload}"
    if limits.max_pending > nats.MAX_PENDING:
        yield f"{who}: max_pending: expected at most {nats.MAX_PENDING}, got {limits.max_pending}"
    if seconds > nats.WRITE_SECONDS:
        yield f"{who}: write_deadline: expected at most {nats.WRITE_SECONDS} s, got {seconds:g} s"
    if dead > longest:
        yield f"{who}: ping_interval times (ping_max + 1): expected at most {longest} s, got {dead:g} s"


async def tls_remarks(urls: Iterable[str], seconds: float = SECONDS) -> list[str]:
    """Which of the servers let somebody in without TLS 1.3. None says so: a handshake is tried."""
    found = []
    for url in urls:
        try:
            async with asyncio.timeout(seconds):
                text = await _tls_remark(url)
        except (OSError, ValueError, TimeoutError, *BROKEN):
            text = "whether it takes TLS 1.2 cannot be found out"
        if text:
            found.append(f"{shown(url)}: {text}; {HOW_TO}")
    return found


async def _tls_remark(url: str) -> str:
    where = urlsplit(url)
    if where.scheme not in ("nats", "tls") or not where.hostname:
        raise ValueError(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port or PORT)
    try:
        line = await reader.readline()
        if not line.startswith(INFO):
            raise ValueError(line)
        if not msgspec.json.decode(line[len(INFO) :], type=Greeting).tls_required:
            return "it takes clients without TLS"
        try:
            await writer.start_tls(_old(), server_hostname=where.hostname)
        except OSError:  # what it should do
            return ""
        return "it takes TLS 1.2; expected 1.3 alone"
    finally:
        writer.transport.abort()


def _old() -> ssl.SSLContext:
    """A client of TLS 1.2 at most, that says nothing secret to anybody and so believes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def _name(text: str) -> str:
    plain = text.isascii() and text.isprintable() and len(text) <= 64
    return text if plain else shown(text)
