"""Rollouts in stages: begun from a plan, moved by evidence and by operators. Each step is one transaction
with all that follows from it, so that a restart at any point finds either the step or nothing of it.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from aegisflux.domain.decided import ENDED_DOUBTED, with_made
from aegisflux.domain.errors import Conflict, NotFound
from aegisflux.domain.guardrails import Wave, checked, within
from aegisflux.domain.plan import Plan, stale
from aegisflux.domain.stages import (
    Ask,
    Begin,
    Command,
    Enforce,
    Event,
    Keep,
    Offer,
    Run,
    Stage,
    Verb,
    step,
)
from aegisflux.ports.store import Change, Queries, Row
from aegisflux.runtime import logs, metrics, places
from aegisflux.runtime.again import again
from aegisflux.runtime.believed import Kind, doubt_of
from aegisflux.runtime.beside import beside
from aegisflux.services.orchestrator import state
from aegisflux.services.orchestrator.carried import (
    Carried,
    Done,
    Looked,
    Part,
    built,
    carried_of,
    load,
    made_of,
    readable,
    steps,
)
from aegisflux.services.orchestrator.carrier import Carrier, Copies, Overtaken
from aegisflux.services.orchestrator.core import Core, Who, Words
from aegisflux.services.orchestrator.prepare import Prepared
from aegisflux.services.orchestrator.snapshots import store_and_tell
from aegisflux.wire import policyfile

TRIES = 5
HOUR = 3600
DOUBTED = "abort it, and plan again: it is not as the audit log says"
log = logs.get("rollouts")


class Move(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an operator wants of a rollout that is, as far as they know, at this stage and turn."""

    stage: Stage
    turn: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    why: Words = ""


class Moved(Struct, frozen=True, kw_only=True):
    """Where a rollout stands after a step, and what was done, or with `dry_run` would be."""

    rollout: Carried
    did: tuple[str, ...]
    dry_run: bool = False


class Told(Struct, frozen=True, kw_only=True):
    """A rollout with its history, oldest step first."""

    rollout: Carried
    steps: tuple[Done, ...]


