"""A durable pull consumer that makes itself again when the bus's data was deleted."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from aegisflux.adapters.bus.admission import Admission, host_in
from aegisflux.adapters.bus.subscribed import described, header_text, message_of, unsubscribe
from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.ports.bus import BatchHandler, Message
from aegisflux.runtime.ending import end
from aegisflux.runtime.over_share import LetterRoom
from aegisflux.wire import subjects

if TYPE_CHECKING:
    from aegisflux.adapters.bus.nats import NatsBus

ACK_SECONDS, PROGRESS_SECONDS, PULL_SECONDS = 10.0, 3.0, 5.0
MAX_DELIVERIES = 2  # of what fails for another reason than our surroundings: it is in the message
MAX_UNSETTLED = 16_384
RETRY_SECONDS, RETRY_LIMIT = 0.1, 8
PENDING_BYTES = 64 << 20
# For each one that is over its host's share, before the next pull: reading a flood to its end takes the whole
# loop, and of a last value, or of a host's places on a stream, most of it is replaced in the meantime.
REST_SECONDS = 0.0004
# What the server says of a pull that has a bound in bytes; after the second the next message is for the next.
COMPLETED, TOO_MANY_BYTES = "Batch Completed", "MaxBytes"


class Consumer:
    """Pulls batches, hands them over, and acknowledges what was handled; tells the server meanwhile that it
    is at work, so that what a killed process held comes again soon.
    """

    def __init__(
        self,
        bus: "NatsBus",
        stream: str,
        durable: str,
        handler: BatchHandler,
        admission: Admission,
        letters: LetterRoom,
        trouble: Callable[[str], None],
        *,
        batch: int,
        linger: float,
        max_bytes: int,
    ) -> None:
        self._bus, self._stream, self._durable = bus, stream, durable
        self._handler, self._batch, self._linger, self._trouble = handler, batch, linger, trouble
        self._admission, self._letters, self._max_bytes = admission, letters, max_bytes
        self._task: asyncio.Task[None] | None = None

    async def attach(self, bus: "NatsBus", nc: Client) -> None:
        """Pull over the connection instead of an earlier one."""
        await self._cancel()
        self._task = asyncio.create_task(self._run(bus, nc), name=f"consumer {self._durable}")

    async def close(self) -> None:
        """Pull no more; what is not acknowledged comes again to the next one of this durable name."""
        self._bus.detach(self)
        await self._cancel()

    async def _cancel(self) -> None:
        if self._task is not None:
            await end(self._task)
            self._task = None

    async def _run(self, bus: "NatsBus", nc: Client) -> None:
        while not nc.is_closed:
            try:
                await self._create(nc)
                await self._pull(nc)
            except (NatsError, TimeoutError, Unavailable) as error:
                self._trouble(f"consumer {self._durable} of {self._stream}: {described(error)}")
                await asyncio.sleep(0.2)
                if bus.connected:
                    await self._heal(bus)
            except Exception as error:  # noqa: BLE001 - a loop's edge: a consumer that ends is never heard again
                self._trouble(f"consumer {self._durable}: {type(error).__name__}: {error}")
                await asyncio.sleep(0.2)

    async def _heal(self, bus: "NatsBus") -> None:
        try:
            await bus.ensure_streams()
        except Unavailable as error:
            self._trouble(str(error))

    async def _create(self, nc: Client) -> None:
        config = ConsumerConfig(
            durable_name=self._durable,
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
            ack_wait=ACK_SECONDS,
            max_ack_pending=MAX_UNSETTLED,  # those that wait for their host's share are among them
        )
        await nc.jetstream(timeout=5).add_consumer(self._stream, config)

    async def _pull(self, nc: Client) -> None:
        """Pull until the server says, or its silence shows, that the consumer is gone."""
        box = nc.new_inbox()
        sub = await nc.subscribe(box, pending_bytes_limit=PENDING_BYTES)
        bounds = {"batch": self._batch, "max_bytes": self._max_bytes, "expires": int(PULL_SECONDS * 1e9)}
        ask = json.dumps(bounds).encode()
        where = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._durable}"
        try:
            while not nc.is_closed:
                await nc.publish(where, ask, reply=box)
                wanted = self._batch
                while wanted > 0:
                    batch, ended = _sorted(await _arrived(sub, wanted, self._linger))
                    if admitted := await self._admitted(nc, batch):
                        await self._hold(nc, admitted)
                    if refused := len(batch) - len(admitted):
                        await asyncio.sleep(refused * REST_SECONDS)
                    wanted = 0 if ended else wanted - len(batch)
        finally:
            await unsubscribe(sub)

    async def _admitted(self, nc: Client, batch: Sequence[Msg]) -> list[Msg]:
        """Those within the share of their host; the others are settled here, which costs least."""
        found = []
        for raw in batch:
            seconds = self._admission.wait(raw.subject, raw.data)
            if seconds == 0:
                found.append(raw)
            elif self._admission.dropped:
                await nc.publish(raw.reply, b"+TERM")
            else:
                await nc.publish(raw.reply, _later(seconds))
        return found

    async def _hold(self, nc: Client, batch: Sequence[Msg]) -> None:
        beating = asyncio.create_task(_at_work(nc, batch))
        try:
            await self._handle(nc, batch)
        finally:
            beating.cancel()

    async def _handle(self, nc: Client, batch: Sequence[Msg]) -> None:
        try:
            await self._handler([message_of(raw) for raw in batch])
        except Exception as error:  # noqa: BLE001 - a message loop's edge
            if len(batch) == 1:
                await self._settle(nc, batch[0], error)
                return
            if isinstance(error, Unavailable) and all(message_of(raw).deliveries == 1 for raw in batch):
                await self._put_off(nc, batch, error)  # it is away for all: no part of them would fare better
                return
            middle = len(batch) // 2  # by halves: the others do not wait for each one that fails
            await self._handle(nc, batch[:middle])
            await self._handle(nc, batch[middle:])
            return
        for raw in batch:
            await nc.publish(raw.reply, b"+ACK")

    async def _put_off(self, nc: Client, batch: Sequence[Msg], error: Exception) -> None:
        self._trouble(f"{self._stream}: {len(batch)} messages come again: {described(error)}")
        for raw in batch:
            await nc.publish(raw.reply, _later(2 * RETRY_SECONDS))

    async def _settle(self, nc: Client, raw: Msg, error: Exception) -> None:
        message, reason = message_of(raw), f"{type(error).__name__}: {error}"
        last_try = message.deliveries >= MAX_DELIVERIES and not isinstance(error, Unavailable)
        if isinstance(error, Refused) or last_try:
            await self._bury(message, reason)
            await nc.publish(raw.reply, b"+TERM")
            return
        self._trouble(f"{raw.subject}: comes again: {reason}")
        await nc.publish(raw.reply, _later(RETRY_SECONDS * 2 ** min(message.deliveries, RETRY_LIMIT)))

    async def _bury(self, message: Message, reason: str) -> None:
        if not self._letters.take(host_in(message.subject), len(message.payload)):
            return
        self._trouble(f"{message.subject}: dead letter: {reason}")
        headers = {"Aegisflux-Reason": header_text(reason), "Aegisflux-Subject": message.subject}
        msg_id = f"dead:{self._stream}:{self._durable}:{message.sequence}"
        payload = message.payload[: subjects.MAX_LETTER]
        await self._bus.publish(subjects.dead(self._stream), payload, msg_id=msg_id, headers=headers)


def _later(seconds: float) -> bytes:
    """The answer to the server that brings a message again."""
    return b"-NAK " + json.dumps({"delay": int(seconds * 1e9)}).encode()


async def _at_work(nc: Client, batch: Sequence[Msg]) -> None:
    """Until cancelled; what was acknowledged already is not in the server's hand any more, and ignored."""
    with contextlib.suppress(NatsError):
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            for raw in batch:
                await nc.publish(raw.reply, b"+WPI")


