"""The register of services: it owns their numbers."""

import re
from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec import Struct

from aegisflux.domain import patterns
from aegisflux.domain.definition import Definition, waits
from aegisflux.domain.errors import Conflict, Invalid, NotFound
from aegisflux.domain.manifest import MAX_SERVICES, HostId
from aegisflux.domain.manifest_room import (
    ROOM_BYTES,
    SELECTOR_BYTES,
    SERVICE_BYTES,
    most_bytes,
    overfull_text,
)
from aegisflux.domain.names import check_name
from aegisflux.domain.policy import RESERVED
from aegisflux.domain.selectors import parse_selector, parse_stored_selector
from aegisflux.ports.store import Change, Queries
from aegisflux.runtime import logs
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator import state
from aegisflux.services.orchestrator.carried import check_free
from aegisflux.services.orchestrator.core import Core, Who, Words
from aegisflux.services.orchestrator.effects import Effect, attempt
from aegisflux.services.orchestrator.joining import join_labelled
from aegisflux.services.orchestrator.service_changes import (
    approvable,
    as_tried,
    change_of,
    check_deletable,
    check_guardrails,
    first_of_it,
    held_change,
    hold,
    matters,
    told,
    unnamed,
    waiting,
    with_hosts,
)
from aegisflux.services.orchestrator.state import Service, ServiceChange, service_of

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MAX_SELECTORS = 32
log = logs.get("registry")


