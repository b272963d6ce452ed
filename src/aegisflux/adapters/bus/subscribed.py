"""Subscriptions without a stream: watching and serving."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from aegisflux.adapters.bus.admission import host_in
from aegisflux.domain.errors import AegisError, Refused
from aegisflux.domain.shares import FairQueue, Share, Shares
from aegisflux.ports.bus import Handler, Message, Responder
from aegisflux.runtime.over_share import Refusals

if TYPE_CHECKING:
    from aegisflux.adapters.bus.nats import NatsBus

REFUSED, UNAVAILABLE, BUSY = "Aegisflux-Refused", "Aegisflux-Unavailable", "Aegisflux-Busy"
AT_ONCE = 64
EACH, IN_ALL = 16, 16_384
# Bytes of answers: a host that begins has 64 MiB of contents at once, then 8 MiB a second.
ANSWERS = Share(rate=float(8 << 20), burst=float(64 << 20))
ANSWER_COST = 16 << 10
REFUSALS = Share(rate=4.0, burst=32.0)  # answered; those beyond are only counted
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


class Service(Watch):
    """One subject, its requests answered by up to 64 tasks, each host in turn.

    What arrives is never left in the client's queue, where it would be first come, first served: it is put
    into its host's own queue, or refused.
    """

    def __init__(
        self, subject: str, responder: Responder, refusals: Refusals, trouble: Callable[[str], None]
    ) -> None:
        super().__init__(subject, self._nothing, trouble)
        self._responder, self._refusals = responder, refusals
        self._queue: FairQueue[Msg] = FairQueue(EACH, IN_ALL)
        self._answers, self._told = Shares(ANSWERS), Shares(REFUSALS)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Hear no more, and give up answers that are under way."""
        await super().close()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    async def _nothing(self, _message: Message) -> None:
        return

    async def _handle(self, raw: Msg) -> None:
        if lost := self._queue.put(host_in(raw.subject), raw):
            await self._refuse(*lost)
        self._start()

    async def _refuse(self, host: str, raw: Msg) -> None:
        self._refusals.note(host)
        if self._told.take(host, 1.0, time.monotonic()):
            words = f"{EACH} requests of {host} wait already: ask again in a second"
            await self._send(raw, b"", {BUSY: words})

    def _start(self) -> None:
        """Begin with as many answers as there is room for; with none of a host that used up its share."""
        now = time.monotonic()
        while len(self._tasks) < AT_ONCE:
            found = self._queue.get(lambda host: self._answers.wait(host, now))
            if not isinstance(found, tuple):
                if found is not None and self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(found, self._again)
                return
            self._answers.use(found[0], ANSWER_COST, now)
            task = asyncio.create_task(self._answer(found[1]))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _again(self) -> None:
        self._timer = None
        self._start()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._start()

    async def _answer(self, raw: Msg) -> None:
        body, headers = b"", None
        try:
            body = await self._responder(message_of(raw))
        except Refused as error:
            headers = {REFUSED: header_text(str(error))}
        except AegisError as error:
            headers = {UNAVAILABLE: header_text(str(error))}
        except Exception as error:  # noqa: BLE001 - a message loop's edge
            self._trouble(f"{raw.subject}: {type(error).__name__}: {error}")
            headers = {UNAVAILABLE: "the service failed; its log says why"}
        self._answers.use(host_in(raw.subject), float(len(body)), time.monotonic())
        await self._send(raw, body, headers)

    async def _send(self, raw: Msg, body: bytes, headers: dict[str, str] | None) -> None:
        try:
            await raw._client.publish(raw.reply, body, headers=headers)
        except NatsError as error:
            self._trouble(f"{raw.subject}: answer not sent: {error}")


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
    return str(error) or type(error).__name__


async def unsubscribe(sub: object) -> None:
    """End a subscription of a connection that may be gone already."""
    try:
        await sub.unsubscribe()  # type: ignore[attr-defined]
    except (NatsError, ConnectionError):
        pass