class Rollouts:
    """Begins, moves and shows rollouts."""

    def __init__(self, core: Core) -> None:
        self._core, self._carrier = core, Carrier(core)

    @again
    async def begin(self, plan: int, who: Who, dry_run: bool = False) -> Moved:
        """Carry out a plan; raises NotFound, or Conflict with all that stands in the way."""
        found, row = await self._plan(plan)
        prepared = {
            one.service: await self._core.workshop.prepare(msgspec.json.encode(one.snapshot))
            for one in found.services
        }
        if dry_run:
            await self._check(self._core.store, plan, found, row)
            carried = _drafted(plan, found, prepared, who, self._core.now())
            return Moved(rollout=carried, did=_said(step(carried.run, Begin(0.0))[1]), dry_run=True)
        now = self._core.now()
        async with self._core.store.change() as db:
            await self._check(db, plan, found, row)
            carried = _drafted(plan, found, prepared, who, now)
            for part in carried.parts:
                await self._store(db, part, prepared[part.service], who)
            values = who.principal.name, "draft", built(carried.run), built(carried.parts)
            made = await db.row("add_rollout", plan, now, *values)
            assert made is not None
            carried = msgspec.structs.replace(carried, id=made["id"])
            run, commands = step(carried.run, Begin(self._core.clock.now()))
            did = await self._carrier.do(db, carried, commands, {}, who)
            await self._keep(db, carried.id, run, who, did)
        self._core.wake()
        return Moved(rollout=await load(self._core.store, carried.id), did=did)

    async def move(self, number: int, verb: Verb, asked: Move, who: Who, dry_run: bool = False) -> Moved:
        """A verb of an operator; raises NotFound, or Conflict when the rollout is not where they think it is,
        when the verb cannot be used there, or when a guardrail does not hold."""
        event = Ask(self._core.clock.now(), verb, who.principal.name, asked.why)
        carried = await load(self._core.store, number)
        _check_stands(carried, asked)
        if dry_run:
            run, commands = step(carried.run, event)
            if held := await self.held(carried, commands):
                raise Conflict("; ".join(held))
            return Moved(rollout=msgspec.structs.replace(carried, run=run), did=_said(commands), dry_run=True)
        return await self.take(carried, event, who)

    async def take(self, carried: Carried, event: Event, who: Who) -> Moved:
        """One step with all that follows from it; raises Conflict when somebody else made one meanwhile."""
        for _ in range(TRIES):
            run, commands = step(carried.run, event)
            if held := await self.held(carried, commands):
                raise Conflict(f"rollout {carried.id}: {'; '.join(held)}")
            copies = await self._carrier.copies(carried, commands)
            try:
                did = await self._take(carried, run, commands, copies, who)
            except Overtaken:
                continue
            self._core.wake()
            log.info("rollout", rollout=carried.id, stage=run.stage, turn=run.at, reason=run.reason)
            metrics.rollouts.labels(run.stage).inc()
            return Moved(rollout=await load(self._core.store, carried.id), did=did)
        raise Conflict(f"rollout {carried.id}: its services are changed all the time; try again")

    @again
    async def _take(
        self, carried: Carried, run: Run, commands: Sequence[Command], copies: Copies, who: Who
    ) -> tuple[str, ...]:
        async with self._core.store.change() as db:
            row = await db.row("lock_rollout", carried.id)
            if row is None:
                raise NotFound(f"there is no rollout {carried.id}")
            held, doubt = carried_of(row), await self._doubt("rollout", row)
            if doubt and _goes_on(commands):
                raise Conflict(f"rollout {carried.id}: {DOUBTED}: {doubt}")
            if (_place(held.run), held.parts) != (_place(carried.run), carried.parts):
                await db.audit(who.did("rollout.overtaken", f"rollout/{carried.id}", after=held.run.stage))
                raise_moved(held)
            did = await self._carrier.do(db, carried, commands, copies, who)
            await self._keep(db, carried.id, run, who, did, bool(doubt))
        return did

    async def held(self, carried: Carried, commands: Sequence[Command]) -> list[str]:
        """Guardrails that do not hold for hosts that are about to enforce, in words."""
        row = await self._core.store.row("rollout", carried.id)
        if _goes_on(commands) and row and (doubt := await self._doubt("rollout", row)):
            return [f"{DOUBTED}: {doubt}"]
        hosts = [frozenset(command.hosts) for command in commands if isinstance(command, Enforce)]
        if not hosts:
            return []
        plan, row = await self._plan(carried.plan)
        if doubt := await self._doubt("plan", row):
            return [f"its plan is not as the audit log says: {doubt}"]
        return await self._broken(self._core.store, plan, row, hosts, 0)

    async def _doubt(self, kind: Kind, row: Row) -> str:
        """Why a plan or a rollout is not believed, in words; empty: it is."""
        return await doubt_of(self._core.register, self._core.store, kind, row)

    async def one(self, number: int) -> Told:
        """A rollout with its steps; raises NotFound."""
        store = self._core.store
        return Told(rollout=await load(store, number), steps=await steps(store, number))

    async def all(self, before: int, limit: int) -> tuple[Carried, ...]:
        """Rollouts, newest first."""
        return tuple(readable(await self._core.store.rows("rollouts", before, limit)))

    async def _plan(self, number: int) -> tuple[Plan, Row]:
        row = await self._core.store.row("plan", number)
        if row is None:
            raise NotFound(f"there is no plan {number}; see aegisflux segment plans")
        return msgspec.convert(row["body"], Plan), row

    async def _check(self, db: Queries, number: int, plan: Plan, row: Row) -> None:
        """Raises Conflict with all that stands in the way."""
        why = [*plan.held]
        here = await places.read(db)
        if doubt := await self._doubt("plan", row):
            why.append(f"it is not as the audit log says: {doubt}, and plan again")
        if here.digest != row["inventory_digest"]:
            policy = (await beside(policyfile.read_stored, row["policy"])).policy
            old = await beside(stale, plan, policy, here.inventory, here.in_force)
            why += [f"{one}: plan again" for one in old]
        if plan.approval and not row["approved_by"]:
            why.append(f"another person has to approve it: {', '.join(plan.approval)}")
        why += [f"a test of its policy fails: {one}" for one in plan.broken_tests]
        if not any(one.hosts for one in plan.services):
            why.append("it changes nothing on any host")
        for one in plan.services:
            running = await db.row("rollout_of_service", one.snapshot.service_id)
            if running is not None:
                number_of = running["id"]
                why.append(f"rollout {number_of} is carrying {one.service}: wait for it, or abort it")
        begun = await db.row("begun_since", self._core.now() - HOUR)
        first = [frozenset(hosts) for hosts in (plan.canary or plan.waves)[:1]]
        why += await self._broken(db, plan, row, first, begun["begun"] if begun else 0)
        if why:
            raise Conflict(f"plan {number} cannot begin: {'; '.join(dict.fromkeys(why))}")

    async def _broken(
        self, db: Queries, plan: Plan, row: Row, turns: Sequence[frozenset[str]], before: int
    ) -> list[str]:
        labels = {row["host_id"]: row["labels"] for row in await db.rows("host_labels")}
        known = row["author"] is not None
        approver = (row["approver"] if known else None) or row["approved_by"]
        found, limits = list[str](), within(plan.strategy.limits, self._core.options.limits)
        for hosts in turns:
            wave = Wave(
                hosts=hosts,
                labels=labels,
                members={one.service: frozenset(one.hosts) for one in plan.services},
                ttl_seconds=max((one.snapshot.ttl_seconds for one in plan.services), default=0),
                now=self._core.now(),
                author=row["author"] if known else row["created_by"],
                approvers=frozenset({approver} if approver else ()),
                enforces=any(one.snapshot.mode == "enforce" for one in plan.services),
                widens=plan.widens,
                changes_before=before,
            )
            found += [str(one) for one in checked(wave, limits)]
        return found

    async def _store(self, db: Change, part: Part, prepared: Prepared, who: Who) -> None:
        _, rollout = await state.load(db, part.service_id)
        if part.version <= rollout.latest:
            raise Conflict(f"{part.service}: version {part.version} was posted meanwhile: plan again")
        await store_and_tell(self._core, db, prepared, "post", part.hosts, who)

    async def _keep(
        self, db: Change, number: int, run: Run, who: Who, did: Sequence[str], doubted: bool = False
    ) -> None:
        await db.run("put_rollout_run", number, run.stage, built(run))
        name = who.principal.name
        await db.run("add_rollout_step", number, run.since, run.stage, run.at, name, run.reason, list(did))
        made = ENDED_DOUBTED if doubted else await made_of(db, number)
        where, after = f"rollout/{number}", with_made(f"turn {run.at}", made)
        await db.audit(who.did(f"rollout.{run.stage}", where, after=after, reason=run.reason))


