"""Executes what `domain.converge` planned: load, prove, flip, answer. What fails changes nothing."""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec.structs import replace

from aegisflux.agent.contents import Contents
from aegisflux.agent.parts import Parts
from aegisflux.agent.preflight import refusal, would_cut
from aegisflux.agent.remember import write_book
from aegisflux.agent.reporter import Reporter
from aegisflux.domain import converge
from aegisflux.domain.converge import Book, Holding, InForce
from aegisflux.domain.errors import OverLimit, Refused, Unavailable
from aegisflux.domain.flow import Flow, Own
from aegisflux.domain.manifest import (
    ActiveRef,
    CandidateRef,
    Confirm,
    HostContent,
    HostManifest,
    NackReason,
    ServiceState,
)
from aegisflux.domain.trust import Nacked, RefusedService, Trusted, now_of
from aegisflux.ports.datapath import Generation, Held, Loaded, Role

LARGE: Final = 2000
ROUNDS: Final = 3


class Applier:
    """Holds the book. One caller at a time.

    `failures` says why a service is not as its manifest wants, `drifted` which ones were found changed;
    `recent` tells what a service talked about lately.
    """

    def __init__(self, parts: Parts, reporter: Reporter, book: Book) -> None:
        self._parts, self._reporter = parts, reporter
        self._contents = Contents(parts, reporter.troubles)
        self.book = book
        self.failures: dict[int, tuple[NackReason, str]] = {}
        self._refused: set[int] = set()
        self.drifted: set[int] = set()
        self.recent: Callable[[int], list[Flow]] = lambda _: []
        self.reverts = 0

    async def recover(self, held: list[Held]) -> None:
        """Square the book with the kernel after a start."""
        seen = [converge.Seen(h.slot, h.role, h.digest, h.tables_digest, h.deadline_ns) for h in held]
        book, ended = converge.recovered(self.book, self._parts.boot_id, seen, self._boot_ns())
        await self._write(book)
        for holding in ended:
            await self._not_confirmed(holding, "the host rebooted inside the window")
        slots = {holding.slot for holding in book.services.values()}
        for stray in (h for h in held if h.slot not in slots):
            what = f"slot {stray.slot} of no service cannot be removed"
            await self._attempted(what, self._parts.datapath.remove, stray.slot, stray.role)

    async def enter(self, manifest: HostManifest) -> None:
        """Give new services their slots."""
        await self._write(converge.enter(self.book, manifest))

    async def apply(self, manifest: HostManifest, trusted: Trusted) -> bool:
        """Do what is needed; whether all was done that can be done now.

        A second round follows where the first one freed slots or took something back.
        """
        done = True
        for _ in range(ROUNDS):
            await self.enter(manifest)
            steps = converge.plan(manifest, self.book, self._boot_ns())
            before = self.reverts
            for step in steps:
                done = await self._tried(step, manifest, trusted) and done
            entered = all(service.service_id in self.book.services for service in manifest.services)
            if entered and self.reverts == before:
                break
        return done

    async def _tried(self, step: converge.Step, manifest: HostManifest, trusted: Trusted) -> bool:
        """Whether it need not be tried again by itself; a nack is an answer."""
        try:
            await self._do(step, manifest, trusted)
        except Nacked as error:
            await self._nack(manifest, step.service_id, error.reason, error.detail, step)
        except (Unavailable, OSError) as error:
            self._parts.log(f"service {step.service_id}: {error}")
            return False
        except Exception as error:  # noqa: BLE001 - what is wrong with one service stops no other
            detail = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
            await self._nack(manifest, step.service_id, "load_failed", detail, step)
            return isinstance(error, Refused)
        return True

    def refuse(self, found: Iterable[RefusedService]) -> None:
        """Remember which services of the last manifest were not believed; they are as they were before."""
        for service_id in self._refused:
            self.failures.pop(service_id, None)
        refused = {one.service_id: (one.reason, one.detail) for one in found if one.service_id is not None}
        self._refused = set(refused)
        self.failures.update(refused)

    async def _attempted(self, what: str, change: Callable[..., object], *values: object) -> bool:
        """A change of one slot among several: whether it was made. One that fails is logged, and leaves the
        others."""
        try:
            await self._parts.blocking(change, *values)
        except Exception as error:  # noqa: BLE001 - see above
            self._reporter.loss["slots"] += 1
            self._parts.log(f"{what}: {type(error).__name__}: {error}")
            return False
        return True

    async def confirm(self, confirm: Confirm) -> bool:
        """End a trial well; False when the message is about none."""
        holding = self.book.services.get(confirm.service_id)
        if holding is None or not converge.confirms(holding, confirm):
            return False
        await self._keep(converge.confirmed(holding))
        await self._parts.blocking(self._parts.datapath.forget, holding.slot)
        return True

    async def drift(self) -> bool:
        """Read back and forget what the kernel no longer holds, so that it is loaded again; whether any."""
        held = await self._parts.blocking(self._parts.datapath.held)
        active = {h.slot: h for h in held if h.role == "active"}
        candidates = {h.slot: h.digest for h in held if h.role == "candidate"}
        found = await self._remove_strays(held)
        for holding in list(self.book.services.values()):
            fixed = _without_lost(holding, active.get(holding.slot), candidates.get(holding.slot))
            if fixed != holding:
                found = True
                self._parts.log(f"service {holding.service_id}: the kernel holds something else; repairing")
                self.drifted.add(holding.service_id)
                self._reporter.loss["drift"] += 1
                await self._keep(fixed)
            known, seen = fixed.active, active.get(holding.slot)
            if known and seen and seen.deadline_ns != known.deadline_ns:
                what = f"service {holding.service_id}: its lease cannot be put right"
                await self._attempted(what, self._parts.datapath.renew, holding.slot, known.deadline_ns)
        return found

    async def _remove_strays(self, held: list[Held]) -> bool:
        """Take away what judges in a slot or role that nothing was put into; whether any."""
        known = {
            (h.slot, role)
            for h in self.book.services.values()
            for role, what in (("active", h.active or h.intent or h.good), ("candidate", h.candidate))
            if what is not None
        }
        strays = [h for h in held if (h.slot, h.role) not in known]
        for stray in strays:
            self._parts.log(f"drift: slot {stray.slot} judges by what nobody asked for; removed")
            self._reporter.loss["drift"] += 1
            what = f"drift: slot {stray.slot} cannot be removed"
            await self._attempted(what, self._parts.datapath.remove, stray.slot, stray.role)
        return bool(strays)

    async def retime(self, trusted: Trusted) -> None:
        """Give every lease the end that it has by the time that is believed now."""
        now = now_of(trusted, self._parts.wall())
        for holding in list(self.book.services.values()):
            if (active := holding.active) is not None:
                ends = converge.deadline_of(self._boot_ns(), now, active.lease_until, active.ttl_seconds)
                what = f"service {holding.service_id}: its lease cannot be moved"
                if await self._attempted(what, self._parts.datapath.renew, holding.slot, ends):
                    await self._keep(converge.renewed(holding, active.lease_until, ends))

    async def panicked(self) -> None:
        """Everything was removed by hand: nothing is active, what was good is remembered."""
        services = {
            i: replace(h, active=None, candidate=None, confirm_by_ns=0, intent=None)
            for i, h in self.book.services.items()
        }
        await self._write(replace(self.book, services=services))

    async def keep_again(self, digests: frozenset[str]) -> None:
        """See `Contents.keep_again`."""
        await self._contents.keep_again(digests)

    def on_trial(self) -> list[Holding]:
        """Services that wait for their confirmation."""
        return [h for h in self.book.services.values() if h.confirm_by_ns]

    async def _do(self, step: converge.Step, manifest: HostManifest, trusted: Trusted) -> None:
        datapath, blocking = self._parts.datapath, self._parts.blocking
        match step:
            case converge.Remove(service_id, slot):
                for role in ("active", "candidate"):
                    await blocking(datapath.remove, slot, role)
                self.failures.pop(service_id, None)
                services = {i: h for i, h in self.book.services.items() if i != service_id}
                await self._write(replace(self.book, services=services))
            case converge.Clear(service_id, slot, role):
                await blocking(datapath.remove, slot, role)
                await self._keep(_cleared(self.book.services[service_id], role))
            case converge.Renew():
                await self._renew(step, trusted)
            case converge.Revert(service_id, _, why):
                await self._revert(service_id, why)
            case converge.Load(service_id, _, ref):
                await self._load(_service(manifest, service_id), ref, manifest.serial, trusted)
            case converge.LoadCandidate(service_id, slot, ref):
                await self._load_candidate(service_id, slot, ref, trusted)

    async def _renew(self, step: converge.Renew, trusted: Trusted) -> None:
        holding = self.book.services[step.service_id]
        assert holding.active is not None
        now = now_of(trusted, self._parts.wall())
        deadline = converge.deadline_of(self._boot_ns(), now, step.lease_until, holding.active.ttl_seconds)
        await self._parts.blocking(self._parts.datapath.renew, step.slot, deadline)
        await self._keep(converge.renewed(holding, step.lease_until, deadline))
        await self._ack(self.book.services[step.service_id])

    async def _load(self, service: ServiceState, ref: ActiveRef, serial: int, trusted: Trusted) -> None:
        content = await self._contents.get(trusted, service.service_id, ref)
        holding, now = self.book.services[service.service_id], now_of(trusted, self._parts.wall())
        self._guard(content)
        if ref.preflight:
            await self._preflight(holding, content)
        deadline = converge.deadline_of(self._boot_ns(), now, ref.lease_until, content.ttl_seconds)
        next_one = InForce(
            ref.version,
            ref.digest,
            content.tables_digest,
            serial,
            ref.lease_until,
            deadline,
            content.ttl_seconds,
            content.mode,
            content.on_expiry,
            content.established,
            ref.confirm_seconds,
            now,
        )
        loaded = await self._loaded(holding.slot, "active", content, deadline)
        large = content.entries > LARGE
        del content
        if large:
            await self._parts.blocking(self._parts.trim)
        await self._keep(converge.intended(holding, next_one))
        await self._flip(loaded)
        await self._in_force(service, replace(next_one, applied_at=self._parts.wall()))

    def _guard(self, content: HostContent) -> None:
        """The host's own guardrails, whatever the control plane checked; raises Nacked."""
        settings = self._parts.settings
        if settings.observe_only and content.mode == "enforce":
            raise Nacked("guardrail", "observe_only: expected a snapshot that observes, got one to enforce")
        if 0 < settings.max_lease_seconds < content.ttl_seconds:
            raise Nacked(
                "guardrail",
                f"max_lease_seconds: expected at most {settings.max_lease_seconds:.0f} s, "
                f"got {content.ttl_seconds} s",
            )

    async def _preflight(self, holding: Holding, content: HostContent) -> None:
        """Raises Nacked where the content would cut what is alive, or was lately and is not blocked by now.
        Sockets that cannot be listed are no reason to believe that there are none."""
        datapath, blocking = self._parts.datapath, self._parts.blocking
        failsafe = self._parts.settings.failsafe
        try:
            live = await blocking(datapath.live, holding.slot)
            cut = would_cut(content, live, Own(), failsafe)
            own = await blocking(datapath.own, holding.slot)
            for flow in would_cut(content, self.recent(holding.service_id), own, failsafe):
                if (await blocking(datapath.why, holding.slot, flow)).word != "blocked":
                    cut.append(flow)
        except (Unavailable, OSError) as error:
            raise Nacked("preflight", f"what is alive cannot be told: {error}") from error
        if cut:
            raise Nacked("preflight", refusal(cut))

    async def _in_force(self, service: ServiceState, active: InForce) -> None:
        holding = converge.flipped(self.book.services[service.service_id], active, self._boot_ns())
        await self._keep(holding)
        self.failures.pop(service.service_id, None)
        if active.established == "cut" and active.mode == "enforce":
            await self._cut(holding)
        if not holding.confirm_by_ns:
            await self._parts.blocking(self._parts.datapath.forget, holding.slot)
        elif failed := await self._probe(service):
            await self._revert(service.service_id, failed)
            return
        await self._ack(holding)

    async def _cut(self, holding: Holding) -> None:
        """A courtesy: what is not destroyed has its packets refused."""
        try:
            await self._parts.blocking(self._parts.datapath.cut, holding.slot)
        except (Unavailable, OSError) as error:
            self._parts.log(f"service {holding.service_id}: sockets are not cut, only their packets: {error}")

    async def _load_candidate(self, service_id: int, slot: int, ref: CandidateRef, trusted: Trusted) -> None:
        content = await self._contents.get(trusted, service_id, ref)
        never_ends = self._boot_ns() + content.ttl_seconds * converge.SECOND
        await self._flip(await self._loaded(slot, "candidate", content, never_ends))
        await self._keep(replace(self.book.services[service_id], candidate=ref))

    async def _loaded(self, slot: int, role: Role, content: HostContent, deadline: int) -> Loaded:
        datapath = self._parts.datapath
        generation = Generation(
            content.service_id,
            content.version,
            content.digest,
            content.tables,
            content.tables_digest,
            content.mode,
            content.on_expiry,
            content.established,
            deadline,
        )
        try:
            loaded = await self._parts.blocking(datapath.load, slot, role, generation)
        except OverLimit as error:
            raise Nacked("map_full", str(error)) from error
        except (Refused, Unavailable, OSError) as error:
            raise Nacked("load_failed", str(error)) from error
        if loaded.tables_digest != content.tables_digest:
            await self._parts.blocking(datapath.discard, loaded)
            raise Nacked(
                "readback_mismatch",
                f"expected {content.tables_digest}, the kernel holds {loaded.tables_digest}",
            )
        return loaded

    async def _flip(self, loaded: Loaded) -> None:
        try:
            await self._parts.blocking(self._parts.datapath.flip, loaded)
        except (Refused, Unavailable, OSError) as error:
            await self._parts.blocking(self._parts.datapath.discard, loaded)
            raise Nacked("load_failed", f"flip: {error}") from error

    async def _revert(self, service_id: int, why: str) -> None:
        """Back to what was good: the kept generation; where that is gone, the next round loads it again."""
        holding, datapath = self.book.services[service_id], self._parts.datapath
        await self._parts.blocking(datapath.flip_back, holding.slot)
        held = await self._parts.blocking(datapath.held)
        now = next((h for h in held if h.slot == holding.slot and h.role == "active"), None)
        back = converge.reverted(holding)
        if back.active is None and now is not None:
            await self._parts.blocking(datapath.remove, holding.slot, "active")
        elif back.active is not None and (now is None or now.digest != back.active.digest):
            back = replace(back, active=None)
        await self._keep(back)
        self.reverts += 1
        await self._parts.blocking(datapath.forget, holding.slot)
        await self._not_confirmed(holding, why)

    async def _probe(self, service: ServiceState) -> str:
        """Why a probe failed, empty when none did. Probes run inside the service's first cgroup."""
        cgroups = self._reporter.cgroups.get(service.service_id, ())
        if not service.probes or not cgroups:
            return ""
        for target in service.probes:
            if failed := await self._parts.prober(cgroups[0], target):
                return f"probe {target}: {failed}"
        return ""

    async def _not_confirmed(self, holding: Holding, why: str) -> None:
        failed = holding.active
        assert failed is not None
        await self._reporter.nack(
            "not_confirmed", why, failed.serial, holding.service_id, failed.version, failed.digest
        )

    async def _nack(
        self, manifest: HostManifest, service_id: int, reason: NackReason, detail: str, step: converge.Step
    ) -> None:
        self.failures[service_id] = (reason, detail)
        ref = step.ref if isinstance(step, converge.Load | converge.LoadCandidate) else None
        holding = self.book.services.get(service_id)
        if holding is not None and holding.intent is not None:
            await self._keep(replace(holding, intent=None))
        named = (None, None) if ref is None else (ref.version, ref.digest)
        await self._reporter.nack(reason, detail, manifest.serial, service_id, *named)

    async def _ack(self, holding: Holding) -> None:
        await self._reporter.ack(holding, self._boot_ns())

    async def _keep(self, holding: Holding) -> None:
        await self._write(replace(self.book, services={**self.book.services, holding.service_id: holding}))

    async def _write(self, book: Book) -> None:
        """The book need not be durable: a restarted agent squares the one that it finds with the kernel. What
        must be is the manifest that is applied, and it was before (`Runner.receive`)."""
        if book != self.book:
            self.book = book
            await self.write_again()

    async def write_again(self) -> None:
        """Write the book, or say that the disk does not take it."""
        troubles = self._reporter.troubles
        try:
            await self._parts.blocking(write_book, self._parts.store, self.book)
        except Unavailable as error:
            troubles.not_written("book", error)
        else:
            troubles.end("book")

    def _boot_ns(self) -> int:
        return self._parts.datapath.boot_ns()


def _service(manifest: HostManifest, service_id: int) -> ServiceState:
    return next(service for service in manifest.services if service.service_id == service_id)


def _cleared(holding: Holding, role: Role) -> Holding:
    if role == "candidate":
        return replace(holding, candidate=None)
    return replace(holding, active=None, good=None, confirm_by_ns=0, refused=None)


def _without_lost(holding: Holding, active: Held | None, candidate: str | None) -> Holding:
    known = holding.active
    if known is not None and (
        active is None
        or (active.digest, active.tables_digest, active.mode, active.on_expiry, active.established)
        != (known.digest, known.tables_digest, known.mode, known.on_expiry, known.established)
    ):
        holding = replace(holding, active=None, confirm_by_ns=0)
    if holding.candidate is not None and candidate != holding.candidate.digest:
        holding = replace(holding, candidate=None)
    return holding
