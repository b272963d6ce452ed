"""Renewals: policies whose rollout was promoted, compiled again when the fleet has changed. What is stopped
is said where the rollout is shown.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec
from msgspec.structs import replace

from aegisflux.domain import policy_in_force as in_force
from aegisflux.domain import renewal
from aegisflux.domain import rollout as rollouts
from aegisflux.domain.decided import with_made
from aegisflux.domain.errors import AegisError, Conflict, Refused, Unavailable
from aegisflux.domain.policy import Policy
from aegisflux.domain.policy_compile import Inventory
from aegisflux.domain.policy_in_force import Compiled, compile_each, compile_in_force
from aegisflux.domain.rollout import Rollout
from aegisflux.domain.snapshot import MapSnapshot, Mode
from aegisflux.domain.text import first_of
from aegisflux.ports.store import Change, Queries, Row
from aegisflux.runtime import logs, places
from aegisflux.runtime.again import again
from aegisflux.runtime.believed import Kind, doubt_of
from aegisflux.runtime.beside import beside
from aegisflux.runtime.jobs import computed
from aegisflux.services.orchestrator import guard, state
from aegisflux.services.orchestrator.carried import Carried, Part, built, carried_of, check_free, made_of
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.past import withheld_from
from aegisflux.services.orchestrator.prepare import Prepared
from aegisflux.services.orchestrator.snapshots import store_and_tell
from aegisflux.wire import policyfile

EVERY: Final = 5.0
MOST_ODD: Final = 5
SELF: Final = Who()
log = logs.get("renewals")


class Renewals:
    """The clockwork of renewals. A host that somebody gave something newer (a panic) is left alone. What was
    seen when is in memory: after a restart a change waits anew."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._one_look = asyncio.Lock()
        self._reported: set[int] = set()
        self._quiet = ""  # the digest of a fleet for which nothing is due
        self._compiled: dict[int, Compiled] = {}  # by plan, for the look that goes on
        self._wanted: dict[int, tuple[bytes, float]] = {}
        self._renewed: dict[int, list[float]] = defaultdict(list)

    async def tick(self) -> None:
        """One round, then a pause."""
        await self.look()
        await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Renew what is due; one look at a time, since two would take each other's renewal for a conflict."""
        async with self._one_look:
            await self._look()

    async def _look(self) -> None:
        rows = await self._core.store.rows("live_rollouts")
        promoted = [row for row in rows if row["stage"] == "promoted"]
        here = await places.read(self._core.store) if promoted else None
        if here is None or here.digest == self._quiet:
            return
        quiet, self._compiled = True, await self._together(promoted, here)
        for row in reversed(promoted):
            try:
                quiet = await self._one(carried_of(row), await self._doubt("rollout", row), here) and quiet
            except AegisError as error:
                quiet = False
                log.info("not now", rollout=row["id"], reason=str(error))
            except Exception:  # what is wrong with one rollout stops no other
                quiet = False
                log.exception("cannot be renewed", rollout=row["id"])
        self._quiet, self._compiled = here.digest if quiet else "", {}

    async def _together(self, promoted: Sequence[Row], here: places.Now) -> dict[int, Compiled]:
        """The policies of these rollouts by plan, compiled in one process: each reads the inventory of the
        fleet. What fails here is left to its own turn, which says why."""
        policies: dict[int, Policy] = {}
        try:
            for plan in dict.fromkeys(row.get("plan") for row in promoted):
                row = await self._core.store.row("plan", plan)
                if plan is not None and row and not await self._doubt("plan", row):
                    with suppress(Refused):
                        stored = await beside(policyfile.read_stored, row["policy"])
                        policies[plan] = stored.policy
            if len(policies) < 2:
                return {}
            found = await computed(compile_each, list(policies.values()), here.inventory)
        except AegisError as error:
            log.info("each policy is compiled alone", reason=str(error))
            return {}
        return {plan: one for plan, one in zip(policies, found, strict=True) if one is not None}

    async def _doubt(self, kind: Kind, row: Row) -> str:
        """Why a plan or a rollout is not believed, in words; empty: it is."""
        return await doubt_of(self._core.register, self._core.store, kind, row)

    async def _one(self, carried: Carried, doubt: str, here: places.Now) -> bool:
        """Whether nothing is left to do for it while the fleet stays as it is."""
        row = await self._core.store.row("plan", carried.plan)
        if row is None:
            return True
        if doubt := doubt or await self._doubt("plan", row):
            await self._say(carried, f"not renewed: it is not as the audit log says: {doubt}")
            return False
        try:
            stored = await beside(policyfile.read_stored, row["policy"])
            self._report(carried, stored.odd)
            compiled = self._compiled.get(carried.plan)
            if compiled is None:
                compiled = await computed(compile_in_force, stored.policy, here.inventory)
        except Unavailable:
            raise
        except Refused as error:
            await self._say(carried, f"not renewed: {error}")
            return True
        quiet, done, notes = True, [], dict[str, None]()
        for part in carried.parts:
            before = here.in_force.get(part.service)
            if before is None or before.version != part.version:
                continue
            wanted = await beside(in_force.carried, part.service, before, compiled, here.inventory)
            notes |= dict.fromkeys(wanted.notes if wanted else ())
            if wanted is None or _same(before, wanted.snapshot):
                self._wanted.pop(part.service_id, None)
                continue
            quiet = False
            if await self._core.store.row("rollout_of_service", part.service_id) is not None:
                continue  # its rollout was planned for the fleet as it is; what it leaves is renewed then
            change = await beside(_change, before, wanted.snapshot, here.inventory)
            carried, word = await self._renewed_or_stopped(carried, part, wanted.snapshot, change)
            done.append(word)
        await self._say(carried, renewal.told(carried.run.reason, done, tuple(notes)))
        return quiet

    def _report(self, carried: Carried, odd: tuple[str, ...]) -> None:
        """Say once what of a policy in force would be refused in a new one."""
        if odd and carried.id not in self._reported:
            self._reported.add(carried.id)
            words = first_of(odd, MOST_ODD, "; ")
            log.warning("a policy in force has what new ones may not", rollout=carried.id, odd=words)

    async def _renewed_or_stopped(
        self, carried: Carried, part: Part, after: MapSnapshot, change: renewal.Delta
    ) -> tuple[Carried, str]:
        """The rollout as it is then, and what happened to the part, in words."""
        now, number = self._core.clock.now(), part.service_id
        encoded = msgspec.json.encode(after)
        known, since = self._wanted.get(number, (b"", now))
        if known != encoded:
            since = now
        self._wanted[number] = encoded, since
        if why := renewal.stopped(change, now - since, self._renewed[number], now):
            return carried, f"renewal of {part.service} waits: {why}"
        try:
            prepared = await self._core.workshop.prepare(encoded)
            changed = await self._renew(carried, part, prepared, str(change))
        except (Conflict, Refused) as error:
            if isinstance(error, Unavailable):
                raise
            return carried, f"renewal of {part.service} is held: {error}"
        self._renewed[number].append(now)
        self._wanted.pop(number, None)
        self._core.wake()
        log.info("renewed", service=part.service, version=prepared.version, change=str(change))
        return changed, changed.run.reason

    @again
    async def _renew(self, carried: Carried, part: Part, prepared: Prepared, words: str) -> Carried:
        now = self._core.now()
        async with self._core.store.change() as db:
            row = await db.row("lock_rollout", carried.id)
            if row is None or await self._doubt("rollout", row):
                raise Conflict("the rollout is not as the audit log says: see aegisflux audit verify")
            held = carried_of(row)
            service, rollout = await state.load(db, part.service_id)
            await check_free(db, part.service_id)
            if held.run.stage != "promoted" or rollout.stable != part.version:
                raise Conflict("something else was promoted meanwhile")
            if rollout.latest + 1 != prepared.version:
                raise Conflict(f"version {rollout.latest} was stored meanwhile")
            running = await state.running(db, service)
            spared = await guard.spared(self._core, db, {*running, *rollout.hosts})
            running -= spared
            running -= await withheld_from(db, part.service_id)
            await guard.check(self._core, db, running, prepared.mode, prepared.ttl_seconds)
            lease_until = now + self._core.lease(prepared.ttl_seconds)
            others = await _others(db, rollout, part, prepared.mode)
            ours = replace(rollout, hosts={h: g for h, g in rollout.hosts.items() if h not in others})
            step = rollouts.promote(ours, prepared.version, lease_until, running - others, spared)
            await store_and_tell(self._core, db, prepared, "renew", step.changed, SELF)
            await state.give(self._core.register, db, step, now)
            return await self._kept(db, held, part, prepared, tuple(sorted(running)), words)

    async def _kept(
        self, db: Change, held: Carried, part: Part, prepared: Prepared, hosts: tuple[str, ...], words: str
    ) -> Carried:
        fresh = replace(
            part,
            version=prepared.version,
            digest=prepared.digest,
            tables_digest=prepared.tables_digest,
            hosts=hosts,
        )
        parts = tuple(fresh if one.service_id == part.service_id else one for one in held.parts)
        did = f"{part.service}: version {prepared.version}: {words}"
        reason = renewal.RENEWED
        run = replace(held.run, reason=reason)
        await db.run("put_rollout_parts", held.id, built(parts), built(run))
        at, name = self._core.clock.now(), SELF.principal.name
        await db.run("add_rollout_step", held.id, at, run.stage, run.at, name, reason, [did])
        after = with_made(prepared.digest, await made_of(db, held.id))
        await db.audit(SELF.did("rollout.renewed", f"rollout/{held.id}", after=after, reason=did))
        return replace(held, run=run, parts=parts)

    async def _say(self, carried: Carried, reason: str) -> None:
        """Show it where the rollout is shown; the next look of the pilot leaves it there."""
        if carried.run.reason != reason:
            after = built(replace(carried.run, reason=reason))
            values = built(carried.run), after, built(carried.looked), self._core.clock.now()
            await self._core.store.run("looked", carried.id, *values)


async def _others(db: Queries, rollout: Rollout, part: Part, mode: Mode) -> set[str]:
    """Hosts that have something newer which is not the part's own content come back."""
    theirs = set()
    for version in {given.version for given in rollout.hosts.values() if given.version > part.version}:
        row = await db.row("content", part.service_id, version)
        if row is None or (row["copy_of"], row["mode"]) != (part.version, mode):
            theirs.add(version)
    return {host for host, given in rollout.hosts.items() if given.version in theirs}


def _change(before: MapSnapshot, after: MapSnapshot, inventory: Inventory) -> renewal.Delta:
    return renewal.delta(before, after, inventory.addresses(inventory.hosts))


def _same(before: MapSnapshot, after: MapSnapshot) -> bool:
    return replace(after, version=before.version) == before
