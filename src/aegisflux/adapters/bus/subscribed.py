"""Subscriptions without a stream: watching, and what others have in common with it."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from aegisflux.domain import skew
from aegisflux.ports.bus import Handler, Message

if TYPE_CHECKING:
    from aegisflux.adapters.bus.nats import NatsBus

HEADER_CHARS, NUMBER_DIGITS = 500, 20


async def taken(nc: Client) -> None:
    """Until the server has all that was said before.

    nats-py 2.16 writes a PING at once and holds other commands back a little: the answer to the first one
    says nothing of a SUB before it, that to the second does.
    """
    await nc.flush()
    await nc.flush()


class Watch:
    """One subject, its messages handled in order."""

    def __init__(self, subject: str, handler: Handler, trouble: Callable[[str], None]) -> None:
        self.subject, self._handler, self._trouble = subject, handler, trouble
        self._bus: NatsBus | None = None
        self._sub: object = None

    async def attach(self, bus: "NatsBus", nc: Client) -> None:
        """Be heard on the connection."""
        self._bus = bus
        self._sub = await nc.subscribe(self.subject, cb=self._handle)
        await taken(nc)

    async def close(self) -> None:
        """Hear no more."""
        if self._bus is not None:
            self._bus.detach(self)
            await unsubscribe(self._sub)

    async def _handle(self, raw: Msg) -> None:
        try:
            await self._handler(message_of(raw))
        except Exception as error:  # noqa: BLE001 - a message loop's edge
            self._trouble(f"{raw.subject}: {type(error).__name__}: {error}")


def message_of(raw: Msg, subject: str | None = None) -> Message:
    """Our value of a message. `subject`: of one that was fetched directly, where the server says in headers
    when it was stored; in any other one these headers are its sender's.
    """
    headers = dict(raw.headers or {})
    sequence, deliveries, stored = 0, 1, 0
    if raw.reply.startswith("$JS.ACK."):
        # $JS.ACK.<stream>.<durable>.<deliveries>.<sequence>.<of the consumer>.<time>.<pending>, or with the
        # domain and the account before the stream, and a token more at the end.
        parts = raw.reply.split(".")
        start = 4 if len(parts) < 11 else 6
        wanted = (*parts[start : start + 4], "", "", "", "")
        deliveries, sequence, stored = _number(wanted[0]), _number(wanted[1]), _number(wanted[3])
    elif subject is not None:
        sequence = _number(headers.get("Nats-Sequence", ""))
        stored = nanoseconds(headers.get("Nats-Time-Stamp", ""))
    return Message(subject or raw.subject, bytes(raw.data), headers, sequence, deliveries, stored)


def _number(text: str) -> int:
    """A number of the server; 0 for what is none: clients write what they like into headers."""
    return int(text) if len(text) <= NUMBER_DIGITS and text.isascii() and text.isdigit() else 0


def nanoseconds(stamp: str) -> int:
    """A time as the bus writes it, RFC 3339 in UTC with up to nine digits, in nanoseconds since the epoch; 0
    when it is none.
    """
    whole, _, rest = stamp.rstrip("Z").partition(".")
    try:
        seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
        return seconds * 1_000_000_000 + int(rest[:9].ljust(9, "0"))
    except (ValueError, OverflowError):
        return 0


def header_text(text: str) -> str:
    """The text as a header value: one line, bounded."""
    return " ".join(text.split())[:HEADER_CHARS]


def described(error: Exception) -> str:
    """The error's text, or its name where it has none."""
    return skew.explained(str(error) or type(error).__name__, time.time())


async def unsubscribe(sub: object) -> None:
    """End a subscription of a connection that may be gone already."""
    try:
        await sub.unsubscribe()  # type: ignore[attr-defined]
    except (NatsError, ConnectionError):
        pass
