"""What a rollout's commands do to the desired state, inside of the transaction of its step."""

from collections.abc import Mapping, Sequence

from msgspec import structs

from aegisflux.domain import rollout as rollouts
from aegisflux.domain.errors import NotFound
from aegisflux.domain.rollout import Rollout, Step
from aegisflux.domain.stages import Command, Enforce, Keep, Offer, TakeBack, Withdraw
from aegisflux.ports.store import Change, Queries
from aegisflux.services.orchestrator import guard, state
from aegisflux.services.orchestrator.carried import Carried, Part, built, readable
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.prepare import Prepared
from aegisflux.services.orchestrator.snapshots import store_and_tell

Copies = Mapping[int, Prepared]


class Overtaken(Exception):
    """A version that was prepared is not the next one any more: prepare it again."""


class Carrier:
    """Does commands; each is safe to do twice."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def copies(self, carried: Carried, commands: Sequence[Command]) -> Copies:
        """What comes back, compiled under the next version of each service, where something comes back."""
        if not any(isinstance(command, TakeBack) for command in commands):
            return {}
        found, store = {}, self._core.store
        for part in carried.parts:
            stored = await store.row("snapshot", part.service_id, part.replaces) if part.replaces else None
            if stored is None:
                continue
            _, rollout = await state.load(store, part.service_id)
            found[part.service_id] = await self._core.workshop.copy(stored["snapshot"], rollout.latest + 1)
        return found

    async def do(
        self, db: Change, carried: Carried, commands: Sequence[Command], copies: Copies, who: Who
    ) -> tuple[str, ...]:
        """What was done, in words; raises Overtaken."""
        done: list[str] = []
        enrolled = {row["host_id"] for row in await db.rows("host_labels")}
        for command in commands:
            for part in carried.parts:
                hosts = sorted(_hosts(command, carried) & set(part.hosts) & enrolled)
                done += await self._one(db, carried, part, command, hosts, copies.get(part.service_id), who)
        return tuple(done)

    async def _one(
        self, db: Change, carried: Carried, part: Part, command: Command, hosts: list[str],
        copy: Prepared | None, who: Who,
    ) -> list[str]:  # fmt: skip
        now = self._core.now()
        try:
            service, rollout = await state.load(db, part.service_id)
        except NotFound:
            return [f"{part.service}: it is not registered any more"]
        lease_until = now + self._core.lease(part.ttl_seconds)
        match command:
            case Offer():
                changed = await state.offer(db, rollout, part.version, hosts)
                return [f"{part.service}: judged beside on {len(changed)} hosts"]
            case Enforce():
                if rollout.latest != part.version:
                    raise Overtaken
                step = rollouts.post(rollout, part.version, lease_until, hosts, hosts)
                await state.save(db, step, now)
                await db.run("ask_preflight", part.service_id, hosts, not await _accepted(db, carried.plan))
                await state.end_offers(db, part.service_id, hosts)
                return [f"{part.service}: version {part.version} to {', '.join(hosts)}"] if hosts else []
            case Keep():
                running = await state.running(db, service)
                running -= await guard.spared(self._core, db, running)
                step = rollouts.promote(rollout, part.version, lease_until, running)
                await state.save(db, step, now)
                return [f"{part.service}: version {part.version} promoted"]
            case TakeBack():
                return await self._take_back(db, part, rollout, hosts, copy, who)
            case Withdraw():
                await state.end_offers(db, part.service_id)
        return []

    async def _take_back(
        self, db: Change, part: Part, rollout: Rollout, hosts: list[str], copy: Prepared | None, who: Who
    ) -> list[str]:
        """Only where it is still the rollout's: what somebody else gave since then is theirs."""
        now = self._core.now()
        mine = [host for host in hosts if host in rollout.on(part.version)]
        fresh = [host for host in mine if host not in part.had]
        promoted = rollout.stable == part.version
        if not mine and not promoted:
            return []
        if copy is None:
            await state.save(db, rollouts.withdraw(rollout, None if promoted else mine), now)
            return [f"{part.service}: version {part.version} withdrawn, nothing was in force before"]
        if copy.version != rollout.latest + 1:
            raise Overtaken
        lease_until = now + self._core.lease(copy.ttl_seconds)
        step: Step
        if promoted:
            service, _ = await state.load(db, part.service_id)
            running = await state.running(db, service)
            running -= await guard.spared(self._core, db, running)
            step = rollouts.promote(rollout, copy.version, lease_until, running)
        else:
            if fresh:
                gone = rollouts.withdraw(rollout, fresh)
                await state.save(db, gone, now)
                rollout = gone.rollout
            step = rollouts.take_back(rollout, [h for h in mine if h in part.had], copy.version, lease_until)
        await store_and_tell(self._core, db, copy, "rollback", step.changed, who, part.replaces)
        await state.save(db, step, now)
        if promoted:
            await _followed_again(db, part, copy)
        return [f"{part.service}: version {part.replaces} again, as version {copy.version}"]


async def _followed_again(db: Change, part: Part, copy: Prepared) -> None:
    """The rollout that first brought what comes back is the one in force again: it is renewed from now on."""
    for found in readable(await db.rows("brought", part.service_id, part.replaces)):
        fresh = {"version": copy.version, "digest": copy.digest, "tables_digest": copy.tables_digest}
        parts = tuple(
            structs.replace(one, **fresh) if one.service_id == part.service_id else one for one in found.parts
        )
        reason = f"{part.service}: version {part.replaces} came back as version {copy.version}"
        run = structs.replace(found.run, stage="promoted", reason=reason)
        await db.run("put_rollout_parts", found.id, built(parts), built(run))
        await db.run("put_rollout_run", found.id, run.stage, built(run))


async def _accepted(db: Queries, plan: int) -> bool:
    row = await db.row("plan_accepted", plan)
    return bool(row and row["accepted"])


def _hosts(command: Command, carried: Carried) -> set[str]:
    if isinstance(command, Offer | Enforce | TakeBack):
        return set(command.hosts)
    return {host for part in carried.parts for host in part.hosts}
