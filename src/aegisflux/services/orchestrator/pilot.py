"""What moves rollouts by itself: it looks at each that is live, every second, and steps where the evidence
says so. All it knows is in the store, so that it goes on after a restart where it was.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from aegisflux.domain.errors import AegisError, Conflict, Refused, Unavailable
from aegisflux.domain.stages import ENFORCES, Evidence, Expire, Look, Supersede, step
from aegisflux.ports.store import Row
from aegisflux.runtime import logs
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator.carried import Carried, built, carried_of
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.evidence import Reader, Seen
from aegisflux.services.orchestrator.rollouts import Rollouts

EVERY: Final = 0.5
AWAY_SECONDS: Final = 5.0
WATCH_EVERY: Final = 5.0
SELF: Final = Who()
log = logs.get("pilot")


class Pilot:
    """The clockwork of rollouts; every step is safe to do twice."""

    def __init__(self, core: Core, rollouts: Rollouts) -> None:
        self._core, self._rollouts, self._reader = core, rollouts, Reader(core)
        self._since = self._looked = self._watched = 0.0

    async def tick(self) -> None:
        """One round, then a pause."""
        await self.look()
        await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Look at every live rollout, at promoted ones less often."""
        live = await self._core.store.rows("live_rollouts")
        self._reader.forget(row["id"] for row in live)
        now = self._core.clock.now()
        if now - self._looked > AWAY_SECONDS:
            self.patient()
        self._looked = now
        watch = now - self._watched >= WATCH_EVERY
        if watch:
            self._watched = now
        for row in live:
            if row["stage"] != "promoted" or watch:
                await self._tried(row)

    def patient(self) -> None:
        """We were away, or the store or the bus was: silence counts from now on."""
        self._since = self._core.clock.now()

    async def _tried(self, row: Row) -> None:
        """What is wrong with one rollout stops no other."""
        try:
            carried = carried_of(row)
            try:
                await self._one(carried)
            except (Conflict, Unavailable):
                raise
            except Refused as error:
                await self._failed(carried, str(error))
        except AegisError as error:
            log.info("not now", rollout=row["id"], reason=str(error))
        except Exception:
            log.exception("a rollout cannot be looked at", rollout=row["id"])

    async def _one(self, carried: Carried) -> None:
        if carried.run.stage == "promoted" and (await self._superseded(carried) or self._settled(carried)):
            return
        if carried.run.stage in ("canary", "waves") and await self._ended(carried):
            return
        seen = await self._reader.read(carried)
        look = Look(self._core.clock.now(), self._patient(seen.evidence))
        run, commands = step(carried.run, look)
        if run.stage == carried.run.stage and not commands:
            await self._note(carried, replace(carried, run=run), seen)
        elif held := await self._rollouts.held(carried, commands):
            waits = replace(carried.run, reason=f"waits: {'; '.join(held)}")
            await self._note(carried, replace(carried, run=waits), seen)
        else:
            await self._note(carried, carried, seen)
            await self._rollouts.take(carried, look, SELF)

    def _settled(self, carried: Carried) -> bool:
        """Whether it has been promoted for so long that nothing takes it back by itself any more."""
        return self._core.clock.now() - carried.run.since > carried.run.gate.watch_seconds

    def _patient(self, evidence: Evidence) -> Evidence:
        """Silence counts from when we could hear."""
        return replace(evidence, heard={host: max(at, self._since) for host, at in evidence.heard.items()})

    async def _note(self, before: Carried, after: Carried, seen: Seen) -> None:
        values = built(before.run), built(after.run), built(seen.looked), self._core.clock.now()
        await self._core.store.run("looked", before.id, *values)

    async def _failed(self, carried: Carried, why: str) -> None:
        """A step that the control plane itself refuses, such as a host that has no room: it fails."""
        log.warning("a step was refused", rollout=carried.id, reason=why)
        if carried.run.stage == "promoted":
            return
        evidence = Evidence(nacked={"the control plane": why})
        await self._rollouts.take(carried, Look(self._core.clock.now(), evidence), SELF)

    async def _superseded(self, carried: Carried) -> bool:
        rows = {row["id"]: row for row in await self._core.store.rows("services")}
        if any(rows[p.service_id]["stable"] == p.version for p in carried.parts if p.service_id in rows):
            return False
        later = await self._core.store.row("promoted_later", carried.id, carried.services)
        event = Supersede(self._core.clock.now(), later["id"] if later else None)
        await self._rollouts.take(carried, event, SELF)
        return True

    async def _ended(self, carried: Carried) -> bool:
        """Renew the leases of what is on trial; those that ended while we were away have ended."""
        hosts = sorted(carried.run.enforced)
        rows = await self._core.store.rows("assigned_of", carried.services, hosts)
        version = {part.service_id: part.version for part in carried.parts}
        mine = [row for row in rows if version[row["service_id"]] == row["version"]]
        now = self._core.now()
        if any(row["lease_until"] <= now for row in mine):
            await self._rollouts.take(carried, Expire(self._core.clock.now()), SELF)
            return True
        await self._renew(carried, mine, now)
        return False

    @again
    async def _renew(self, carried: Carried, mine: Sequence[Row], now: int) -> None:
        assert carried.run.stage in ENFORCES
        for part in carried.parts:
            lease = self._core.lease(part.ttl_seconds)
            own = [row for row in mine if row["service_id"] == part.service_id]
            due = [row["host_id"] for row in own if (row["lease_until"] - now) * 2 <= lease]
            if not due:
                continue
            async with self._core.store.change() as db:
                await db.run("renew_trial", part.service_id, part.version, due, now + lease)
                db.bump(due)
                where = f"rollout/{carried.id}"
                told = f"{part.service}: {len(due)} hosts, while the rollout goes on"
                await db.audit(SELF.did("lease.renew", where, after=told))
            self._core.wake()
