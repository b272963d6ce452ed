"""What a rollout's commands do to the desired state, inside of the transaction of its step."""

from collections.abc import Collection, Mapping, Sequence

from msgspec import structs

from aegisflux.domain import rollout as rollouts
from aegisflux.domain import undo
from aegisflux.domain.decided import rollout_texts
from aegisflux.domain.errors import NotFound
from aegisflux.domain.rollout import Rollout
from aegisflux.domain.stages import Command, Enforce, Keep, Offer, TakeBack, Withdraw
from aegisflux.domain.undo import Past
from aegisflux.ports.store import Change, Queries
from aegisflux.services.orchestrator import guard, posted, state
from aegisflux.services.orchestrator.carried import Carried, Part, built, made_of, readable
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.past import past_of
from aegisflux.services.orchestrator.prepare import Prepared
from aegisflux.services.orchestrator.snapshots import store_and_tell

Copies = Mapping[int, Mapping[int, Prepared]]
"""Of each service the versions that come back, each compiled under its new version."""


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
            try:
                _, rollout = await state.load(store, part.service_id)
            except NotFound:
                continue
            _, back = await self._returns(store, part, rollout, rollout.on(part.version))
            sources = sorted({one for one in back.values() if one is not None})
            found[part.service_id] = {
                source: await self._copy(part.service_id, source, rollout.latest + 1 + place)
                for place, source in enumerate(sources)
            }
        return found

    async def _copy(self, service_id: int, source: int, version: int) -> Prepared:
        core = self._core
        believed = await posted.content(core.register, core.store, service_id, source)
        stored = await core.store.row("snapshot", service_id, source)
        assert stored is not None
        return await core.workshop.copy(stored["snapshot"], believed["digest"], version)

    async def _returns(
        self, db: Queries, part: Part, rollout: Rollout, hosts: Collection[str]
    ) -> tuple[Past, dict[str, int | None]]:
        """What comes back on these hosts."""
        past = await past_of(self._core, db, rollout, hosts, [part.version, part.replaces or part.version])
        return past, undo.returns(past, hosts, part.replaces, frozenset({part.version}))

    async def do(
        self, db: Change, carried: Carried, commands: Sequence[Command], copies: Copies, who: Who
    ) -> tuple[str, ...]:
        """What was done, in words; raises Overtaken."""
        done: list[str] = []
        enrolled = {row["host_id"] for row in await db.rows("host_labels")}
        for command in commands:
            for part in carried.parts:
                hosts = sorted(_hosts(command, carried) & set(part.hosts) & enrolled)
                found = copies.get(part.service_id, {})
                done += await self._one(db, carried, part, command, hosts, found, who)
        return tuple(done)

    async def _one(
        self, db: Change, carried: Carried, part: Part, command: Command, hosts: list[str],
        copies: Mapping[int, Prepared], who: Who,
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
                await state.give(self._core.register, db, step, now)
                await db.run("ask_preflight", part.service_id, hosts, not await _accepted(db, carried.plan))
                await state.end_offers(db, part.service_id, hosts)
                return [f"{part.service}: version {part.version} to {', '.join(hosts)}"] if hosts else []
            case Keep():
                running = await state.running(db, service)
                spared = await guard.spared(self._core, db, {*running, *rollout.hosts})
                step = rollouts.promote(rollout, part.version, lease_until, running - spared, spared)
                await state.give(self._core.register, db, step, now)
                return [f"{part.service}: version {part.version} promoted"]
            case TakeBack():
                return await self._take_back(db, part, rollout, hosts, copies, who)
            case Withdraw():
                await state.end_offers(db, part.service_id)
        return []

    async def _take_back(
        self, db: Change, part: Part, rollout: Rollout, hosts: list[str], copies: Mapping[int, Prepared],
        who: Who,
    ) -> list[str]:  # fmt: skip
        """Only where it is still the rollout's: what somebody else gave since then is theirs."""
        now, promoted = self._core.now(), rollout.stable == part.version
        mine = [host for host in rollout.on(part.version) if promoted or host in hosts]
        if not mine and not promoted:
            return []
        past, back = await self._returns(db, part, rollout, mine)
        wanted = sorted({one for one in back.values() if one is not None})
        following = list(range(rollout.latest + 1, rollout.latest + 1 + len(wanted)))
        if [copies[one].version for one in wanted if one in copies] != following:
            raise Overtaken
        found = {one: copies[one] for one in wanted}
        lease = min([self._core.lease(one.ttl_seconds) for one in found.values()], default=0)
        versions = {one: copy.version for one, copy in found.items()}
        step = undo.take_back(rollout, past, back, versions, now + lease, part.replaces, promoted)
        for source, copy in found.items():
            on = tuple(host for host, one in back.items() if one == source)
            await store_and_tell(self._core, db, copy, "rollback", on, who, source)
        await state.save(db, step, now)
        if promoted and part.replaces in found and step.rollout.stable is not None:
            await self._followed_again(db, part, found[part.replaces])
        return _taken_back(part, back, found)

    async def _followed_again(self, db: Change, part: Part, copy: Prepared) -> None:
        """The rollout that first brought what comes back is the one in force again: it is renewed from now
        on. One that is not believed stays as it ended."""
        for row in await db.rows("brought", part.service_id, part.replaces):
            if await self._core.register.doubt_of(rollout_texts(row)):
                continue
            for found in readable([row]):
                await _in_force_again(db, found, part, copy)


def _taken_back(part: Part, back: Mapping[str, int | None], found: Mapping[int, Prepared]) -> list[str]:
    """In words."""
    words = [f"{part.service}: version {one} again, as version {copy.version}" for one, copy in found.items()]
    if None in back.values() or not back:
        words.append(f"{part.service}: version {part.version} withdrawn where nothing was in force before")
    return words


async def _in_force_again(db: Change, found: Carried, part: Part, copy: Prepared) -> None:
    fresh = {"version": copy.version, "digest": copy.digest, "tables_digest": copy.tables_digest}
    parts = tuple(
        structs.replace(one, **fresh) if one.service_id == part.service_id else one for one in found.parts
    )
    reason = f"{part.service}: version {part.replaces} came back as version {copy.version}"
    run = structs.replace(found.run, stage="promoted", reason=reason)
    await db.run("put_rollout_parts", found.id, built(parts), built(run))
    await db.run("put_rollout_run", found.id, run.stage, built(run))
    made = await made_of(db, found.id)
    await db.audit(Who().did(f"rollout.{run.stage}", f"rollout/{found.id}", after=made, reason=reason))


async def _accepted(db: Queries, plan: int) -> bool:
    row = await db.row("plan_accepted", plan)
    return bool(row and row["accepted"])


def _hosts(command: Command, carried: Carried) -> set[str]:
    if isinstance(command, Offer | Enforce | TakeBack):
        return set(command.hosts)
    return {host for part in carried.parts for host in part.hosts}
