"""Back to observing: of the fleet, a service or a host, at once. What is in force is judged on and told of,
and blocks nothing.

It is a change like any other: a new version with the same rules, signed, in the audit log, undone by
`rollback`. A host that hears nobody is returned on the host itself (`aegisflux agent panic`).
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from aegisflux.domain import undo
from aegisflux.domain.errors import AegisError, Conflict, Invalid, NotFound, Refused, Unavailable
from aegisflux.domain.manifest import HostId
from aegisflux.domain.rollout import Rollout, Step
from aegisflux.domain.stages import Ask
from aegisflux.ports.store import Change
from aegisflux.runtime import logs
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator import state
from aegisflux.services.orchestrator.carried import load, readable
from aegisflux.services.orchestrator.core import Core, Who, Words
from aegisflux.services.orchestrator.past import withheld_from
from aegisflux.services.orchestrator.posted import is_believed
from aegisflux.services.orchestrator.prepare import Prepared
from aegisflux.services.orchestrator.rollouts import Rollouts
from aegisflux.services.orchestrator.snapshots import store_and_tell

TRIES = 5
AT_ONCE = 4  # services: while one is compiled, others are stored
log = logs.get("panic")


class PanicRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What returns to observing: one of the three."""

    fleet: bool = False
    service_id: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    host_id: HostId | None = None
    why: Words = ""


class Observing(Struct, frozen=True, kw_only=True):
    """A service that observes from now on: by `version`, on these hosts."""

    service_id: int
    service: str
    version: int
    hosts: tuple[str, ...]


class Enforcing(Struct, frozen=True, kw_only=True):
    """A service that could not be returned to observing, and why."""

    service_id: int
    reason: str


class Panicked(Struct, frozen=True, kw_only=True):
    """What was done, or with `dry_run` would be.

    aborted: rollouts that were ended first
    failed:  services that may block as before; they kept no other from observing
    """

    services: tuple[Observing, ...]
    aborted: tuple[int, ...]
    failed: tuple[Enforcing, ...] = ()
    dry_run: bool = False


