"""What a host must do to get from what it holds to what its manifest wants. No I/O, no clock.

Rules:
  1. A service has one slot from its first manifest to its removal; a service that is not in the manifest
     is removed, its tables first.
  2. A digest that is not in force is loaded; one that is, with another lease, is renewed: only the deadline
     moves. The same lease moves nothing, whatever the wall clock does.
  3. Commit-confirm: `good` is what is confirmed. A new digest in enforce with a window is on trial until
     its confirmation comes, else the host goes back to `good`, or to nothing where there was none.
  4. A digest that failed its trial is not tried again until the manifest names another one; meanwhile what
     was good is held, and loaded again where the kernel lost it.
  5. The trial's window runs on the boot clock; a reboot inside it ends it.
  6. An intent is written down before a flip. After a crash the kernel says whether it happened.
"""

from collections.abc import Iterable
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain.bounds import Epoch, EpochTime, Serial, ServiceId, Signed64, Small, Version
from aegisflux.domain.manifest import ActiveRef, CandidateRef, Confirm, HostManifest, ServiceState
from aegisflux.domain.snapshot import Established, Expiry, Mode

SECOND: Final = 1_000_000_000
MAX_SLOTS: Final = 256


class InForce(Struct, frozen=True):
    """A generation as the agent knows it. `serial` is that of the manifest it came with, `lease_until` wall
    time, `deadline_ns` boot clock."""

    version: Version
    digest: str
    tables_digest: str
    serial: Serial
    lease_until: Epoch
    deadline_ns: Signed64
    ttl_seconds: Small
    mode: Mode
    on_expiry: Expiry
    established: Established
    confirm_seconds: Small = 0
    applied_at: EpochTime = 0.0


class Holding(Struct, frozen=True):
    """One service on this host.

    active:         what judges, on trial while confirm_by_ns is not 0
    good:           what to go back to; None is nothing
    confirm_by_ns:  end of the trial on the boot clock, 0 when there is none
    intent:         what is about to be flipped to
    candidate:      what is judged beside it
    refused:        what failed its trial
    """

    service_id: ServiceId
    slot: Small
    active: InForce | None = None
    good: InForce | None = None
    confirm_by_ns: Signed64 = 0
    intent: InForce | None = None
    candidate: CandidateRef | None = None
    refused: CandidateRef | None = None


class Book(Struct, frozen=True):
    """What the agent holds, as it must be remembered; `boot_id` says which boot clock it speaks of."""

    boot_id: str = ""
    services: dict[ServiceId, Holding] = {}


class Remove(Struct, frozen=True):
    """Take a service from the host, tables and all."""

    service_id: int
    slot: int


class Clear(Struct, frozen=True):
    """Let the slot judge nothing in this role; the service stays known."""

    service_id: int
    slot: int
    role: Literal["active", "candidate"]


class Renew(Struct, frozen=True):
    """Move the deadline to that of the lease."""

    service_id: int
    slot: int
    lease_until: int
    confirm_seconds: int


class Revert(Struct, frozen=True):
    """The trial failed: go back to `good`."""

    service_id: int
    slot: int
    why: str


class Load(Struct, frozen=True):
    """Fetch, load and flip."""

    service_id: int
    slot: int
    ref: ActiveRef


class LoadCandidate(Struct, frozen=True):
    """Fetch and load beside the active one."""

    service_id: int
    slot: int
    ref: CandidateRef


Step = Remove | Clear | Renew | Revert | Load | LoadCandidate


def deadline_of(boot_ns: int, now: int, lease_until: int, ttl_seconds: int) -> int:
    """When a lease ends on the boot clock: min(TTL, lease_until - now) from now; past when it is over."""
    return boot_ns + max(0, min(ttl_seconds, lease_until - now)) * SECOND


def enter(book: Book, manifest: HostManifest) -> Book:
    """Give each new service of the manifest the lowest free slot. 256 services and 256 slots always fit,
    once those that left are removed."""
    known = dict(book.services)
    taken = {holding.slot for holding in known.values()}
    free = (slot for slot in range(MAX_SLOTS) if slot not in taken)
    for service in manifest.services:
        if service.service_id not in known:
            slot = next(free, None)
            if slot is None:
                break
            known[service.service_id] = Holding(service.service_id, slot)
    return replace(book, services=known)


def plan(manifest: HostManifest, book: Book, boot_ns: int) -> tuple[Step, ...]:
    """The steps, in order: what ends, what only moves, what must be loaded. Empty when all is well."""
    wanted = {service.service_id: service for service in manifest.services}
    steps: list[Step] = [
        Remove(holding.service_id, holding.slot)
        for holding in book.services.values()
        if holding.service_id not in wanted
    ]
    loads: list[Step] = []
    for service_id, service in wanted.items():
        holding = book.services.get(service_id)
        if holding is None:
            continue
        overdue = _overdue(holding, boot_ns)
        if overdue is not None:
            steps.append(overdue)
            holding = reverted(holding)
        for step in (*_active_steps(service, holding), *_candidate_steps(service, holding)):
            (loads if isinstance(step, Load | LoadCandidate) else steps).append(step)
    return (*steps, *loads)


def _overdue(holding: Holding, boot_ns: int) -> Revert | None:
    if not holding.confirm_by_ns or boot_ns < holding.confirm_by_ns:
        return None
    return Revert(holding.service_id, holding.slot, "no confirmation came within the window")


