"""Promote, roll back, withdraw: what changes on which hosts, tried or done."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain import rollout as rollouts
from aegisflux.domain import undo
from aegisflux.domain.errors import Conflict, Forbidden, NotFound
from aegisflux.domain.roles import may_approve
from aegisflux.domain.rollout import Rollout, Step
from aegisflux.ports.store import Change, Queries
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator import guard, posted, state
from aegisflux.services.orchestrator.announce import announcement
from aegisflux.services.orchestrator.carried import check_free
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.past import past_of
from aegisflux.services.orchestrator.prepare import Prepared
from aegisflux.services.orchestrator.snapshots import check_enrolled, store_content
from aegisflux.wire import envelope

TRIES = 5


class Changed(Struct, frozen=True):
    """The answer to promote, roll back and withdraw: what changes, and on which hosts; with `dry_run`, what
    would change.
    """

    service_id: int
    action: str
    version: int | None
    digest: str | None
    from_version: int | None
    stable: int | None
    changed_hosts: tuple[str, ...]
    unchanged_hosts: tuple[str, ...]
    timestamp: int
    warnings: tuple[str, ...] = ()
    dry_run: bool = False


class Changes:
    """Steps of a rollout after its post. `try_` answers as its namesake would, and changes nothing."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @again
    async def promote(self, service_id: int, version: int | None, who: Who) -> Changed:
        """From the canary hosts to all, renewed from now on; raises NotFound, Conflict, or Forbidden for the
        author below an admin.
        """
        now = self._core.now()
        async with self._core.store.change() as db:
            step, answer = await self._promotion(db, service_id, version, who, now)
            await state.give(self._core.register, db, step, now)
            await state.end_offers(db, service_id)
            await self._audit(db, answer, who, answer.from_version, answer.digest)
        self._core.wake()
        return answer

    async def try_promote(self, service_id: int, version: int | None, who: Who) -> Changed:
        """See the class."""
        _, answer = await self._promotion(self._core.store, service_id, version, who, self._core.now())
        return _tried(answer)

    async def _promotion(
        self, db: Queries, service_id: int, version: int | None, who: Who, now: int
    ) -> tuple[Step, Changed]:
        service, rollout = await state.load(db, service_id)
        await check_free(db, service_id)
        wanted = rollouts.promotable(rollout, version)
        content = await posted.content(self._core.register, db, service_id, wanted)
        author = await posted.author_of(self._core.register, db, service_id, wanted)
        if not may_approve(who.principal, *author):
            raise Forbidden(
                f"service {service_id}: version {wanted} was posted by {author[1]}; "
                "another approver promotes it, or an admin"
            )
        lease_until = now + self._core.lease(content["ttl_seconds"])
        running = await state.running(db, service)
        hosts = {*running, *rollout.hosts}
        await guard.check(self._core, db, hosts, content["mode"], content["ttl_seconds"])
        step = rollouts.promote(rollout, wanted, lease_until, running)
        told = ("promoted by its author, as an admin may",) if who.principal.is_author(*author) else ()
        return step, _changed("promote", rollout, step, wanted, content["digest"], now, told=told)

    async def rollback(self, service_id: int, to_version: int | None, who: Who) -> Changed:
        """The content of an earlier version under a new, higher version, where it leads back to what was
        promoted or what the host had; raises NotFound, or Conflict when it leads no host back."""
        for _ in range(TRIES):
            rollout, source, prepared = await self._earlier(service_id, to_version)
            answer = await self._rolled_back(rollout, source, prepared, who)
            if answer is not None:
                self._core.wake()
                return answer
        raise Conflict(f"service {service_id}: it is changed all the time; try again")

    async def try_rollback(self, service_id: int, to_version: int | None) -> Changed:
        """See the class."""
        _, source, prepared = await self._earlier(service_id, to_version)
        _, answer = await self._return(self._core.store, source, prepared, self._core.now())
        return _tried(answer)

    async def _earlier(self, service_id: int, to_version: int | None) -> tuple[Rollout, int, Prepared]:
        store = self._core.store
        _, rollout = await state.load(store, service_id)
        source = rollouts.rollback_target(rollout, to_version)
        stored = await store.row("snapshot", service_id, source)
        if stored is None:
            raise NotFound(f"service {service_id}: version {source} was never posted")
        version = rollout.latest + 1
        digest = (await posted.content(self._core.register, store, service_id, source))["digest"]
        copy = await self._core.workshop.copy(stored["snapshot"], digest, version)
        return rollout, source, copy

    async def _return(self, db: Queries, source: int, prepared: Prepared, now: int) -> tuple[Step, Changed]:
        service, rollout = await state.load(db, prepared.service_id)
        runs = await state.running(db, service)
        lease_until = now + self._core.lease(prepared.ttl_seconds)
        past = await past_of(self._core, db, rollout, runs, [source])
        undone = undo.roll_back(rollout, past, source, prepared.version, lease_until, runs)
        told = (f"left as they are: {undo.told(undone.kept)}",) if undone.kept else ()
        version, digest = prepared.version, prepared.digest
        return undone.step, _changed("rollback", rollout, undone.step, version, digest, now, source, told)

    @again
    async def _rolled_back(self, seen: Rollout, source: int, prepared: Prepared, who: Who) -> Changed | None:
        now = self._core.now()
        sealed = self._core.keys.seal(envelope.CONTENT, prepared.payload)
        async with self._core.store.change() as db:
            _, rollout = await state.load(db, prepared.service_id)
            if rollout.latest != seen.latest:
                what = f"service/{prepared.service_id}/version/{prepared.version}"
                await db.audit(who.did("snapshot.rollback", what, reason="overtaken; tried again"))
                return None
            step, answer = await self._return(db, source, prepared, now)
            await store_content(db, prepared, sealed, now, who, source, self._core.register)
            await state.save(db, step, now)
            hosts = step.rollout.on(prepared.version)
            await db.run("add_outbox", *announcement(prepared, "rollback", hosts, now), now)
            await self._audit(
                db, answer, who, rollout.stable, answer.digest, f"content of version {source}; "
            )
        return answer

    @again
    async def withdraw(self, service_id: int, targets: Sequence[str] | None, who: Who) -> Changed:
        """End enforcement of a service on the targets, or everywhere; raises NotFound."""
        now = self._core.now()
        async with self._core.store.change() as db:
            step, answer = await _withdrawal(db, service_id, targets, now)
            await state.save(db, step, now)
            await state.end_offers(db, service_id, targets)
            if targets is not None:
                await db.run("withhold", service_id, list(targets))
                await state.tell_withheld(db, service_id)
            await self._audit(db, answer, who, answer.from_version, "")
        self._core.wake()
        return answer

    async def try_withdraw(self, service_id: int, targets: Sequence[str] | None) -> Changed:
        """See the class."""
        _, answer = await _withdrawal(self._core.store, service_id, targets, self._core.now())
        return _tried(answer)

    async def _audit(
        self, db: Change, answer: Changed, who: Who, before: int | None, after: str | None, reason: str = ""
    ) -> None:
        version = f"/version/{answer.version}" if answer.version is not None else ""
        told = "".join(f"{warning}; " for warning in answer.warnings)
        await db.audit(
            who.did(
                f"snapshot.{answer.action}",
                f"service/{answer.service_id}{version}",
                before=f"stable {before or 'none'}",
                after=after or "",
                reason=f"{reason}{told}{len(answer.changed_hosts)} hosts changed",
            )
        )


