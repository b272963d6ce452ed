"""Ingest as a whole: what runs while it lives."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from msgspec import Raw

from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.domain.intake import Boots, Offsets
from aegisflux.domain.shares import Share, Shares
from aegisflux.ports.bus import Bus, Fair, Message, Subscription
from aegisflux.ports.clock import Clock
from aegisflux.ports.store import Store
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.access import Bearers
from aegisflux.runtime.register import Believer
from aegisflux.runtime.spare import Spare
from aegisflux.runtime.tasks import Tasks
from aegisflux.services.ingest.intake import BATCH, Outcome, Refusal, check
from aegisflux.services.ingest.letters import HOST, REASON, SUBJECT, TIME, Letters
from aegisflux.services.ingest.posted import Posted
from aegisflux.wire import subjects
from aegisflux.wire.events import Sealed, count_events, encode_taken

DURABLE = "ingest"
STREAM = subjects.stream_of(subjects.ALL_TELEMETRY).name
PUBLISHES_AT_ONCE, BATCH_MESSAGES = 16, 256
PULL_BYTES = 4 << 20  # decoded they take up to forty times as much
# Of one host: more than an agent makes of 5,000 events a second, so that what it kept while we were away
# arrives too. What is beyond waits on the bus, where a host has few places, and then in its own spool.
FAIR = Fair(
    Share(rate=100.0, burst=400.0),
    Share(rate=float(2 << 20), burst=float(8 << 20)),
    parts=Share(rate=6000.0, burst=12_000.0),  # small events cost as much as large ones, here and in enrich
    count=count_events,
)
# Of one host while the disk is nearly full, some 100 events a second: a flood does not fill it for all.
SCARCE = Share(rate=float(16 << 10), burst=float(1 << 20))
LINGER_SECONDS = 0.02
BUNDLE, BUNDLE_BYTES = 16, 400 << 10
LAG_SECONDS = 2.0
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
log = logs.get("ingest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What it is made of. `spare`: what is let through leaves it free; None: all of the disk may be used."""

    bus: Bus
    store: Store
    clock: Clock
    believer: Believer
    spare: Spare | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A message and what becomes of it. `arrival` and `offset` in nanoseconds."""

    outcome: Outcome
    subject: str
    host: str
    arrival: int
    offset: int


def bundled(judged: Iterable[Judged]) -> Iterator[list[Judged]]:
    """What goes on, as many at a time as one message of the bus holds well; what came twice, once."""
    found: list[Judged] = []
    size = 0
    unlike = {one.outcome.msg_id: one for one in judged if one.outcome.payload is not None}
    for one in unlike.values():
        assert one.outcome.payload is not None
        if found and (len(found) == BUNDLE or size + len(one.outcome.payload) > BUNDLE_BYTES):
            yield found
            found, size = [], 0
        found.append(one)
        size += len(one.outcome.payload)
    if found:
        yield found


class Ingest:
    """`start` needs an opened bus (connected or not); `close` leaves bus and store open. It keeps no state
    that a restart would miss.
    """

    def __init__(self, parts: Parts) -> None:
        self.bus, self.store, self.clock = parts.bus, parts.store, parts.clock
        self._spare = parts.spare
        self.bearers = Bearers(parts.store, parts.clock, parts.believer)
        self.offsets, self._boots = Offsets(), Boots()
        self.letters = Letters(parts.bus)
        self.posted = Posted(self.let_through, self.letters, Shares(SCARCE), self._is_scarce)
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
        self._reading = await self.bus.consume(
            STREAM,
            DURABLE,
            self.on_batches,
            batch=BATCH_MESSAGES,
            linger=LINGER_SECONDS,
            max_bytes=PULL_BYTES,
            fair=replace(FAIR, scarce=SCARCE, is_scarce=self._is_scarce),
        )
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
        judged = [self._judged(message) for message in messages]
        await asyncio.gather(*(self._pass(bundle) for bundle in bundled(judged)))
        refused = [(one, refusal) for one in judged for refusal in one.outcome.refused]
        await asyncio.gather(*(self._bury(*one) for one in refused))
        for one in judged:
            _count(one.outcome)
            _tell(one)

    def _judged(self, message: Message) -> Judged:
        # The bus's time of arrival is the same when the message comes again.
        arrival = message.stored_ns or self.now_ns()
        host, offset = "", 0
        try:
            host = subjects.host_of(message.subject)
            outcome = check(message.payload, host, arrival)
            if outcome.batch is not None:
                self._boots.check(host, outcome.batch.boot_id, time.monotonic())
        except Refused as error:
            outcome = Outcome(None, None, (Refusal(BATCH, str(error), message.payload),))
        if outcome.batch is not None:
            offset = self.offsets.observe(host, arrival, outcome.batch.sent_ns)
        return Judged(outcome, message.subject, host, arrival, offset)

    async def let_through(self, outcome: Outcome, arrival: int) -> None:
        """Publish what a third party posted; raises Unavailable when the bus does not take it in time."""
        assert outcome.batch is not None
        (bundle,) = bundled([Judged(outcome, "", outcome.batch.host_id, arrival, 0)])
        async with self._slots:
            await self._publish(bundle)
        _count(outcome)

    async def _pass(self, bundle: Sequence[Judged]) -> None:
        """Publish until it is stored, however long the bus is away or full: the messages wait meanwhile."""
        pause = FIRST_PAUSE
        async with self._slots:
            while True:
                try:
                    await self._publish(bundle)
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

    async def _publish(self, bundle: Sequence[Judged]) -> None:
        if self._spare is not None:
            self._spare.check()
        sealed = [Sealed(one.arrival, one.offset, Raw(one.outcome.payload or b"")) for one in bundle]
        payload = encode_taken(sealed)  # a digest as id suppresses nothing but the same bytes
        await self.bus.publish(subjects.RAW, payload, msg_id=sha256(payload).hexdigest())

    def _is_scarce(self) -> bool:
        return self._spare is not None and self._spare.is_scarce()

    async def _bury(self, judged: Judged, refusal: Refusal) -> None:
        host, arrival = judged.host, str(judged.arrival)
        headers = {REASON: refusal.reason, SUBJECT: judged.subject, HOST: host, TIME: arrival}
        async with self._slots:
            await self.letters.bury(STREAM, refusal.payload, headers)

    async def _measure(self) -> None:
        self.lag = await self.bus.lag(STREAM, DURABLE)
        metrics.intake_lag.set(self.lag)
        if self._is_scarce():
            log.warning("the disk is nearly full: hosts have a small share each", bytes_a_second=SCARCE.rate)
        await asyncio.sleep(LAG_SECONDS)


def _tell(judged: Judged) -> None:
    """One line for a message, of however many events."""
    if refused := judged.outcome.refused:
        events = sum(refusal.events for refusal in refused)
        log.info("refused", host_id=judged.host, reason=refused[0].reason, events=events)


def _count(outcome: Outcome) -> None:
    if outcome.batch is None:
        metrics.intake_batches.labels("refused").inc()
    else:
        remade = outcome.refused or outcome.clamped
        metrics.intake_batches.labels("remade" if remade else "whole").inc()
        metrics.events_taken.inc(len(outcome.batch.events))
    metrics.intake_refused.inc(sum(refusal.events for refusal in outcome.refused))
    metrics.events_clamped.inc(outcome.clamped)