def raise_moved(held: Carried) -> None:
    """Raises Conflict: somebody else was first."""
    stage = held.run.stage.replace("_", " ")
    raise Conflict(
        f"rollout {held.id}: it is at {stage}, turn {held.run.at}, by now ({held.run.reason}); look again"
    )


def _check_stands(carried: Carried, asked: Move) -> None:
    if (carried.run.stage, carried.run.at) != (asked.stage, asked.turn):
        raise_moved(carried)


def _place(run: Run) -> Run:
    """Where it stands, and how it goes on from there: all but the words."""
    return msgspec.structs.replace(run, reason="")


def _goes_on(commands: Sequence[Command]) -> bool:
    """Whether a step gives more to hosts, or nothing happens yet; what only takes back is never held up."""
    return not commands or any(isinstance(one, Offer | Enforce | Keep) for one in commands)


def _drafted(plan: int, found: Plan, prepared: dict[str, Prepared], who: Who, now: int) -> Carried:
    parts = tuple(
        Part(
            service_id=one.snapshot.service_id,
            service=one.service,
            version=one.snapshot.version,
            digest=prepared[one.service].digest,
            tables_digest=prepared[one.service].tables_digest,
            ttl_seconds=one.snapshot.ttl_seconds,
            replaces=one.replaces,
            hosts=one.hosts,
        )
        for one in found.services
    )
    run = Run(plan=plan, canary=found.canary, waves=found.waves, gate=found.strategy.gate)
    return Carried(
        id=0,
        plan=plan,
        created_at=now,
        created_by=who.principal.name,
        run=run,
        parts=parts,
        looked=Looked(),
    )


def _said(commands: Sequence[Command]) -> tuple[str, ...]:
    return tuple(
        f"{type(command).__name__}: {', '.join(getattr(command, 'hosts', ())) or 'all hosts'}"
        for command in commands
    )