async def _withdrawal(
    db: Queries, service_id: int, targets: Sequence[str] | None, now: int
) -> tuple[Step, Changed]:
    _, rollout = await state.load(db, service_id)
    if targets is not None:
        await check_enrolled(db, targets)
    step = rollouts.withdraw(rollout, targets)
    beside = {row["host_id"] for row in await db.rows("candidates", service_id)}
    ended = beside if targets is None else beside & set(targets)
    answer = _changed("withdraw", rollout, step, None, None, now)
    if not ended:
        return step, answer
    changed = tuple(sorted({*answer.changed_hosts, *ended}))
    return step, replace(answer, changed_hosts=changed, warnings=())


def _tried(answer: Changed) -> Changed:
    return replace(answer, dry_run=True)


def _changed(
    action: str,
    before: Rollout,
    step: Step,
    version: int | None,
    digest: str | None,
    now: int,
    source: int | None = None,
    told: tuple[str, ...] = (),
) -> Changed:
    after = step.rollout
    unchanged = tuple(sorted(set(after.hosts) - set(step.changed)))
    if not step.changed and not unchanged:
        told = (*told, f"{action} changes no host: none runs service {after.service_id}")
    return Changed(
        after.service_id,
        action,
        version,
        digest,
        source if source is not None else before.stable,
        after.stable,
        step.changed,
        unchanged,
        now,
        told,
    )