async def _arrived(sub: object, most: int, linger: float) -> list[Msg]:
    """The next message, and all that lie behind it when it has lingered."""
    found = [await sub.next_msg(timeout=PULL_SECONDS + 2)]  # type: ignore[attr-defined]
    if linger and found[0].reply.startswith("$JS.ACK.") and sub.pending_msgs < most - 1:  # type: ignore[attr-defined]
        await asyncio.sleep(linger)
    while len(found) < most and sub.pending_msgs:  # type: ignore[attr-defined]
        found.append(await sub.next_msg(timeout=1))  # type: ignore[attr-defined]
    return found


def _sorted(found: Sequence[Msg]) -> tuple[list[Msg], bool]:
    """Messages proper, and whether the pull has ended; raises Unavailable when the consumer is gone."""
    batch = [raw for raw in found if raw.reply.startswith("$JS.ACK.")]
    said = [raw.headers or {} for raw in found if not raw.reply.startswith("$JS.ACK.")]
    ended = False
    for headers in said:
        words = headers.get("Description", "nobody answers")
        if words == COMPLETED:  # of a pull that was counted to its end already
            continue
        if headers.get("Status") != "408" and TOO_MANY_BYTES not in words:
            raise Unavailable(f"{headers.get('Status')} {words}")
        ended = True
    return batch, ended
