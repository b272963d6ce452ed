"""Ingest as a whole: batches of hosts in, what is well out, what is not to the dead letters."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.intake import Offsets
from aegisflux.ports.bus import Bus, Message
from aegisflux.ports.clock import Clock
from aegisflux.ports.store import Queries
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.access import Bearers
from aegisflux.services.ingest.intake import Outcome, Refusal, check
from aegisflux.wire import subjects

DURABLE: Final = "ingest"
PULL: Final = 128
PUBLISHES_AT_ONCE: Final = 64
TELEMETRY = subjects.stream_of(subjects.ALL_TELEMETRY).name
log = logs.get("ingest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What it is made of."""

    bus: Bus
    store: Queries
    clock: Clock


class Ingest:
    """`start` needs an opened bus; it keeps no state that a restart would miss."""

    def __init__(self, parts: Parts, time_ns: Callable[[], int] = time.time_ns) -> None:
        self.parts = parts
        self.bearers = Bearers(parts.store, parts.clock)
        self.offsets = Offsets()
        self.started = False
        self._time_ns = time_ns
        self._slots = asyncio.Semaphore(PUBLISHES_AT_ONCE)

    async def start(self) -> None:
        """Consume what hosts send. Raises Unavailable."""
        await self.parts.bus.ensure_streams()
        await self.parts.bus.consume(TELEMETRY, DURABLE, self.on_telemetry, batch=PULL)
        self.started = True

    async def on_telemetry(self, messages: Sequence[Message]) -> None:
        """Messages of `telemetry.<host>`; done when all that goes on is stored, and all that does not is a
        dead letter.
        """
        arrival = self._time_ns()
        await asyncio.gather(*(self._one(message, arrival) for message in messages))

    async def _one(self, message: Message, arrival: int) -> None:
        host = subjects.host_of(message.subject)
        outcome = check(message.payload, host, arrival)
        for refusal in outcome.refused:
            await self.bury(message.subject, host, refusal)
        if outcome.batch is not None:
            offset = self.offsets.observe(host, arrival, outcome.batch.sent_ns)
            await self.pass_on(outcome, arrival, offset)

    async def pass_on(self, outcome: Outcome, arrival: int, offset: int) -> None:
        """Store what goes on in `events.raw`."""
        assert outcome.payload is not None and outcome.batch is not None
        headers = {"Aegisflux-Received": str(arrival), "Aegisflux-Offset": str(offset)}
        async with self._slots:
            await self.parts.bus.publish(
                subjects.RAW, outcome.payload, msg_id=outcome.msg_id, headers=headers
            )
        metrics.events_taken.inc(len(outcome.batch.events))
        metrics.events_clamped.inc(outcome.clamped)

    async def bury(self, subject: str, host: str, refusal: Refusal) -> None:
        """Keep what was refused, with its reason."""
        headers = {
            "Aegisflux-Reason": _header(refusal.reason),
            "Aegisflux-Subject": subject,
            "Aegisflux-Host": host,
        }
        number = sha256(f"{host}:{refusal.place}:".encode() + refusal.payload).hexdigest()[:32]
        payload = refusal.payload[: subjects.MAX_MESSAGE]
        async with self._slots:
            await self.parts.bus.publish(
                subjects.dead(TELEMETRY), payload, msg_id=f"dead:{number}", headers=headers
            )
        metrics.dead_letters.inc()
        log.warning("refused", host_id=host, place=refusal.place, reason=refusal.reason)

    async def check_bus(self) -> str:
        """Whether the bus can be used, in words."""
        if not self.parts.bus.connected:
            raise Unavailable("not connected")
        return "connected"


def _header(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)[:1000]
