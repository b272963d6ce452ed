"""Hosts that begin to run a service get what the service has: many at once, in a few statements."""

from collections import Counter, defaultdict
from collections.abc import Collection

from msgspec import Struct

from aegisflux.domain import rollout as rollouts
from aegisflux.domain.errors import OverLimit
from aegisflux.domain.manifest import MAX_SERVICES
from aegisflux.domain.rollout import Assigned, runs
from aegisflux.ports.store import Change, Queries
from aegisflux.services.orchestrator import guard, state
from aegisflux.services.orchestrator.core import Core
from aegisflux.services.orchestrator.state import Given

Pair = tuple[int, str]
"""A service by its number, and a host that begins to run it."""


class Joins(Struct, frozen=True):
    """What hosts are given, and the hosts that have the most services that a host can have (`full`)."""

    given: tuple[Given, ...] = ()
    full: tuple[str, ...] = ()


async def join(core: Core, db: Change, host: str, now: int) -> None:
    """Assign the services whose labels match the host; raises OverLimit."""
    row = await db.row("host", host)
    if row is None:
        return
    services = await db.rows("services")
    pairs = [(one["id"], host) for one in services if runs(one["host_labels"], row["labels"])]
    await _write_all(db, await planned(core, db, pairs, now), now)


async def join_labelled(
    core: Core, db: Change, service_id: int, host_labels: dict[str, str], now: int
) -> None:
    """Assign a service to all hosts that its labels match; raises OverLimit."""
    if not host_labels:
        return
    pairs = [(service_id, row["host_id"]) for row in await db.rows("unassigned", service_id, host_labels)]
    await _write_all(db, await planned(core, db, pairs, now), now)


async def planned(core: Core, db: Queries, pairs: Collection[Pair], now: int) -> Joins:
    """Return what these hosts get. A host that is marked as one on which nothing is enforced gets nothing;
    one that has a snapshot of the service keeps it.
    """
    if not pairs:
        return Joins()
    numbers, hosts = sorted({number for number, _ in pairs}), sorted({host for _, host in pairs})
    spared = await guard.spared(core, db, hosts)
    ttls = {row["id"]: core.lease(row["ttl_seconds"]) for row in await db.rows("stable_ttls", numbers)}
    known: dict[int, dict[str, Assigned]] = defaultdict(dict)
    for row in await db.rows("assigned_of", numbers, hosts):
        known[row["service_id"]][row["host_id"]] = Assigned(
            row["version"], row["lease_until"], row["renewed"]
        )
    wanted: dict[int, list[str]] = defaultdict(list)
    for number, host in pairs:
        if host not in spared:
            wanted[number].append(host)
    given: list[Given] = []
    for row in await db.rows("services_of", sorted(wanted)):
        rollout, number = state.rollout_of(row, known[row["id"]]), row["id"]
        step = rollouts.joined(rollout, wanted[number], now, ttls.get(number, 0))
        given += [(number, host, step.rollout.hosts[host]) for host in step.changed]
    return await _with_room(db, given)


async def write(db: Change, joins: Joins, now: int) -> None:
    """Write what was planned in this transaction, and raise the serials of the hosts."""
    if joins.given:
        await state.assign(db, joins.given, now)
        db.bump(sorted({host for _, host, _ in joins.given}))


async def _write_all(db: Change, joins: Joins, now: int) -> None:
    if joins.full:
        raise OverLimit("services_per_host", MAX_SERVICES, MAX_SERVICES + 1, f"host {joins.full[0]}")
    await write(db, joins, now)


async def _with_room(db: Queries, given: Collection[Given]) -> Joins:
    hosts = sorted({host for _, host, _ in given})
    rows = await db.rows("assigned_counts", hosts) if hosts else ()
    counts = Counter({row["host_id"]: row["services"] for row in rows})
    fits, full = [], dict[str, None]()
    for number, host, one in given:
        if counts[host] >= MAX_SERVICES:
            full[host] = None
            continue
        counts[host] += 1
        fits.append((number, host, one))
    return Joins(tuple(fits), tuple(full))
