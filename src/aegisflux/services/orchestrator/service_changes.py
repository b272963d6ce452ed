"""Changes of services that take part in what hosts enforce: asked for by one, approved by another."""

from typing import Final

import msgspec

from aegisflux.domain.decided import CHANGE, made_text, with_made
from aegisflux.domain.definition import Definition, differences, takes_from
from aegisflux.domain.errors import Conflict, Forbidden, NotFound
from aegisflux.domain.roles import may, may_approve
from aegisflux.domain.rollout import Rollout, runs
from aegisflux.domain.text import first_of
from aegisflux.ports.store import Change, Queries, Row
from aegisflux.runtime.beside import beside
from aegisflux.services.orchestrator import guard, posted, state
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.state import HostsMoved, Service, ServiceChange

MOST_NAMED: Final = 5
MOST_HOSTS: Final = 20
UNSEEN: Final = "it was asked for when changes did not keep what they were made of"


async def matters(db: Queries, service_id: int, before: Service | None, after: Definition) -> str:
    """Why a change may change what hosts enforce: the service has snapshots, what it is called or is to be
    called stands in a policy that counts (`named_by`), or its new selectors may take cgroups from services
    with snapshots; empty: it does not.
    """
    known = before.definition if before else None
    if known != after:
        row = await db.row("has_snapshots", service_id)
        if row and row["found"]:
            return "it takes part in what hosts enforce"
        for name in dict.fromkeys((known.name, after.name) if known else (after.name,)):
            if why := await named_by(db, name):
                return why
    rows = await db.rows("services_with_snapshots", service_id) if after.selectors else ()
    others = [Definition(row["name"], tuple(row["selectors"]), row["host_labels"]) for row in rows]
    found = await beside(takes_from, known, after, others)
    return f"its selectors may take cgroups from {first_of(found, MOST_NAMED)}" if found else ""


async def named_by(db: Queries, name: str) -> str:
    """What would mean somebody else if another one had this name, in words: policies in force or on their
    way, and approved plans; empty: nothing does."""
    rows = await db.rows("naming", name, name.replace(".", "[.]"))
    found = [f"{row['what']} {row['id']}" for row in rows]
    return f"the name {name} stands in the policy of {first_of(found, MOST_NAMED)}" if found else ""


async def check_deletable(db: Queries, service: Service, who: Who) -> None:
    """Raises Conflict where the name, once it is free, would still be meant by a policy: an admin decides."""
    if not may(who.principal.role, "admin") and (why := await named_by(db, service.name)):
        raise Conflict(
            f"service {service.id}: not deleted: {why}; replace that policy first, or have an admin delete it"
        )


def unnamed(service_id: int) -> Definition:
    """What a new service is while its name waits for an approver: it selects nothing, and no policy means
    it."""
    return Definition(f"waiting-{service_id}")


async def first_of_it(db: Queries, service_id: int, name: str) -> Definition:
    """What a new service is until its first change is approved; raises Conflict when another change waits
    for the same name."""
    if not await named_by(db, name):
        return Definition(name)
    if row := await db.row("change_named", name):
        raise Conflict(
            f"the name {name}: change {row['id']} of service {row['service_id']} waits for it already: "
            "have it approved, or discard it"
        )
    return unnamed(service_id)


async def check_guardrails(
    core: Core, db: Queries, before: Service, rollout: Rollout, after: Definition
) -> None:
    """Raises Conflict when a host begins to run the service on which its snapshot may not be enforced."""
    version = rollout.stable if rollout.stable is not None else rollout.open_version
    if version is None:
        return
    content = await posted.content(core.register, db, before.id, version)
    hosts = {row["host_id"]: row["labels"] for row in await db.rows("host_labels")}
    begin = [
        host
        for host, labels in hosts.items()
        if runs(after.host_labels, labels)
        and not runs(before.host_labels, labels)
        and host not in rollout.hosts
    ]
    await guard.check(core, db, begin, content["mode"], content["ttl_seconds"])


async def hold(db: Change, before: Service, after: Definition, now: int, why: str, who: Who) -> Service:
    """Keep a change until somebody approves it, instead of one that waits already."""
    await db.run("end_change", before.id)
    values = after.name, list(after.selectors), dict(after.host_labels), now, who.principal.name
    seen = msgspec.to_builtins(before.definition)
    await db.run("hold_change", before.id, *values, who.principal.key, seen, why)
    row = await db.row("held_change", before.id)
    assert row is not None
    (held,) = await with_hosts(db, (change_of(row),))
    said, what = str(before.definition), with_made(why, made_text(row, CHANGE))
    await db.audit(who.did("service.ask", f"service/{before.id}", before=said, after=str(after), reason=what))
    warning = f"not changed: {why}; change {held.id} waits for an approver"
    return msgspec.structs.replace(before, waits=held, warning=warning)