class Health(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a watcher says; `host_id` null: of the service on all its hosts."""

    healthy: bool
    host_id: HostId | None = None
    detail: Words = ""


class Registry:
    """Services: who they are, and where they run."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @again
    async def put(
        self,
        service_id: int | None,
        name: str,
        selectors: Sequence[str],
        host_labels: Mapping[str, str],
        who: Who,
        dry_run: bool = False,
    ) -> Service:
        """Register a service, or change the one of that number; without one it gets the next. A change of a
        service that takes part in what hosts enforce waits for an approver, unless an admin makes it."""
        async with attempt(self._core.store, dry_run) as db:
            after = Definition(name, tuple(selectors), dict(host_labels))
            service = await self._asked(db, service_id, after, who, dry_run)
        if not dry_run:
            self._core.wake()
        return service

    async def _asked(
        self, db: Change, service_id: int | None, after: Definition, who: Who, dry_run: bool
    ) -> Service:
        """Make a change, or keep it until it is approved; the service then, with what was `tried`."""
        number = await self._number(db, service_id, after.name)
        row = await db.row("service", number)
        before = service_of(row) if row else None
        _check_definition(before, after)
        why = await matters(db, number, before, after)
        known, now = before.definition if before else None, self._core.now()
        if waits(known, after, matters=bool(why), author=who.principal):
            if before is None:
                bare = await first_of_it(db, number, after.name)
                await self._number(db, number, bare.name)
                before = await self._put(db, number, None, bare, who)
            held = await hold(db, before, after, now, why, who)
            return as_tried(before, held.waits, why) if dry_run else held
        tried = None
        if before is not None:
            _, rollout = await state.load(db, before.id)
            await check_guardrails(self._core, db, before, rollout, after)
            if dry_run:
                tried = (await hold(db, before, after, now, why, who)).waits
        service = await self._put(db, number, before, after, who)
        if dry_run:
            return as_tried(service, tried, "")
        return _warned(msgspec.structs.replace(service, waits=await waiting(db, number)))

    @again
    async def approve(self, service_id: int, change: int, who: Who, dry_run: bool = False) -> Service:
        """Make the change that waits; raises NotFound, Conflict when it is another one, when the service is
        not what it was when the change was asked for, or when a guardrail does not hold, or Forbidden for its
        author below an admin."""
        if dry_run:
            before, held = await self._approvable(self._core.store, service_id, change, who)
            return msgspec.structs.replace(before, waits=held)
        async with self._core.store.change() as db:
            before, held = await self._approvable(db, service_id, change, who)
            await db.run("end_change", service_id)
            author = f"change {held.id} of {held.created_by}"
            service = await self._put(db, service_id, before, held.definition, who, author)
        self._core.wake()
        return _warned(service)

    async def _approvable(
        self, db: Queries, service_id: int, change: int, who: Who
    ) -> tuple[Service, ServiceChange]:
        before, held = await approvable(self._core, db, service_id, change, who)
        await self._number(db, service_id, held.name)
        _check_definition(before, held.definition)
        return before, held

    @again
    async def discard(self, service_id: int, change: int, who: Who, dry_run: bool = False) -> Effect:
        """Drop a change that waits, and the service with it that never got its name; raises NotFound, or
        Conflict when it is another one."""
        what = f"service/{service_id}"
        async with attempt(self._core.store, dry_run) as db:
            held = await held_change(db, service_id, change)
            await db.run("end_change", service_id)
            await db.audit(who.did("service.discard", what, before=told(held)))
            service, rollout = await state.load(db, service_id)
            did = [f"drops {told(held)}"]
            if service.definition == unnamed(service_id) and not rollout.latest:
                await self._forget(db, service, who)
                did.append(f"deletes service {service_id}, which never had the name {held.name}")
        return Effect(action="service.discard", object=what, did=tuple(did), dry_run=dry_run)

    async def changes(self, limit: int) -> tuple[ServiceChange, ...]:
        """Changes that wait, oldest first."""
        rows = await self._core.store.rows("held_changes", limit)
        return await with_hosts(self._core.store, tuple(map(change_of, rows)))

    async def _put(
        self, db: Change, number: int, before: Service | None, after: Definition, who: Who, reason: str = ""
    ) -> Service:
        core, now = self._core, self._core.now()
        selectors, labels = list(after.selectors), dict(after.host_labels)
        await db.run("put_service", number, after.name, selectors, labels, now)
        if before and most_bytes(selectors) > most_bytes(before.selectors):
            given = [row["host_id"] for row in await db.rows("assignments", number)]
            await state.check_room(db, number, given, again=True)
        await join_labelled(core, db, number, labels, now)
        if selectors or (before and before.selectors):
            db.bump(None)
        row = await db.row("service", number)
        assert row is not None
        service = service_of(row)
        warning = await _overfull(db, service) if selectors else ""
        said = str(before.definition) if before else ""
        what = f"service/{number}"
        await db.audit(
            who.did("service.put", what, before=said, after=str(service.definition), reason=reason)
        )
        return msgspec.structs.replace(service, warning=warning)

    async def _number(self, db: Queries, service_id: int | None, name: str) -> int:
        named = await db.row("service_named", name)
        if named is not None and named["id"] != service_id:
            raise Conflict(f"the name {name} belongs to service {named['id']}")
        if service_id is not None:
            return service_id
        free = await db.row("free_service_id")
        assert free is not None
        return int(free["id"])

    @again
    async def health(self, service_id: int, said: Health, who: Who) -> Effect:
        """Keep what a watcher says; raises NotFound for a service or host that is not there."""
        now, name = self._core.clock.now(), who.principal.name
        async with self._core.store.change() as db:
            if await db.row("service", service_id) is None:
                raise NotFound(f"service {service_id} is not registered")
            if said.host_id and not await db.rows("labels_of", [said.host_id]):
                raise NotFound(f"host {said.host_id} is not enrolled")
            await db.run("say_health", service_id, said.host_id or "", said.healthy, said.detail, now, name)
            what = f"service/{service_id}" + (f"/host/{said.host_id}" if said.host_id else "")
            word = "healthy" if said.healthy else "sick"
            await db.audit(who.did("service.health", what, after=word, reason=said.detail))
        return Effect(action="service.health", object=what, did=(f"marks {what} as {word}",))

    @again
    async def delete(self, service_id: int, who: Who, dry_run: bool = False) -> Effect:
        """Forget a service and its snapshots; raises Conflict while a host is to run one, or, below an admin,
        while a policy names it."""
        async with attempt(self._core.store, dry_run) as db:
            service, rollout = await state.load(db, service_id)
            await check_free(db, service_id)
            if rollout.hosts:
                raise Conflict(
                    f"service {service_id}: {len(rollout.hosts)} hosts have a snapshot; withdraw it first"
                )
            await check_deletable(db, service, who)
            held = await waiting(db, service_id)
            await self._forget(db, service, who)
        if not dry_run:
            self._core.wake()
        did = [f"deletes service {service_id} ({service.name})"]
        if rollout.latest:
            did.append(f"deletes its snapshots up to version {rollout.latest}")
        if held is not None:
            did.append(f"drops {told(held)}")
        what = f"service/{service_id}"
        return Effect(action="service.delete", object=what, did=tuple(did), dry_run=dry_run)

    async def _forget(self, db: Change, service: Service, who: Who) -> None:
        await db.run("delete_service", service.id)
        await db.run("delete_service_row", service.id)
        db.bump(None)
        await db.audit(who.did("service.delete", f"service/{service.id}", before=service.name))

    async def all(self) -> tuple[Service, ...]:
        """All services by number, with the changes of them that wait."""
        store = self._core.store
        held = {row["service_id"]: change_of(row) for row in await store.rows("held_changes", None)}
        found = map(service_of, await store.rows("services"))
        return tuple(msgspec.structs.replace(one, waits=held.get(one.id)) for one in found)

    async def one(self, service_id: int) -> Service:
        """One service, with the change of it that waits; raises NotFound."""
        row = await self._core.store.row("service", service_id)
        if row is None:
            raise NotFound(f"service {service_id} is not registered; see aegisflux service list")
        held = await waiting(self._core.store, service_id)
        return msgspec.structs.replace(service_of(row), waits=held)


def _check(name: str, selectors: Sequence[str], stored: Collection[str] = ()) -> None:
    """Raise Invalid for a name or a selector that is none, or that can never match and is not stored."""
    if not NAME.fullmatch(name):
        raise Invalid("name", patterns.in_words(rf"^{NAME.pattern}$(?!\n)"), name)
    if name in RESERVED:
        raise Invalid("name", f"another name: {name} means something in policies", name)
    if len(selectors) > MAX_SELECTORS:
        raise Invalid("selectors", f"at most {MAX_SELECTORS}", len(selectors))
    for index, selector in enumerate(selectors):
        read = parse_stored_selector if selector in stored else parse_selector
        read(selector, f"selectors[{index}]")


async def _overfull(db: Queries, service: Service) -> str:
    """Why the service is not offered to all its hosts, in words; empty: it is."""
    limits = MAX_SERVICES, ROOM_BYTES, SERVICE_BYTES, SELECTOR_BYTES
    row = await db.row("overfull", service.host_labels, *limits)
    if row is None or not (row["hosts"] or row["everywhere"] > MAX_SERVICES):
        return ""
    return overfull_text(row["host_id"], row["hosts"], row["services"] or row["everywhere"])


def _warned(service: Service) -> Service:
    if service.warning:
        log.warning("more services than hosts can be offered", service=service.name, detail=service.warning)
    return service


def _check_definition(before: Service | None, after: Definition) -> None:
    """Raises Invalid; what is stored may stay as it is."""
    _check(after.name, after.selectors, before.selectors if before else ())
    if before is None or before.name != after.name:
        check_name("name", after.name)
    state.check_labels("host_labels", after.host_labels, before.host_labels if before else None)