class Panic:
    """See the module."""

    def __init__(self, core: Core, carried: Rollouts) -> None:
        self._core, self._rollouts = core, carried

    async def observe(self, asked: PanicRequest, who: Who, dry_run: bool = False) -> Panicked:
        """Raises Invalid unless one of the three is named, NotFound for a service or host that is not
        there."""
        if (asked.fleet, asked.service_id is not None, asked.host_id is not None).count(True) != 1:
            named = [name for name in ("service_id", "host_id") if getattr(asked, name) is not None]
            got = ", ".join(["fleet"] * asked.fleet + named) or "none of them"
            raise Invalid("", "what to return to observing: exactly one of fleet, service_id, host_id", got)
        services = await self._services(asked)
        aborted = [] if asked.host_id else await self._live(None if asked.fleet else services)
        if not dry_run:
            for number in aborted:
                await self._abort(number, asked.why, who)
        done: list[Observing] = []
        failed: list[Enforcing] = []
        for first in range(0, len(services), AT_ONCE):
            several = services[first : first + AT_ONCE]
            tries = (self._one(number, asked.host_id, asked.why, who, dry_run) for number in several)
            found = await asyncio.gather(*tries, return_exceptions=True)
            errors = [one for one in found if isinstance(one, BaseException)]
            many = len(several) == AT_ONCE or not done
            away = many and all(isinstance(one, Unavailable) for one in found)
            if errors and (asked.service_id is not None or away):  # the store is away, not one service
                raise errors[0]
            for number, one in zip(several, found, strict=True):
                if isinstance(one, Observing):
                    done.append(one)
                elif one is not None:
                    failed.append(_failed(number, one))
            self._core.wake()
        return Panicked(services=tuple(done), aborted=tuple(aborted), failed=tuple(failed), dry_run=dry_run)

    async def _services(self, asked: PanicRequest) -> list[int]:
        store = self._core.store
        if asked.service_id is not None:
            await state.load(store, asked.service_id)
            return [asked.service_id]
        if asked.host_id is not None:
            if all(row["host_id"] != asked.host_id for row in await store.rows("host_labels")):
                raise NotFound(f"host {asked.host_id} is not enrolled")
            rows = await store.rows("assignments_of_host", asked.host_id)
            return sorted(row["service_id"] for row in rows)
        return [row["service_id"] for row in await store.rows("services_in_force", self._core.now())]

    async def _live(self, services: Sequence[int] | None) -> list[int]:
        """Rollouts on their way: of these services, or all."""
        rows = await self._core.store.rows("live_rollouts")
        found = readable(row for row in rows if row["stage"] != "promoted")
        return [one.id for one in found if services is None or set(services) & set(one.services)]

    async def _abort(self, number: int, why: str, who: Who) -> None:
        """If it moves meanwhile, again; if it cannot be ended, the services observe nevertheless."""
        told = f"panic: {why}" if why else "panic"
        for _ in range(TRIES):
            try:
                carried = await load(self._core.store, number)
                if "abort" not in carried.verbs:
                    return
                ask = Ask(self._core.clock.now(), "abort", who.principal.name, told)
                await self._rollouts.take(carried, ask, who)
            except Conflict as error:
                log.info("tried again", rollout=number, reason=str(error))
            except Refused as error:
                log.warning("a rollout is not aborted", rollout=number, reason=str(error))
                return
            except Exception:  # whatever is wrong with it, the services observe nevertheless
                log.exception("a rollout is not aborted", rollout=number)
                return
            else:
                return

    async def _one(
        self, service_id: int, host: str | None, why: str, who: Who, dry_run: bool
    ) -> Observing | None:
        """None when nothing of it blocks."""
        for _ in range(TRIES):
            service, rollout = await state.load(self._core.store, service_id)
            source = await self._blocking(rollout, host)
            stored = await self._core.store.row("snapshot", service_id, source) if source else None
            if source is None or stored is None:
                return None
            copy = await self._core.workshop.observing(stored["snapshot"], rollout.latest + 1, dry_run)
            hosts = (host,) if host else tuple(sorted(rollout.hosts))
            found = Observing(service_id=service_id, service=service.name, version=copy.version, hosts=hosts)
            if dry_run or await self._stored(copy, source, host, why, who):
                return found
        raise Conflict(f"service {service_id}: it is changed all the time; try again")

    async def _blocking(self, rollout: Rollout, host: str | None) -> int | None:
        """The newest version that enforces, on that host, or on any that is there or joins."""
        for version in undo.could_have(rollout, self._core.now(), host):
            row = await self._core.store.row("content", rollout.service_id, version)
            # Of a row that is not as it was posted nobody knows that it observes: it is taken to block.
            if row is not None and (row["mode"] == "enforce" or not is_believed(self._core.register, row)):
                return version
        return None

    @again
    async def _stored(self, copy: Prepared, source: int, host: str | None, why: str, who: Who) -> bool:
        """Whether nobody was faster."""
        async with self._core.store.change() as db:
            what = f"service/{copy.service_id}/version/{copy.version}"
            _, rollout = await state.load(db, copy.service_id)
            await db.audit(who.did("panic", what, after=copy.digest, reason=why))
            if rollout.latest + 1 != copy.version:
                return False
            step = await self._step(db, rollout, copy, host)
            await store_and_tell(self._core, db, copy, "panic", step.changed, who, source)
            await state.save(db, step, self._core.now())
        return True

    async def _step(self, db: Change, rollout: Rollout, copy: Prepared, host: str | None) -> Step:
        lease_until = self._core.now() + self._core.lease(copy.ttl_seconds)
        service, _ = await state.load(db, copy.service_id)
        running = await state.running(db, service) - await withheld_from(db, copy.service_id)
        return undo.observe(rollout, copy.version, lease_until, running, host)


def _failed(service_id: int, error: BaseException) -> Enforcing:
    log.error("a service cannot be returned to observing", service=service_id, exc_info=error)
    words = str(error) if isinstance(error, AegisError) else type(error).__name__
    return Enforcing(service_id=service_id, reason=words)
