"""A host that begins to run a service gets what the service has."""

from aegisflux.domain import rollout as rollouts
from aegisflux.domain.rollout import runs
from aegisflux.ports.store import Change
from aegisflux.services.orchestrator import guard, state
from aegisflux.services.orchestrator.core import Core


async def join(core: Core, db: Change, host: str, now: int) -> None:
    """Assign the services whose labels match the host."""
    row = await db.row("host", host)
    if row is None:
        return
    for service in await db.rows("services"):
        if runs(service["host_labels"], row["labels"]):
            await join_service(core, db, host, service["id"], now)


async def join_service(core: Core, db: Change, host: str, service_id: int, now: int) -> bool:
    """Assign one service to a host that runs it and is not marked as one on which nothing is enforced;
    whether that changed anything."""
    if await guard.spared(core, db, {host}):
        return False
    _, rollout = await state.load(db, service_id)
    ttl = 0
    if rollout.stable is not None:
        content = await db.row("content", service_id, rollout.stable)
        ttl = core.lease(content["ttl_seconds"]) if content else 0
    step = rollouts.joined(rollout, host, now, ttl)
    if step.changed:
        await state.save(db, step, now)
    return bool(step.changed)
