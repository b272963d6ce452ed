"""Rollouts as the store has them: loaded for a step of `domain.rollout`, and the step written back."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain.audit import Entry
from aegisflux.domain.decided import NONE
from aegisflux.domain.definition import Definition
from aegisflux.domain.errors import Invalid, NotFound, OverLimit
from aegisflux.domain.manifest import MAX_SERVICES
from aegisflux.domain.manifest_room import ROOM_BYTES, SELECTOR_BYTES, SERVICE_BYTES, no_room
from aegisflux.domain.names import check_label
from aegisflux.domain.paths import step
from aegisflux.domain.roles import SYSTEM
from aegisflux.domain.rollout import Assigned, Rollout, Step, runs
from aegisflux.domain.undo import remembered
from aegisflux.ports.store import Change, Queries, Row
from aegisflux.runtime import logs
from aegisflux.runtime.register import Register

MAX_LABELS = 64
Given = tuple[int, str, Assigned]
"""What a host is to run of a service: the service's number, the host, and what."""
log = logs.get("state")


class HostsMoved(Struct, frozen=True):
    """How many hosts, and the first of them by name."""

    count: int = 0
    hosts: tuple[str, ...] = ()


class ServiceChange(Struct, frozen=True, kw_only=True):
    """A change of a service that waits for somebody who approves it.

    reason:  why it waits
    before:  what the service was when it was asked for; the approval holds for this alone. Null: it was asked
             for before this was kept
    differs: what it changes of that, in words
    stale:   what of the service changed since, in words; unless empty, it cannot be approved
    begin, cease: hosts that would begin and cease to run the service now; null in a list of services
    """

    id: int
    service_id: int
    name: str
    selectors: tuple[str, ...]
    host_labels: dict[str, str]
    created_at: int
    created_by: str
    reason: str = ""
    before: Definition | None = None
    differs: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    begin: HostsMoved | None = None
    cease: HostsMoved | None = None

    @property
    def definition(self) -> Definition:
        """What the service is to become."""
        return Definition(self.name, self.selectors, self.host_labels)


class Service(Struct, frozen=True):
    """A registered service; `warning`: what is odd about it, when it is registered. `waits`: a change that
    was asked for, and is not approved yet. `tried`: what a dry run would change of a service that there is;
    its `id` is 0, and its `reason` is empty unless it would wait."""

    id: int
    name: str
    selectors: tuple[str, ...]
    host_labels: dict[str, str]
    created_at: int
    warning: str = ""
    waits: ServiceChange | None = None
    tried: ServiceChange | None = None

    @property
    def definition(self) -> Definition:
        """What rules mean by it."""
        return Definition(self.name, self.selectors, self.host_labels)


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
    """The enrolled hosts that run a service: by their labels, or by a matched cgroup. One whose manifest is
    full runs no further service by its own report: it would stop what is meant for all."""
    hosts = await db.rows("host_labels")
    labelled = {r["host_id"] for r in hosts if runs(service.host_labels, r["labels"])}
    enrolled = {row["host_id"] for row in hosts}
    found = {row["host_id"] for row in await db.rows("running", service.id)} & enrolled - labelled
    full = await crowded(db, service.id, found) if found else {}
    for host, error in full.items():
        log.warning("a host has no room for a service that it reports", host_id=host, reason=str(error))
    return labelled | found - full.keys()


async def give(register: Register, db: Change, step: Step, now: int) -> None:
    """Write a step that somebody approved: undoing may lead the changed hosts back to it from now on."""
    await save(db, step, now)
    hosts = step.rollout.hosts
    number = step.rollout.service_id
    await remember(register, db, [(number, host, hosts[host]) for host in step.changed if host in hosts])


