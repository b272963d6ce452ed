"""Hosts that begin to run a service get what the service has: many at once, in a few statements."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from msgspec import Struct

from aegisflux.domain import rollout as rollouts
from aegisflux.domain.errors import OverLimit
from aegisflux.domain.manifest_room import SELECTOR_BYTES, SERVICE_BYTES, most_bytes, no_room
from aegisflux.domain.rollout import Assigned, runs
from aegisflux.ports.store import Change, Queries
from aegisflux.services.orchestrator import guard, state
from aegisflux.services.orchestrator.core import Core
from aegisflux.services.orchestrator.state import Given

Pair = tuple[int, str]
"""A service by its number, and a host that begins to run it."""


class JoinPlan(Struct, frozen=True):
    """What hosts are given, and the hosts whose manifests have no room for more (`full`); `why`: the first
    one's reason."""

    given: tuple[Given, ...] = ()
    full: tuple[str, ...] = ()
    why: OverLimit | None = None


async def join(core: Core, db: Change, host: str, now: int) -> None:
    """Assign the services whose labels match the host; raises OverLimit."""
    row = await db.row("host", host)
    if row is None:
        return
    services = await db.rows("services")
    pairs = [(one["id"], host) for one in services if runs(one["host_labels"], row["labels"])]
    await _write_all(core, db, await planned(core, db, pairs, now), now)


async def join_labelled(
    core: Core, db: Change, service_id: int, host_labels: dict[str, str], now: int
) -> None:
    """Assign a service to all hosts that its labels match; raises OverLimit."""
    if not host_labels:
        return
    pairs = [(service_id, row["host_id"]) for row in await db.rows("unassigned", service_id, host_labels)]
    await _write_all(core, db, await planned(core, db, pairs, now), now)


async def planned(core: Core, db: Queries, pairs: Collection[Pair], now: int) -> JoinPlan:
    """Return what these hosts get. Nothing goes to a host that is marked as one on which nothing is enforced,
    or from which the service was withdrawn; one that has a snapshot of the service keeps it.
    """
    if not pairs:
        return JoinPlan()
    numbers, hosts = sorted({number for number, _ in pairs}), sorted({host for _, host in pairs})
    spared = await guard.spared(core, db, hosts)
    ttls = {row["id"]: core.lease(row["ttl_seconds"]) for row in await db.rows("stable_ttls", numbers)}
    known: dict[int, dict[str, Assigned]] = defaultdict(dict)
    for row in await db.rows("assigned_of", numbers, hosts):
        known[row["service_id"]][row["host_id"]] = Assigned(
            row["version"], row["lease_until"], row["renewed"]
        )
    withheld = {(row["service_id"], row["host_id"]) for row in await db.rows("withheld_of", numbers, hosts)}
    wanted: dict[int, list[str]] = defaultdict(list)
    for number, host in pairs:
        if host not in spared and (number, host) not in withheld:
            wanted[number].append(host)
    given: list[Given] = []
    sizes: dict[int, int] = {}
    for row in await db.rows("services_of", sorted(wanted)):
        sizes[row["id"]] = most_bytes(row["selectors"])
        rollout, number = state.rollout_of(row, known[row["id"]]), row["id"]
        step = rollouts.joined(rollout, wanted[number], now, ttls.get(number, 0))
        given += [(number, host, step.rollout.hosts[host]) for host in step.changed]
    return await _with_room(db, given, sizes)


async def write(core: Core, db: Change, joins: JoinPlan, now: int) -> None:
    """Write what was planned in this transaction, and raise the serials of the hosts."""
    if joins.given:
        await state.assign(db, joins.given, now)
        await state.remember(core.register, db, joins.given)
        db.bump(sorted({host for _, host, _ in joins.given}))


async def _write_all(core: Core, db: Change, joins: JoinPlan, now: int) -> None:
    if joins.why is not None:
        raise joins.why
    await write(core, db, joins, now)


async def _with_room(db: Queries, given: Collection[Given], sizes: Mapping[int, int]) -> JoinPlan:
    hosts = sorted({host for _, host, _ in given})
    rows = await db.rows("assigned_counts", hosts, SERVICE_BYTES, SELECTOR_BYTES) if hosts else ()
    counts = Counter({row["host_id"]: row["services"] for row in rows})
    filled = Counter({row["host_id"]: row["bytes"] for row in rows})
    fits, full = [], dict[str, OverLimit]()
    for number, host, one in given:
        if error := no_room(host, counts[host] + 1, filled[host] + sizes[number]):
            full.setdefault(host, error)
            continue
        counts[host] += 1
        filled[host] += sizes[number]
        fits.append((number, host, one))
    return JoinPlan(tuple(fits), tuple(full), next(iter(full.values()), None))
