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

from aegisflux.adapters.bus.subscribed import described, end, header_text, message_of, unsubscribe
from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.ports.bus import BatchHandler, Message
from aegisflux.wire import subjects

if TYPE_CHECKING:
    from aegisflux.adapters.bus.nats import NatsBus

ACK_SECONDS, PROGRESS_SECONDS, PULL_SECONDS = 10.0, 3.0, 5.0
MAX_DELIVERIES = 5
RETRY_NANOSECONDS, RETRY_LIMIT = 100_000_000, 8
PENDING_BYTES = 64 << 20


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
        batch: int,
        linger: float,
        trouble: Callable[[str], None],
    ) -> None:
        self._bus, self._stream, self._durable = bus, stream, durable
        self._handler, self._batch, self._linger, self._trouble = handler, batch, linger, trouble
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
            max_ack_pending=max(1024, 4 * self._batch),
        )
        await nc.jetstream(timeout=5).add_consumer(self._stream, config)

    async def _pull(self, nc: Client) -> None:
        """Pull until the server says, or its silence shows, that the consumer is gone."""
        box = nc.new_inbox()
        sub = await nc.subscribe(box, pending_bytes_limit=PENDING_BYTES)
        ask = json.dumps({"batch": self._batch, "expires": int(PULL_SECONDS * 1e9)}).encode()
        where = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._durable}"
        try:
            while not nc.is_closed:
                await nc.publish(where, ask, reply=box)
                wanted = self._batch
                while wanted > 0:
                    batch, ended = _sorted(await _arrived(sub, wanted, self._linger))
                    if batch:
                        await self._hold(nc, batch)
                    wanted = 0 if ended else wanted - len(batch)
        finally:
            await unsubscribe(sub)

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
            for raw in batch:
                await self._handle(nc, [raw])
            return
        for raw in batch:
            await nc.publish(raw.reply, b"+ACK")

    async def _settle(self, nc: Client, raw: Msg, error: Exception) -> None:
        message, reason = message_of(raw), f"{type(error).__name__}: {error}"
        last_try = message.deliveries >= MAX_DELIVERIES and not isinstance(error, Unavailable)
        if isinstance(error, Refused) or last_try:
            await self._bury(message, reason)
            await nc.publish(raw.reply, b"+TERM")
            return
        self._trouble(f"{raw.subject}: comes again: {reason}")
        delay = RETRY_NANOSECONDS << min(message.deliveries, RETRY_LIMIT)
        await nc.publish(raw.reply, b"-NAK " + json.dumps({"delay": delay}).encode())

    async def _bury(self, message: Message, reason: str) -> None:
        self._trouble(f"{message.subject}: dead letter: {reason}")
        headers = {"Aegisflux-Reason": header_text(reason), "Aegisflux-Subject": message.subject}
        msg_id = f"dead:{self._stream}:{self._durable}:{message.sequence}"
        payload = message.payload[: subjects.MAX_LETTER]
        await self._bus.publish(subjects.dead(self._stream), payload, msg_id=msg_id, headers=headers)


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
    for headers in said:
        if headers.get("Status") != "408":
            raise Unavailable(f"{headers.get('Status')} {headers.get('Description', 'nobody answers')}")
    return batch, bool(said)