def _active_steps(service: ServiceState, holding: Holding) -> Iterable[Step]:
    ref, active = service.active, holding.active
    if ref is None:
        if active is not None or holding.good is not None:  # then the kernel may hold what nobody knows
            yield Clear(holding.service_id, holding.slot, "active")
        return
    if holding.refused == CandidateRef(ref.version, ref.digest):
        good = holding.good
        if good is not None and (active is None or active.digest != good.digest):
            back = ActiveRef(good.version, good.digest, good.lease_until)
            yield Load(holding.service_id, holding.slot, back)
        return
    if active is None or active.digest != ref.digest:
        yield Load(holding.service_id, holding.slot, ref)
    elif active.lease_until != ref.lease_until:
        yield Renew(holding.service_id, holding.slot, ref.lease_until, ref.confirm_seconds)


def _candidate_steps(service: ServiceState, holding: Holding) -> Iterable[Step]:
    if service.candidate == holding.candidate:
        return
    if service.candidate is None:
        yield Clear(holding.service_id, holding.slot, "candidate")
    else:
        yield LoadCandidate(holding.service_id, holding.slot, service.candidate)


def intended(holding: Holding, next_one: InForce) -> Holding:
    """About to flip; to be durable before the flip."""
    return replace(holding, intent=next_one)


def flipped(holding: Holding, now_active: InForce, boot_ns: int) -> Holding:
    """After the flip: on trial where it enforces and its manifest gave a window, else good at once.

    What is good already needs no second trial; going back to it does not pardon what was refused.
    """
    known_good = holding.good is not None and holding.good.digest == now_active.digest
    refused = holding.refused if known_good else None
    if known_good or now_active.confirm_seconds == 0 or now_active.mode == "observe":
        return replace(
            holding, active=now_active, good=now_active, confirm_by_ns=0, intent=None, refused=refused
        )
    end = boot_ns + now_active.confirm_seconds * SECOND
    return replace(holding, active=now_active, confirm_by_ns=end, intent=None, refused=None)


def confirms(holding: Holding, confirm: Confirm) -> bool:
    """Whether the message is about the trial under way: an older one of the same digest is not."""
    active = holding.active
    return (
        holding.confirm_by_ns != 0
        and active is not None
        and (active.version, active.digest) == (confirm.version, confirm.digest)
        and confirm.serial >= active.serial
    )


def confirmed(holding: Holding) -> Holding:
    """The trial ended well."""
    return replace(holding, good=holding.active, confirm_by_ns=0)


def reverted(holding: Holding) -> Holding:
    """The trial failed: what was good is active again."""
    failed = holding.active
    refused = None if failed is None else CandidateRef(failed.version, failed.digest)
    return replace(holding, active=holding.good, confirm_by_ns=0, intent=None, refused=refused)


def renewed(holding: Holding, lease_until: int, deadline_ns: int) -> Holding:
    """Only the deadline moved."""
    assert holding.active is not None
    active = replace(holding.active, lease_until=lease_until, deadline_ns=deadline_ns)
    good = active if holding.good and holding.good.digest == active.digest else holding.good
    return replace(holding, active=active, good=good)


class Seen(Struct, frozen=True):
    """What the kernel says that a slot judges by."""

    slot: int
    role: Literal["active", "candidate"]
    digest: str
    tables_digest: str
    deadline_ns: int


def recovered(book: Book, boot_id: str, seen: Iterable[Seen], boot_ns: int) -> tuple[Book, list[Holding]]:
    """The book as the kernel bears it out after a restart of the agent, and trials that a reboot ended.

    An intent that the kernel holds did happen. What the kernel does not hold is forgotten (and so loaded
    again); a trial goes on in what is left of its window.
    """
    same_boot = book.boot_id == boot_id
    found = {(one.slot, one.role): one for one in seen}
    services: dict[ServiceId, Holding] = {}
    ended: list[Holding] = []
    for service_id, holding in book.services.items():
        if holding.confirm_by_ns and not same_boot:
            ended.append(holding)
            holding = reverted(holding)
        candidate = found.get((holding.slot, "candidate"))
        if holding.candidate and (candidate is None or candidate.digest != holding.candidate.digest):
            holding = replace(holding, candidate=None)
        services[service_id] = _borne_out(holding, found.get((holding.slot, "active")), boot_ns)
    return Book(boot_id, services), ended


def _is(known: InForce | None, seen: Seen) -> bool:
    return known is not None and (known.digest, known.tables_digest) == (seen.digest, seen.tables_digest)


def _borne_out(holding: Holding, seen: Seen | None, boot_ns: int) -> Holding:
    if (
        holding.confirm_by_ns
        and seen is not None
        and _is(holding.good, seen)
        and not _is(holding.active, seen)
    ):
        holding = reverted(holding)  # it went back, and died before it could say so
    for known, is_intent in ((holding.intent, True), (holding.active, False)):
        if known is not None and seen is not None and _is(known, seen):
            known = replace(known, deadline_ns=seen.deadline_ns)
            if is_intent:
                return flipped(holding, known, boot_ns)
            return replace(holding, active=known, intent=None)
    return replace(holding, active=None, confirm_by_ns=0, intent=None)
