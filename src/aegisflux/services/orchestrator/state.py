"""Rollouts as the store has them: loaded for a step of `domain.rollout`, and the step written back."""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain.errors import Invalid, NotFound, OverLimit
from aegisflux.domain.manifest import MAX_SERVICES
from aegisflux.domain.names import check_label
from aegisflux.domain.paths import step
from aegisflux.domain.rollout import Assigned, Rollout, Step, runs
from aegisflux.ports.store import Change, Queries, Row

MAX_LABELS = 64
Given = tuple[int, str, Assigned]
"""What a host is to run of a service: the service's number, the host, and what."""


class Service(Struct, frozen=True):
    """A registered service."""

    id: int
    name: str
    selectors: tuple[str, ...]
    host_labels: dict[str, str]
    created_at: int


def check_labels(path: str, labels: Mapping[str, str], known: Mapping[str, str] | None = None) -> None:
    """Raises Invalid by path for labels that are too many, too long, not printable, or that could be read as
    something else than labels; `known`: those that were given before keep what they are."""
    if len(labels) > MAX_LABELS:
        raise Invalid(path, f"at most {MAX_LABELS} labels", len(labels))
    for name, value in labels.items():
        if not 0 < len(name) <= 63 or len(value) > 255:
            words = "a label with a name of 1 to 63 and a value of at most 255 characters"
            raise Invalid(f"{path}.{name[:63]}", words, value)
        if (known or {}).get(name) != value:
            check_label(step(path, name), name, value)


def service_of(row: Row) -> Service:
    """From a row of `services`."""
    return Service(row["id"], row["name"], tuple(row["selectors"]), row["host_labels"], row["created_at"])


async def load(db: Queries, service_id: int) -> tuple[Service, Rollout]:
    """A service and its rollout; raises NotFound."""
    row = await db.row("service", service_id)
    if row is None:
        raise NotFound(f"service {service_id} is not registered")
    given = await db.rows("assignments", service_id)
    hosts = {r["host_id"]: Assigned(r["version"], r["lease_until"], r["renewed"]) for r in given}
    return service_of(row), rollout_of(row, hosts)


def rollout_of(row: Row, hosts: dict[str, Assigned]) -> Rollout:
    """From a row of `services` and its assignments."""
    return Rollout(
        service_id=row["id"],
        latest=row["latest"],
        stable=row["stable"],
        promotions=tuple(row["promotions"]),
        open_version=row["open_version"],
        open_until=row["open_until"],
        hosts=hosts,
    )


async def running(db: Queries, service: Service) -> set[str]:
    """The enrolled hosts that run a service: by their labels, or by a matched cgroup."""
    found = {row["host_id"] for row in await db.rows("running", service.id)}
    hosts = await db.rows("host_labels")
    enrolled = {row["host_id"] for row in hosts}
    return (found & enrolled) | {r["host_id"] for r in hosts if runs(service.host_labels, r["labels"])}


async def save(db: Change, step: Step, now: int) -> None:
    """Write a step: the rollout, the assignments of the changed hosts, and their raised serials."""
    rollout = step.rollout
    await _put(db, rollout)
    given = [(host, rollout.hosts[host]) for host in step.changed if host in rollout.hosts]
    gone = [host for host in step.changed if host not in rollout.hosts]
    if given:
        await _check_room(db, rollout.service_id, [host for host, _ in given])
        await assign(db, [(rollout.service_id, host, one) for host, one in given], now)
    if gone:
        await db.run("unassign", rollout.service_id, gone)
    if step.changed:
        db.bump(list(step.changed))


async def _put(db: Queries, rollout: Rollout) -> None:
    await db.run(
        "put_rollout",
        rollout.service_id,
        rollout.latest,
        rollout.stable,
        list(rollout.promotions),
        rollout.open_version,
        rollout.open_until,
    )


async def offer(db: Change, rollout: Rollout, version: int, hosts: Sequence[str]) -> tuple[str, ...]:
    """Have hosts judge a version beside what is in force; those for which that is new."""
    await _put(db, replace(rollout, latest=max(rollout.latest, version)))
    changed = tuple(
        row["host_id"] for row in await db.rows("put_candidates", rollout.service_id, hosts, version)
    )
    if changed:
        db.bump(list(changed))
    return changed


async def end_offers(db: Change, service_id: int, hosts: Sequence[str] | None = None) -> tuple[str, ...]:
    """End the judging beside, on these hosts or everywhere; where it ended."""
    rows = await db.rows("end_candidates", service_id, None if hosts is None else list(hosts))
    ended = tuple(row["host_id"] for row in rows)
    if ended:
        db.bump(list(ended))
    return ended


async def assign(db: Queries, given: Sequence[Given], now: int) -> None:
    """Write what hosts are to run, of any number of services, in one statement."""
    await db.run(
        "assign",
        [service_id for service_id, _, _ in given],
        [host for _, host, _ in given],
        [a.version for _, _, a in given],
        [a.lease_until for _, _, a in given],
        [a.renewed for _, _, a in given],
        now,
    )


async def _check_room(db: Queries, service_id: int, hosts: Iterable[str]) -> None:
    full = await db.row("crowded", list(hosts), service_id, MAX_SERVICES)
    if full is not None:
        raise OverLimit("services_per_host", MAX_SERVICES, full["services"] + 1, f"host {full['host_id']}")
