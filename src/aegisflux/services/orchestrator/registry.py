"""The register of services: it owns their numbers."""

import re
from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec import Struct

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
from aegisflux.services.orchestrator.joining import join_labelled
from aegisflux.services.orchestrator.state import Service, service_of

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
    ) -> Service:
        """Register a service, or change the one of that number; without one it gets the next."""
        core, now = self._core, self._core.now()
        async with core.store.change() as db:
            number = await self._number(db, service_id, name)
            before = await db.row("service", number)
            _check(name, selectors, before["selectors"] if before else ())
            if before is None or before["name"] != name:
                check_name("name", name)
            state.check_labels("host_labels", host_labels, before["host_labels"] if before else None)
            await db.run("put_service", number, name, list(selectors), dict(host_labels), now)
            if before and most_bytes(selectors) > most_bytes(before["selectors"]):
                given = [row["host_id"] for row in await db.rows("assignments", number)]
                await state.check_room(db, number, given, again=True)
            await join_labelled(core, db, number, dict(host_labels), now)
            if selectors or (before and before["selectors"]):
                db.bump(None)
            after = await db.row("service", number)
            assert after is not None
            service = service_of(after)
            warning = await _overfull(db, service) if selectors else ""
            await db.audit(
                who.did(
                    "service.put",
                    f"service/{number}",
                    before=_said(service_of(before) if before else None),
                    after=_said(service),
                )
            )
        core.wake()
        if warning:
            log.warning("more services than hosts can be offered", service=name, detail=warning)
        return msgspec.structs.replace(service, warning=warning)

    async def _number(self, db: Change, service_id: int | None, name: str) -> int:
        named = await db.row("service_named", name)
        if named is not None and named["id"] != service_id:
            raise Conflict(f"the name {name} belongs to service {named['id']}")
        if service_id is not None:
            return service_id
        free = await db.row("free_service_id")
        assert free is not None
        return int(free["id"])

    @again
    async def health(self, service_id: int, said: Health, who: Who) -> None:
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

    @again
    async def delete(self, service_id: int, who: Who) -> None:
        """Forget a service and its snapshots; raises Conflict while a host is to run one."""
        async with self._core.store.change() as db:
            service, rollout = await state.load(db, service_id)
            await check_free(db, service_id)
            if rollout.hosts:
                raise Conflict(
                    f"service {service_id}: {len(rollout.hosts)} hosts have a snapshot; withdraw it first"
                )
            await db.run("delete_service", service_id)
            await db.run("delete_service_row", service_id)
            db.bump(None)
            await db.audit(who.did("service.delete", f"service/{service_id}", before=service.name))
        self._core.wake()

    async def all(self) -> tuple[Service, ...]:
        """All services by number."""
        return tuple(service_of(row) for row in await self._core.store.rows("services"))

    async def one(self, service_id: int) -> Service:
        """One service; raises NotFound."""
        row = await self._core.store.row("service", service_id)
        if row is None:
            raise NotFound(f"service {service_id} is not registered")
        return service_of(row)


def _check(name: str, selectors: Sequence[str], stored: Collection[str] = ()) -> None:
    """Raise Invalid for a name or a selector that is none, or that can never match and is not stored."""
    if not NAME.fullmatch(name):
        raise Invalid("name", NAME.pattern, name)
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


def _said(service: Service | None) -> str:
    if service is None:
        return ""
    return f"{service.name} {list(service.selectors)} {service.host_labels}"
