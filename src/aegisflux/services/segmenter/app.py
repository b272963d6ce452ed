"""The segmenter as a whole: what runs while it lives."""

from dataclasses import dataclass

from aegisflux.domain.guardrails import OPEN, Limits
from aegisflux.ports.clock import Clock
from aegisflux.ports.facts import Facts
from aegisflux.ports.store import Store
from aegisflux.runtime.access import Bearers, Who
from aegisflux.runtime.again import again
from aegisflux.runtime.register import Believer
from aegisflux.services.segmenter.again import Again
from aegisflux.services.segmenter.operations import Operation, Operations
from aegisflux.services.segmenter.plans import Plans
from aegisflux.services.segmenter.proposals import Proposals


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What it is made of. The store of facts is only read; `limits` are the fleet's."""

    store: Store
    facts: Facts
    clock: Clock
    believer: Believer
    limits: Limits = OPEN


class Segmenter:
    """Needs the store's schema; `close` ends what was begun and leaves the stores open."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.operations = Operations(parts.clock)
        self.proposals = Proposals(parts.store, parts.facts, parts.clock)
        self.plans = Plans(parts.store, self.proposals, parts.clock, parts.limits, parts.believer)
        self.again = Again(parts.store, self.proposals)
        self.bearers = Bearers(parts.store, parts.clock, parts.believer)
        self.started = False

    async def cancel(self, number: str, who: Who) -> Operation:
        """End an operation, and have the audit log say who did; raises NotFound, or Conflict when it has
        ended."""
        ended = await self.operations.cancel(number)
        await self._noted(ended, who)
        return ended

    @again
    async def _noted(self, ended: Operation, who: Who) -> None:
        async with self.parts.store.change() as db:
            await db.audit(who.did("segment.cancel", f"operation/{ended.id}", before=ended.kind))

    async def close(self) -> None:
        """End all operations."""
        await self.operations.close()
