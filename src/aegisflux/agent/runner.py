"""One agent's life: hear, believe, converge, report.

Messages only change what is believed (`receive`, `confirm`); `converge` is the one place that touches the
datapath, and one task calls it. Each method below is a step that a test can take; `run` takes them in time.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from hashlib import sha256
from math import inf
from typing import Final

from aegisflux.agent import remember
from aegisflux.agent.addresses import OwnAddresses
from aegisflux.agent.applier import Applier
from aegisflux.agent.binder import Binder
from aegisflux.agent.former import Former
from aegisflux.agent.panics import Flags, StateMedium
from aegisflux.agent.parts import Parts
from aegisflux.agent.remember import Accepted
from aegisflux.agent.reporter import UNPROVEN, Reporter
from aegisflux.agent.telemetry import Telemetry
from aegisflux.agent.troubles import disk_reason, disk_word
from aegisflux.agent.wakes import Bell, Watch
from aegisflux.domain import unwritten
from aegisflux.domain.converge import InForce
from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.domain.manifest import MAX_MANIFEST_BYTES, Heartbeat, HostManifest
from aegisflux.domain.panic import Panic
from aegisflux.domain.trust import (
    Nacked,
    RefusedService,
    Trusted,
    accept_confirm,
    accept_keys,
    accept_manifest,
)
from aegisflux.ports.bus import Message
from aegisflux.runtime.ending import end
from aegisflux.wire import envelope, subjects

FIRST_RETRY, LAST_RETRY = 0.25, 15.0
CLOCK_SECONDS: Final = 60.0
SCAN_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 0.1
MESSAGE_BYTES: Final = 2 * MAX_MANIFEST_BYTES


class Runner:
    """An agent. `trusted` is what enrolment gave, used until something was accepted; `flags` say whether it
    is in panic."""

    def __init__(self, parts: Parts, trusted: Trusted, flags: Flags | None = None) -> None:
        self.parts = parts
        self.flags = flags or Flags([StateMedium(parts.store)])
        self.accepted = remember.read_accepted(parts.store) or Accepted(trusted)
        self.reporter = Reporter(parts)
        self.applier = Applier(parts, self.reporter, remember.read_book(parts.store))
        self.binder = Binder(parts)
        self.reporter.skipped = self.binder.skipped
        self.former = Former(parts, self.binder, self.reporter.troubles, self.applier.book.services)
        self.addresses = OwnAddresses(parts, self._guarded)
        self.telemetry = None if parts.senses is None else Telemetry(parts, parts.senses)
        if self.telemetry is not None:
            self.reporter.lost = self.telemetry.lost
            self.applier.recent = self.telemetry.recent
            self.telemetry.troubles = self.reporter.troubles
        self.panic: Panic | None = None
        self.applied = asyncio.Event()
        self._open, self._detached = False, True
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._receiving = asyncio.Lock()
        self._panic_turn = asyncio.Lock()
        self._bind_turn = asyncio.Lock()
        self._last_message = b""
        self._tree_changed, self._bound_anew = asyncio.Event(), asyncio.Event()
        self._tree_bound = True
        self._rescanning: asyncio.Task[bool] | None = None
        self._scanned, self._scan_seconds = 0.0, parts.settings.scan_seconds
        self._beat_now, self._denied_waits = Bell(), Bell()
        self._denied = Watch(self._denied_waits.ring)

    # Steps

    async def start(self) -> None:
        """Take over what the kernel holds, and put the last accepted manifest in force; needs no network."""
        words = await self.parts.blocking(self.flags.words, True)
        self.panic = self.flags.standing(also=words)
        self.reporter.serial = self.accepted.trusted.serial
        if (known := self.accepted.manifest) is not None:
            manifest = unwritten.taken_up(known, self._in_force())
            self.accepted = Accepted(self.accepted.trusted, manifest)
        if self.panic is None:
            await self._open_datapath()
        if known is None and self._open:
            await self.parts.blocking(self.parts.datapath.retire)
        await self.converge()
        for holding in self.applier.book.services.values():
            if holding.active is not None:
                await self.reporter.ack(holding, self.parts.datapath.boot_ns())

    async def receive(self, data: bytes) -> bool:
        """A manifest came: believe it or say why not; whether there is something to converge to.

        What is believed is durable before this returns, and nothing is applied before that but renewals: see
        `domain.unwritten`.
        """
        async with self._receiving:
            return data == self._last_message or await self._received(data)

    async def _received(self, data: bytes) -> bool:
        parts, known = self.parts, self.accepted
        refused: list[RefusedService] = []
        try:
            message = envelope.decode_manifest_message(data, MESSAGE_BYTES)
            keys = envelope.opened(message.keys, envelope.KEY_SET)
            trusted = accept_keys(known.trusted, keys, parts.verify)
            signed = envelope.opened(message.manifest, envelope.MANIFEST)
            digest = sha256(signed.payload).hexdigest()
            trusted, manifest = accept_manifest(
                trusted, signed, digest, parts.wall(), parts.verify, known.manifest, refused.append
            )
        except Nacked as error:
            await self.reporter.refuse(error)
            return False
        self.reporter.troubles.end(UNPROVEN)
        accepted, last = Accepted(remember.pruned(trusted), manifest), data
        if (full := await self._not_durable(accepted)) is not None:
            detail = f"{disk_word(full)}: only renewals are applied until this can be written: {full}"
            why = disk_reason(full), detail
            applied, waits = unwritten.renewed(known.manifest, manifest, self._in_force(), *why)
            if applied is None:
                await self.reporter.nack(*why, manifest.serial)
                return False
            accepted, last = Accepted(accepted.trusted, applied), b"" if waits else data
            refused += waits
        self.accepted, self._last_message = accepted, last
        self.reporter.serial = trusted.serial
        self.applier.refuse(refused)
        for one in refused:
            await self.reporter.nack(one.reason, one.detail, manifest.serial, one.service_id)
        self._wake.set()
        return True

    def _in_force(self) -> dict[int, InForce]:
        return {i: h.active for i, h in self.applier.book.services.items() if h.active is not None}

    async def _not_durable(self, accepted: Accepted) -> Unavailable | None:
        """Write down what is believed; why it could not be written."""
        parts, troubles = self.parts, self.reporter.troubles
        if accepted == self.accepted and "state" not in troubles:
            return None
        try:
            await parts.blocking(remember.write_accepted, parts.store, accepted)
        except Unavailable as error:
            troubles.not_written("state", error)
            self._beat_now.ring()
            return error
        troubles.end("state")
        return None

    async def _persist_clock(self) -> None:
        """Write the time, and what the disk did not take before."""
        troubles = self.reporter.troubles
        try:
            await self.parts.blocking(remember.write_clock, self.parts.store, self.parts.wall())
        except Unavailable as error:
            troubles.not_written("clock", error)
            return
        troubles.end("clock")
        if "state" in troubles:
            async with self._receiving:
                await self._not_durable(self.accepted)
            if not self._last_message:
                await self._guarded(self._refresh_quietly)  # what had to wait may come into force now
        if "book" in troubles:
            await self.applier.write_again()
        await self.applier.keep_again(frozenset(_named(self.accepted, self.applier)))

    async def confirm(self, data: bytes) -> bool:
        """A confirmation came; False when it is not believed or is about no trial of ours."""
        try:
            signed = envelope.opened(envelope.decode_envelope(data, MESSAGE_BYTES), envelope.CONFIRM)
            confirm = accept_confirm(self.accepted.trusted, signed, self.parts.wall(), self.parts.verify)
        except Nacked as error:
            await self.reporter.refuse(error, "confirmation: ")
            return False
        async with self._turn:
            return await self.applier.confirm(confirm)

    async def converge(self) -> bool:
        """Make the kernel hold what the manifest says; whether all is done. Harmless at any time."""
        async with self._turn:
            manifest = self.accepted.manifest
            if manifest is None:
                return True
            if self.panic is not None:
                await self.reporter.nack("panicked", self.panic.why or "panic", manifest.serial)
                return True
            if not await self._open_datapath():
                return False
            self.binder.follow(manifest)
            await self.applier.enter(manifest)
            await self._guarded(self._bind)
            done = await self.applier.apply(manifest, self.accepted.trusted)
            done = await self._guarded(self._bind) and done
            await self._guarded(self._keep_only)
            if self._all_judge(manifest):
                await self.former.settle(manifest)
            done = done and manifest is self.accepted.manifest
        self.applied.set()
        self._beat_now.ring()
        return done

    async def _keep_only(self) -> None:
        named = frozenset(_named(self.accepted, self.applier))
        await self.parts.blocking(self.parts.store.keep_only, named)

    def _all_judge(self, manifest: HostManifest) -> bool:
        """Whether each service holds what can be held of it."""
        known = self.applier.book.services
        wanted = (known.get(s.service_id) for s in manifest.services if s.active is not None)
        return all(h is not None and (h.active is not None or h.refused is not None) for h in wanted)

    async def bind(self) -> None:
        """The tree may have changed."""
        if self.panic is None and self._open:
            await self._bind(wait=False)

    async def tick(self) -> None:
        """All that a second brings: panic, trials that ended, denied flows, counters."""
        await self.look()
        await self.collect()
        await self.count()

    async def look(self) -> None:
        """Once a second, so it costs next to nothing: panic, trials that ended, and the tree where the kernel
        does not tell of it."""
        await self.heed_panic()
        if self.panic is not None or not self._open:
            return
        now = self.parts.datapath.boot_ns()
        if any(now >= holding.confirm_by_ns for holding in self.applier.on_trial()):
            await self.converge()
        if self.parts.datapath.denied_fd is None:
            await self.collect()

    async def collect(self) -> None:
        """Take the denied flows that wait."""
        if self.panic is None and self._open:
            denied = await self.reporter.collect()
            if self.telemetry is not None:
                await self.telemetry.denied(denied)

    async def count(self) -> None:
        """Read the counters of verdicts."""
        if self.panic is None and self._open:
            await self.reporter.count({i: h.slot for i, h in self.applier.book.services.items()})

    async def drift(self) -> None:
        """Read back everything, and repair what differs."""
        await self.heed_panic(thorough=True)
        if self.panic is not None or not self._open:
            return
        async with self._turn:
            mended = await self.parts.blocking(self.parts.datapath.mend)
            for what in mended:
                self.reporter.loss["drift"] += 1
                self.parts.log(f"drift: somebody took away or changed {what}; put back")
            found = await self.applier.drift()
            bound = await self.parts.blocking(self.parts.datapath.bindings)
            if self.binder.differs(bound):
                self.reporter.loss["drift"] += 1
                self.parts.log("drift: somebody changed which cgroup is whose; bound again")
                await self._bind(anew=True)
        await self.heed_panic(thorough=bool(mended))  # it may have come while programs were attached again
        if found or self.former.waits:
            await self.converge()

    async def refresh(self) -> None:
        """Look at the last values: after a connect, and every minute."""
        host, bus = self.parts.host_id, self.parts.bus
        await self._guarded(self.reporter.compare_heartbeats)
        manifest = await bus.last(subjects.desired(host))
        if manifest is not None:
            await self.receive(manifest.payload)
        if self.applier.on_trial():
            confirm = await bus.last(subjects.confirm(host))
            if confirm is not None:
                await self.confirm(confirm.payload)

    async def reset_clock(self) -> tuple[int, int]:
        """Believe the wall clock again although a later time was once believed: (that time, now).

        The serial stays, so nothing older comes back. Leases end when they should by this clock.
        """
        wall = int(self.parts.wall())
        async with self._receiving:
            known, self.accepted = self.accepted, remember.with_clock_reset(self.accepted, wall)
            await self.parts.blocking(remember.write_accepted, self.parts.store, self.accepted)
            await self.parts.blocking(remember.write_clock, self.parts.store, wall)
            self._last_message = b""
        async with self._turn:
            if self.panic is None and self._open:
                await self.applier.retime(self.accepted.trusted)
        await self._guarded(self._refresh_quietly)
        self._wake.set()
        return known.trusted.clock_floor, wall

    def heartbeat(self) -> Heartbeat:
        """What the next heartbeat says."""
        return self.reporter.heartbeat(
            self.accepted.manifest,
            self.applier.book.services,
            self.applier.failures,
            self.applier.drifted,
            self.accepted.trusted.serial,
            self.panic is not None,
        )

    async def beat(self) -> None:
        """Send a heartbeat, and the acks of trials again: whoever missed one answers this one."""
        await self._guarded(self.count)
        await self.reporter.beat(self.heartbeat())
        self.applier.drifted.clear()
        for holding in self.applier.on_trial():
            await self.reporter.ack(holding, self.parts.datapath.boot_ns())

    # Life

    async def run(self, stop: asyncio.Event, ready: Callable[[], None] = lambda: None) -> None:
        """Live until `stop`. `ready` is called once the last accepted manifest is in force."""
        parts, settings = self.parts, self.parts.settings
        told = parts.cgroups.on_change(self._tree_changed.set)  # what comes after the first reading is told
        try:
            await self.start()
        except BaseException:
            parts.cgroups.close()
            raise
        self._scanned = time.monotonic()
        ready()
        host = parts.host_id
        watches = [
            await parts.bus.watch(subjects.desired(host), self._heard_manifest),
            await parts.bus.watch(subjects.confirm(host), self._heard_confirm),
        ]
        parts.bus.on_connect(self._connected)
        if not told:
            self._scan_seconds = min(settings.scan_seconds, SCAN_SECONDS)
        tasks = [
            self.reporter.send(),
            self._converging(),
            self._binding(),
            self._reading(),
            self._beating(),
            self._denying(),
            self._every(min(settings.tick_seconds, SCAN_SECONDS), self._look_around),
            self._every(settings.drift_seconds, self.drift),
            self._every(settings.refresh_seconds, self._refresh_quietly, first=True, jitter=0.5),
            self._every(settings.addresses_seconds, self._read_addresses, first=True),
            self.addresses.listen(),
            self.addresses.look_again(self._read_addresses),
            self._every(CLOCK_SECONDS, self._persist_clock),
            *(self.telemetry.tasks() if self.telemetry is not None else ()),
        ]
        running = [asyncio.create_task(task) for task in tasks]
        ended = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait({ended, *running}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ended}:
                task.result()
        finally:
            await end(ended, *running)
            if self._rescanning is not None:
                self._rescanning.cancel()
            for watch in watches:
                await watch.close()
            self._denied.close()
            parts.cgroups.close()

    async def _look_around(self) -> None:
        await self._guarded(self.look)
        # a panic does not wait for a large tree
        if self._is_scan_due() and (self._rescanning is None or self._rescanning.done()):
            self._rescanning = asyncio.create_task(self._guarded(self.rescan))

    async def rescan(self) -> None:
        """Read the tree in case an event was missed: now and then, or always where not all is told."""
        if self.parts.cgroups.blind:  # who binds reads the tree
            self._tree_changed.set()
        elif self._is_scan_due():
            self._scanned = time.monotonic()
            if await self.parts.cgroups.rescan() or not self._tree_bound:
                self._tree_changed.set()

    def _is_scan_due(self) -> bool:
        return self.parts.cgroups.blind or time.monotonic() - self._scanned >= self._scan_seconds

    async def _heard_manifest(self, message: Message) -> None:
        await self.receive(message.payload)

    async def _heard_confirm(self, message: Message) -> None:
        await self.confirm(message.payload)

    async def _connected(self) -> None:
        if self.telemetry is not None:
            self.telemetry.connected()
        await self.refresh()
        self._wake.set()
        self._beat_now.ring()

    async def _refresh_quietly(self) -> None:
        if self.parts.bus.connected:
            await self.refresh()
            self._wake.set()

    async def _converging(self) -> None:
        pause = FIRST_RETRY
        while True:
            await self._wake.wait()
            self._wake.clear()
            if await self._guarded(self.converge):
                pause = FIRST_RETRY
                continue
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                self._wake.set()
            pause = min(pause * 2, LAST_RETRY)

    async def _binding(self) -> None:
        while True:
            await self._tree_changed.wait()
            self._tree_changed.clear()
            self._tree_bound = await self._guarded(self.bind)

    async def _beating(self) -> None:
        while True:
            await self.beat()
            await self._beat_now.heard(self.parts.settings.heartbeat_seconds)

    async def _denying(self) -> None:
        """Take denied flows when the kernel says that some wait, but not more often than each tick."""
        while True:
            await self._denied_waits.heard()
            await self._guarded(self.collect)
            await asyncio.sleep(self.parts.settings.tick_seconds)
            self._hear_denied()

    def _hear_denied(self, *, anew: bool = False) -> None:
        """Be woken by the next denied flow."""
        with suppress(AegisError):  # closed by a panic: what opens it again arms this again
            self._denied.arm(self.parts.datapath.denied_fd, anew=anew)

    async def _every(
        self,
        seconds: float,
        step: Callable[[], Awaitable[None]],
        *,
        first: bool = False,
        jitter: float = 0.0,
    ) -> None:
        if first:
            await self._guarded(step)
        while True:
            await asyncio.sleep(seconds * (1 + jitter * (2 * random.random() - 1)))
            await self._guarded(step)

    async def _guarded(self, step: Callable[[], Awaitable[bool | None]]) -> bool:
        """A step whose failure is said and does not end the agent; whether it did all."""
        try:
            return await step() is not False
        except AegisError as error:
            self.parts.log(f"{getattr(step, '__name__', 'step')}: {error}")
            return False
        except Exception as error:  # noqa: BLE001 - a loop's edge: an agent that dies enforces nothing new
            self.parts.log(f"{getattr(step, '__name__', 'step')}: {type(error).__name__}: {error}")
            return False

    async def _open_datapath(self) -> bool:
        """Whether it is open; a panic may come while programs are being attached."""
        if self._open:
            return True
        parts = self.parts
        await parts.blocking(parts.datapath.open)
        words = await parts.blocking(self.flags.words, True)
        if (flag := self.flags.standing(also=words)) is not None:  # it came while we attached
            self.panic = flag
            await parts.blocking(parts.datapath.panic)
            return False
        await parts.blocking(parts.datapath.failsafe, parts.settings.failsafe, parts.cgroups.own)
        await self.applier.recover(await parts.blocking(parts.datapath.held))
        await parts.blocking(parts.trim)
        self._open = True
        self._hear_denied(anew=True)
        return True

    async def _bind(self, *, anew: bool = False, wait: bool = True) -> None:
        """Bind what is selected; unless `wait`, the addresses of what is bound are read a little later."""
        async with self._bind_turn:
            changed = await self.binder.bind(self.applier.book.services, anew=anew)
            self.reporter.bound(self.binder.cgroups, self.binder.unbound, self.binder.conflicts)
        if changed:
            self.addresses.changed()
        if changed and wait:
            await self.addresses.refresh()
        elif changed:
            self._bound_anew.set()

    async def _reading(self) -> None:
        """A restart unbinds and binds: the second must not wait until the first one's addresses are read."""
        while True:
            await self._bound_anew.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self._bound_anew.clear()
            await self._guarded(self._read_addresses)

    async def heed_panic(self, *, thorough: bool = False) -> None:
        """Look at the panic flags now, and act; `thorough` also looks for a marker in other file systems."""
        flag = self.flags.standing()
        if (thorough or self.panic is not None) and flag is None:  # beside the loop: there may be many maps
            words = await self.parts.blocking(self.flags.words, True)
            flag = self.flags.standing(also=words)
        if (flag is None) == (self.panic is None) and (flag is None or self._detached):
            return
        self.panic = flag
        if flag is not None:
            await self._take_down(flag)
        if not await self._guarded(self.converge):
            self._wake.set()
        self._tell_change()

    async def begin_panic(self, panic: Panic) -> list[str]:
        """End enforcement now, then write it down; what could not be written, in words. Nothing happens where
        this panic was ended before it came here."""
        if (flag := self.flags.told(self.panic or panic)) is None:
            self.parts.log(f"panic: not begun, since a resume ended it before ({panic.why})")
            return []
        self.panic = flag
        await self._take_down(flag)
        async with self._panic_turn:  # what is ended now is not written
            unwritten = await self.parts.blocking(self.flags.keep, flag)
        for text in unwritten:
            self.parts.log(f"panic: not written to {text}")
        await self._guarded(self.converge)
        self._tell_change()
        return unwritten

    async def end_panic(self, names: Collection[float] = (), until: float = inf) -> list[str]:
        """End the panics that `Flags.end` says; the media from which one could not be deleted, in words."""
        async with self._panic_turn:
            stuck = await self.parts.blocking(self.flags.end, names, until)
        for text in stuck:
            self.parts.log(f"resume: the panic could not be deleted from {text}")
        await self.heed_panic(thorough=True)
        return stuck

    def _tell_change(self) -> None:
        self._beat_now.ring()
        if self.telemetry is not None:  # its sources lie beside the datapath's
            self.telemetry.look_again()

    async def _take_down(self, flag: Panic) -> None:
        """Detach before `_turn` is free, which may be held while a content is fetched: steps that are under
        way fail once the datapath is closed. What fails here is tried again at the next look."""
        await self._guarded(self._detach)
        async with self._turn:
            self._open = False
            self._detached = await self._guarded(self._detach)
            self.binder.reset()
            await self.applier.panicked()
        if self._detached:
            self.parts.log(f"panic: nothing is enforced on this host ({flag.why})")

    async def _detach(self) -> None:
        await self.parts.blocking(self.parts.datapath.panic)

    async def _read_addresses(self) -> None:
        if self.panic is None and self._open:
            await self.addresses.refresh()


def _named(accepted: Accepted, applier: Applier) -> set[str]:
    """Digests that may be needed again."""
    found: set[str] = set()
    for service in accepted.manifest.services if accepted.manifest else ():
        found |= {ref.digest for ref in (service.active, service.candidate) if ref is not None}
    for holding in applier.book.services.values():
        found |= {one.digest for one in (holding.active, holding.good) if one is not None}
    return found