async def remember(register: Register, db: Change, given: Sequence[Given]) -> None:
    """Note what hosts were given, each row with its MAC."""
    if not given:
        return
    numbers, hosts = [number for number, _, _ in given], [host for _, host, _ in given]
    rows = await db.rows("had_of", numbers, hosts)
    known = {
        (r["service_id"], r["host_id"]): tuple(r["versions"]) for r in rows if had_is_believed(register, r)
    }
    lists = [remembered(known.get((number, host), ()), one.version) for number, host, one in given]
    macs = [
        register.seal("had", {"service_id": number, "host_id": host, "versions": versions})
        for number, host, versions in zip(numbers, hosts, lists, strict=True)
    ]
    texts = [f"{{{','.join(map(str, versions))}}}" for versions in lists]
    await db.run("remember_had", numbers, hosts, texts, macs)


def had_is_believed(register: Register, row: Row) -> bool:
    """Whether what a host had is as we noted it; what is not is reported."""
    return register.holds(f"service/{row['service_id']}/had/{row['host_id']}", "had", row)


async def save(db: Change, step: Step, now: int) -> None:
    """Write a step that undoes: the rollout, what changed hosts are to run, and their raised serials."""
    rollout = step.rollout
    await _put(db, rollout)
    given = [(host, rollout.hosts[host]) for host in step.changed if host in rollout.hosts]
    gone = [host for host in step.changed if host not in rollout.hosts]
    if given:
        hosts = [host for host, _ in given]
        await check_room(db, rollout.service_id, hosts)
        withheld = await db.rows("withheld_of", [rollout.service_id], hosts)
        await assign(db, [(rollout.service_id, host, one) for host, one in given], now)
        if withheld:
            await tell_withheld(db, rollout.service_id)
    if gone:
        await db.run("unassign", rollout.service_id, gone)
    if step.changed:
        db.bump(list(step.changed))


async def _put(db: Change, rollout: Rollout) -> None:
    """Write the rollout; a line of the audit log names each change of what is promoted, and of what is given
    to hosts that join before it is."""
    row = await db.row(
        "put_rollout",
        rollout.service_id,
        rollout.latest,
        rollout.stable,
        list(rollout.promotions),
        rollout.open_version,
        rollout.open_until,
    )
    if row is None:
        return
    what = f"service/{rollout.service_id}"
    if row["was"] != rollout.stable:
        before, after = ("none" if one is None else str(one) for one in (row["was"], rollout.stable))
        await db.audit(Entry(SYSTEM.name, "service.stable", what, before=before, after=after))
    before = open_text(row["was_open"], row["was_until"])
    after = open_text(rollout.open_version, rollout.open_until)
    if before != after:
        await db.audit(Entry(SYSTEM.name, "service.open", what, before=before, after=after))


def open_text(version: int | None, until: int) -> str:
    """What hosts that join are given before anything is promoted, and until when."""
    return NONE if version is None else f"version {version} until {until}"


def withheld_text(hosts: Iterable[str]) -> str:
    """The hosts from which a service is withheld: how many, and a digest of their names."""
    names = sorted(hosts)
    digest = sha256("\n".join(names).encode()).hexdigest()[:32]
    return f"{len(names)} hosts sha256:{digest}" if names else NONE


async def tell_withheld(db: Change, service_id: int) -> None:
    """Have the audit log say from which hosts a service is withheld now."""
    rows = await db.rows("withheld", [service_id])
    text = withheld_text(row["host_id"] for row in rows)
    await db.audit(Entry(SYSTEM.name, "service.withheld", f"service/{service_id}", after=text))


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


async def crowded(
    db: Queries, service_id: int, hosts: Iterable[str], *, again: bool = False
) -> dict[str, OverLimit]:
    """The hosts whose manifests have no room for the snapshot of a service, and why; `again`: also of those
    that have one, since its selectors became longer."""
    limits = MAX_SERVICES, ROOM_BYTES, SERVICE_BYTES, SELECTOR_BYTES
    found = {}
    for row in await db.rows("crowded", list(hosts), service_id, *limits, again):
        if error := no_room(row["host_id"], row["services"], row["bytes"]):
            found[row["host_id"]] = error
    return found


async def check_room(db: Queries, service_id: int, hosts: Iterable[str], *, again: bool = False) -> None:
    """Raises OverLimit by the first of the hosts whose manifest has no room for the service."""
    for error in (await crowded(db, service_id, hosts, again=again)).values():
        raise error