def as_tried(service: Service, change: ServiceChange | None, why: str) -> Service:
    """The answer of a dry run: the service then, and what would change; `why` it would wait, if it would."""
    tried = change and msgspec.structs.replace(change, id=0, reason=why)
    return msgspec.structs.replace(service, waits=None, tried=tried)


async def approvable(
    core: Core, db: Queries, service_id: int, change: int, who: Who
) -> tuple[Service, ServiceChange]:
    """The service and its change, which this person may approve now; raises as `Registry.approve`."""
    service, rollout = await state.load(db, service_id)
    row = await db.row("held_change", service_id)
    held = _the_change(row, service_id, change)
    assert row is not None
    made = made_text(row, CHANGE)
    if why := await core.register.doubt_of({f"service/{service_id}/change/made": made}):
        raise Conflict(
            f"service {service_id}: change {held.id} is not as the audit log says: {why}; "
            f"aegisflux service discard {service_id} {held.id}, and ask for it again"
        )
    if not may_approve(who.principal, row["author"], held.created_by):
        raise Forbidden(
            f"service {service_id}: change {held.id} was asked for by {held.created_by}; "
            "another approver approves it, or an admin"
        )
    if held.stale:
        raise Conflict(
            f"service {service_id}: change {held.id} was asked for of another service than there is now: "
            f"{'; '.join(held.stale)}; ask for it again (aegisflux service put), "
            f"or aegisflux service discard {service_id} {held.id}"
        )
    await check_guardrails(core, db, service, rollout, held.definition)
    return service, (await with_hosts(db, (held,)))[0]


async def held_change(db: Queries, service_id: int, change: int) -> ServiceChange:
    """The change of the service that waits; raises NotFound, or Conflict when it is another one."""
    return _the_change(await db.row("held_change", service_id), service_id, change)


def _the_change(row: Row | None, service_id: int, change: int) -> ServiceChange:
    if row is None:
        raise NotFound(f"service {service_id}: no change waits for approval; see aegisflux service changes")
    held = change_of(row)
    if held.id != change:
        raise Conflict(
            f"service {service_id}: change {held.id} waits, not change {change}; look at it first: "
            "aegisflux service changes"
        )
    return held


async def waiting(db: Queries, service_id: int) -> ServiceChange | None:
    """The change of a service that waits, with the hosts that it moves; None: there is none."""
    row = await db.row("held_change", service_id)
    return None if row is None else (await with_hosts(db, (change_of(row),)))[0]


async def with_hosts(db: Queries, changes: tuple[ServiceChange, ...]) -> tuple[ServiceChange, ...]:
    """Changes, each with the hosts that would begin and cease to run its service."""
    rows = await db.rows("moved_by_changes", [one.id for one in changes], MOST_HOSTS) if changes else ()
    begin = {row["id"]: HostsMoved(row["begin"], tuple(row["first_begin"] or ())) for row in rows}
    cease = {row["id"]: HostsMoved(row["cease"], tuple(row["first_cease"] or ())) for row in rows}
    none = HostsMoved()
    return tuple(
        msgspec.structs.replace(one, begin=begin.get(one.id, none), cease=cease.get(one.id, none))
        for one in changes
    )


def change_of(row: Row) -> ServiceChange:
    """From a row of `service_changes` with what its service is now."""
    after = Definition(row["name"], tuple(row["selectors"]), row["host_labels"])
    now = Definition(row["now_name"], tuple(row["now_selectors"]), row["now_labels"])
    before = None if row["seen"] is None else msgspec.convert(row["seen"], Definition)
    return ServiceChange(
        id=row["id"],
        service_id=row["service_id"],
        name=after.name,
        selectors=after.selectors,
        host_labels=row["host_labels"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        reason=row["reason"],
        before=before,
        differs=differences(before or now, after),
        stale=differences(before, now) if before else (UNSEEN,),
    )


def told(change: ServiceChange) -> str:
    """A change for the audit log."""
    return f"change {change.id}: {change.definition}"
