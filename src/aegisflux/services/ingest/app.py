"""Ingest as a whole: what runs while it lives."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.domain.intake import Offsets
from aegisflux.ports.bus import Bus, Message, Subscription
from aegisflux.ports.clock import Clock
from aegisflux.ports.store import Store
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.access import Bearers
from aegisflux.runtime.tasks import Tasks
from aegisflux.services.ingest.intake import BATCH, Outcome, Refusal, check
from aegisflux.services.ingest.letters import HOST, REASON, SUBJECT, TIME, Letters
from aegisflux.services.ingest.posted import Posted
from aegisflux.wire import subjects

DURABLE = "ingest"
STREAM = subjects.stream_of(subjects.ALL_TELEMETRY).name
RECEIVED, OFFSET = "Aegisflux-Received", "Aegisflux-Offset"
PUBLISHES_AT_ONCE, BATCH_MESSAGES = 64, 256
LAG_SECONDS = 2.0
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
log = logs.get("ingest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What it is made of."""

    bus: Bus
    store: Store
    clock: Clock


class Ingest:
    """`start` needs an opened bus (connected or not); `close` leaves bus and store open. It keeps no state
    that a restart would miss.
    """

    def __init__(self, parts: Parts) -> None:
        self.bus, self.store, self.clock = parts.bus, parts.store, parts.clock
        self.bearers = Bearers(parts.store, parts.clock)
        self.offsets = Offsets()
        self.letters = Letters(parts.bus)
        self.posted = Posted(self.let_through, self.letters)
        self.letters.posted = self.posted.again
        self._slots = asyncio.Semaphore(PUBLISHES_AT_ONCE)
        self._tasks = Tasks()
        self._reading: Subscription | None = None
        self.waiting = ""
        self.lag = 0
        self.started = False

    async def start(self) -> None:
        """Consume what hosts send."""
        await self.bus.ensure_streams()
        self._reading = await self.bus.consume(STREAM, DURABLE, self.on_batches, batch=BATCH_MESSAGES)
        self._tasks.loop("lag", self._measure)
        self.started = True

    async def close(self) -> None:
        """Read no more; what is in hand comes again to the next one."""
        await self._tasks.close()
        if self._reading is not None:
            await self._reading.close()

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return int(self.clock.now() * 1e9)

    async def on_batches(self, messages: Sequence[Message]) -> None:
        """Messages of hosts; done when all that goes on, and all that does not, is stored."""
        await asyncio.gather(*(self._one(message) for message in messages))

    async def _one(self, message: Message) -> None:
        # The bus's time of arrival is the same when the message comes again.
        arrival = message.stored_ns or self.now_ns()
        host = ""
        try:
            host = subjects.host_of(message.subject)
            outcome = check(message.payload, host, arrival)
        except Refused as error:
            outcome = Outcome(None, None, (Refusal(BATCH, str(error), message.payload),))
        if outcome.payload is not None and outcome.batch is not None:
            offset = self.offsets.observe(host, arrival, outcome.batch.sent_ns)
            await self._pass(outcome, {RECEIVED: str(arrival), HOST: host, OFFSET: str(offset)})
        for refusal in outcome.refused:
            await self._bury(message.subject, host, arrival, refusal)
        _count(outcome)

    async def let_through(self, outcome: Outcome, arrival: int) -> None:
        """Publish what a third party posted; raises Unavailable when the bus does not take it in time."""
        assert outcome.payload is not None
        assert outcome.batch is not None
        headers = {RECEIVED: str(arrival), HOST: outcome.batch.host_id}
        async with self._slots:
            await self.bus.publish(subjects.RAW, outcome.payload, msg_id=outcome.msg_id, headers=headers)
        _count(outcome)

    async def _pass(self, outcome: Outcome, headers: dict[str, str]) -> None:
        """Publish until it is stored, however long the bus is away or full: the message waits meanwhile."""
        assert outcome.payload is not None
        pause = FIRST_PAUSE
        async with self._slots:
            while True:
                try:
                    await self.bus.publish(
                        subjects.RAW, outcome.payload, msg_id=outcome.msg_id, headers=headers
                    )
                except Unavailable as error:
                    if not self.waiting:
                        log.warning("waits", error=str(error))
                    self.waiting = str(error)
                    metrics.intake_waits.inc()
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LAST_PAUSE)
                    continue
                self.waiting = ""
                return

    async def _bury(self, subject: str, host: str, arrival: int, refusal: Refusal) -> None:
        headers = {REASON: refusal.reason, SUBJECT: subject, HOST: host, TIME: str(arrival)}
        log.info("refused", host_id=host, reason=refusal.reason, events=refusal.events)
        await self.letters.bury(STREAM, refusal.payload, headers)

    async def _measure(self) -> None:
        self.lag = await self.bus.lag(STREAM, DURABLE)
        metrics.intake_lag.set(self.lag)
        await asyncio.sleep(LAG_SECONDS)


def _count(outcome: Outcome) -> None:
    if outcome.batch is None:
        metrics.intake_batches.labels("refused").inc()
    else:
        remade = outcome.refused or outcome.clamped
        metrics.intake_batches.labels("remade" if remade else "whole").inc()
        metrics.events_taken.inc(len(outcome.batch.events))
    metrics.intake_refused.inc(sum(refusal.events for refusal in outcome.refused))
    metrics.events_clamped.inc(outcome.clamped)
