"""What the agent says: signed acks and nacks that are not lost, heartbeats, and the ring of denied flows."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from aegisflux.agent.parts import DENIED_KEPT, Parts
from aegisflux.agent.troubles import Troubles
from aegisflux.domain.converge import SECOND, Holding
from aegisflux.domain.errors import BROKEN, AegisError, Refused, Unavailable
from aegisflux.domain.manifest import (
    Ack,
    Answer,
    Heartbeat,
    HostManifest,
    HostState,
    Nack,
    NackReason,
    ServiceReport,
)
from aegisflux.domain.own_addresses import MOST_TOLD, told
from aegisflux.domain.room import listed
from aegisflux.domain.runs import Run
from aegisflux.domain.tables import TABLES_FORMAT
from aegisflux.domain.text import first_of
from aegisflux.domain.trust import Nacked, NotOurs, Signed
from aegisflux.ports.datapath import DeniedFlow
from aegisflux.wire import envelope, subjects

OUTBOX: Final = 4096
NACKS_KEPT: Final = 256
DETAIL_CHARS: Final = 1000
PATHS_EACH, PATHS_IN_ALL = 64, 2048
SKIPPED_SHOWN, PATH_CHARS, NAMED = 8, 512, 8
HEARTBEAT_BYTES, LISTS_BYTES = 1 << 20, 1 << 19  # a heartbeat is one message; all hosts' are stored
SPARE_BYTES: Final = 16_384  # for its envelope, and for headers where it becomes a dead letter
CLASH_SECONDS: Final = 180
UNPROVEN: Final = "unproven"
UNPROVEN_TEXT: Final = (
    "messages are dropped that no key of this fleet signed for this host (loss: dropped.*): somebody who can "
    "write to the bus forges them, or this host has another key set than its control plane"
)
FEATURES: Final = ("candidate", "commit_confirm", "probes", "panic")

Failures = dict[int, tuple[NackReason, str]]


class Reporter:
    """`cgroups`, `conflicts` and `verdicts` by service are for the next heartbeat; `serial` is accepted,
    `lost` says what telemetry lost."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._outbox: deque[tuple[int, bytes]] = deque()
        self._filled = asyncio.Event()
        self._nacked: deque[tuple[object, ...]] = deque(maxlen=NACKS_KEPT)
        self._said = 0
        self._said_of: dict[int, str] = {}
        self._unbound = 0
        self.loss: Counter[str] = Counter()
        self.serial = 0
        self.cgroups: dict[int, tuple[str, ...]] = {}
        self.conflicts: dict[int, tuple[str, ...]] = {}
        self.verdicts: dict[int, dict[str, int]] = {}
        self.denied: deque[tuple[int, DeniedFlow]] = deque(maxlen=DENIED_KEPT)
        self._denied_count = 0
        self.lost: Callable[[], Mapping[str, int]] = dict
        self.skipped: Callable[[], Sequence[str]] = tuple
        self.troubles = Troubles(parts.log)
        self.started = parts.datapath.boot_ns()
        self._beating = False
        self._clash_ns = 0

    def bound(
        self,
        cgroups: dict[int, tuple[str, ...]],
        unbound: Mapping[int, int],
        conflicts: dict[int, tuple[str, ...]],
    ) -> None:
        """Take what is bound, how much is selected and not bound, and why, by service."""
        self.cgroups, self.conflicts, self._unbound = cgroups, conflicts, sum(unbound.values())
        if not unbound:
            self.troubles.end("cgroups")
            return
        which = first_of([str(number) for number in sorted(unbound)], NAMED)
        self.troubles.begin(
            "cgroups",
            f"not every cgroup that is selected is bound, of service {which}: agent status says why",
        )

    async def ack(self, holding: Holding, boot_ns: int) -> None:
        """What the kernel holds of a service now."""
        active, wall = holding.active, self._parts.wall()
        assert active is not None
        deadline = int(wall + (active.deadline_ns - boot_ns) / SECOND)
        trial = ", waits to be confirmed" if holding.confirm_by_ns else ""
        trial += "" if self.cgroups.get(holding.service_id) else ", and matches nothing on this host"
        said = f"service {holding.service_id}: version {active.version} is in the kernel{trial}"
        if said != self._said_of.get(holding.service_id):
            self._said_of[holding.service_id] = said
            left = round(deadline - wall)
            self._parts.log(
                f"{said}; its lease " + (f"ends in {left} s" if left > 0 else f"ended {-left} s ago")
            )
        self._answer(
            Ack(
                self._parts.host_id,
                max(active.serial, self.serial),
                holding.service_id,
                active.version,
                active.digest,
                active.tables_digest,
                deadline,
                active.applied_at,
                holding.confirm_by_ns != 0,
                bool(self.cgroups.get(holding.service_id)),
            )
        )

    async def nack(
        self,
        reason: NackReason,
        detail: str,
        serial: int = 0,
        service_id: int | None = None,
        version: int | None = None,
        digest: str | None = None,
    ) -> None:
        """Why something was not applied; the same refusal of the same thing is said once."""
        key = (reason, serial, service_id, version, digest, detail if serial == 0 else "")
        if key in self._nacked:
            return
        self._nacked.append(key)
        self._parts.log(f"nack {reason}: {detail}")
        host, wall = self._parts.host_id, self._parts.wall()
        self._answer(Nack(host, reason, detail[:DETAIL_CHARS], serial, service_id, version, digest, wall))

    async def refuse(self, error: Nacked, about: str = "") -> None:
        """Say why a message is not believed. One that nothing proves to be for this host is only counted."""
        if isinstance(error, NotOurs):
            self.loss[f"dropped.{error.reason}"] += 1
            self.troubles.begin(UNPROVEN, UNPROVEN_TEXT)
            return
        await self.nack(error.reason, about + error.detail, error.serial)

    def _answer(self, answer: Answer) -> None:
        host, sign = self._parts.host_id, self._parts.sign
        sealed = envelope.seal(envelope.ANSWER, msgspec.msgpack.encode(answer), host, sign)
        if len(self._outbox) == OUTBOX:
            self._outbox.popleft()
            self.loss["answers"] += 1
        payload = envelope.encode(sealed)
        self._said += 1
        self._outbox.append((self._said, payload))
        self._filled.set()

    async def send(self) -> None:
        """Send answers for ever, in order; one that the bus cannot take now is sent later."""
        while True:
            await self._filled.wait()
            while self._outbox:
                number, payload = self._outbox[0]
                try:
                    await self._parts.bus.publish(subjects.acks(self._parts.host_id), payload)
                except Unavailable:
                    await asyncio.sleep(0.2)
                    continue
                except Refused as error:
                    self.loss["answers"] += 1
                    self._parts.log(f"an answer was refused: {error}")
                if self._outbox and self._outbox[0][0] == number:
                    self._outbox.popleft()
            self._filled.clear()

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Publish a heartbeat; one that cannot be sent now is not sent."""
        host = self._parts.host_id
        body = msgspec.msgpack.encode(heartbeat)
        sealed = envelope.encode(envelope.seal(envelope.HEARTBEAT, body, host, self._parts.sign))
        try:
            await self._parts.bus.publish(subjects.heartbeat(host), sealed)
            self._beating = True
        except (Unavailable, Refused):
            self.loss["heartbeats"] += 1
            self._beating = False

    async def compare_heartbeats(self) -> None:
        """Look whose heartbeat is the last one of this identity. Where it is none of ours although ours was
        stored, another agent is alive with our key: this machine was cloned."""
        message = (
            await self._parts.bus.last(subjects.heartbeat(self._parts.host_id)) if self._beating else None
        )
        if message is None:
            return
        try:
            sealed = envelope.decode_envelope(message.payload, HEARTBEAT_BYTES)
            signed = envelope.opened(sealed, envelope.HEARTBEAT)
            if not self._is_mine(signed):
                return
            last = msgspec.msgpack.decode(signed.payload, type=Heartbeat)
        except (Nacked, *BROKEN):
            return
        mine, other = Run(self._parts.boot_id, self.started), Run(last.boot_id, last.started)
        now = self._parts.datapath.boot_ns()
        if other == mine or not last.started:
            if now - self._clash_ns > CLASH_SECONDS * SECOND:  # of two, each is the last one now and then
                self.troubles.end("identity")
        else:
            self._clash_ns = now
            self.troubles.begin(
                "identity",
                f"another agent answers as {self._parts.host_id} ({other}; this one: {mine}): this machine "
                "was cloned; both enforce; release one and enrol it under a name of its own",
            )

    def _is_mine(self, signed: Signed) -> bool:
        """Whether this host's key signed it: an Ed25519 signature of the same bytes is always the same."""
        own = self._parts.sign(signed.signed_bytes)
        return any(signature == own for _, signature in signed.signatures)

    async def collect(self) -> Sequence[DeniedFlow]:
        """Move denied flows into the ring, and give them."""
        drained = await self._parts.blocking(self._parts.datapath.drain_denied, DENIED_KEPT)
        for flow in drained:
            self._denied_count += 1
            self.denied.append((self._denied_count, flow))
        return drained

    async def count(self, slots: Mapping[int, int]) -> None:
        """Read the verdict counters; `slots` by service."""
        datapath = self._parts.datapath
        for service_id, slot in slots.items():
            try:
                counted = await self._parts.blocking(datapath.counters, slot)
            except (AegisError, OSError) as error:
                self._parts.log(f"service {service_id}: its verdicts cannot be counted: {error}")
                self.loss["counters"] += 1
                continue
            self.verdicts[service_id] = {name: count for name, count in counted.items() if count}

    def heartbeat(
        self,
        manifest: HostManifest | None,
        holdings: dict[int, Holding],
        failures: Failures,
        drifted: set[int],
        serial: int,
        panicked: bool,
    ) -> Heartbeat:
        """The state of this host in one value."""
        parts, skipped = self._parts, self.skipped()
        addresses, untold = told(parts.datapath.addresses())
        services = manifest.services if manifest else ()
        wanted = {s.service_id: s.active.digest for s in services if s.active is not None}
        boot_ns = parts.datapath.boot_ns()
        reports = tuple(
            self._report(holding, wanted.get(i), i in failures, i in drifted, boot_ns, panicked)
            for i, holding in sorted(holdings.items())
        )
        beat = Heartbeat(
            parts.host_id,
            parts.boot_id,
            parts.version,
            (TABLES_FORMAT,),
            FEATURES,
            serial,
            reports,
            parts.wall(),
            panicked,
            parts.datapath.name,
            {**self.loss, **self._refused_rules(), **self._unknown(len(skipped), untold), **self.lost()},
            parts.settings.heartbeat_seconds,
            addresses,
            tuple(path[:PATH_CHARS] for path in skipped[:SKIPPED_SHOWN]),
            (*self.troubles.texts(), *_cut_text(untold)),
            self.started,
        )
        return self._with_lists(beat)

    def _with_lists(self, beat: Heartbeat) -> Heartbeat:
        """With as many cgroups and conflicts as a message has room for, in bytes; the others are counted."""
        known = [report.service_id for report in beat.services]
        lists = {("cgroups", i): self.cgroups.get(i, ()) for i in known}
        lists |= {("conflicts", i): self.conflicts.get(i, ()) for i in known}
        room = min(LISTS_BYTES, HEARTBEAT_BYTES - SPARE_BYTES - len(msgspec.msgpack.encode(beat)))
        found = listed(lists, min(PATHS_EACH, PATHS_IN_ALL // max(1, len(known))), room)
        cut = Counter[str]()
        for (what, i), lines in lists.items():
            cut[f"{what}.cut"] += len(lines) - len(found[what, i])
        reports = tuple(
            replace(
                one, cgroups=found["cgroups", one.service_id], conflicts=found["conflicts", one.service_id]
            )
            for one in beat.services
        )
        return replace(beat, services=reports, loss={**beat.loss, **{k: n for k, n in cut.items() if n}})

    def _refused_rules(self) -> dict[str, int]:
        refused = len(self._parts.settings.failsafe_refused)
        return {"failsafe.refused": refused} if refused else {}

    def _unknown(self, skipped: int, untold: int) -> dict[str, int]:
        """What is not in the lists of a heartbeat now, or not known at all."""
        namespaces = self._parts.datapath.namespaces_unknown()
        found = {
            "skipped_cgroups": skipped,
            "unbound_cgroups": self._unbound,
            "own_addresses.cut": untold,
            "own_addresses.unknown": namespaces,
        }
        return {name: count for name, count in found.items() if count}

    def _report(
        self,
        holding: Holding,
        wanted: str | None,
        failed: bool,
        drifted: bool,
        boot_ns: int,
        panicked: bool,
    ) -> ServiceReport:
        active, i = holding.active, holding.service_id
        report = ServiceReport(
            i,
            state_of(holding, wanted, failed, boot_ns, panicked, bool(self.cgroups.get(i))),
            drift=drifted,
            verdicts=self.verdicts.get(i, {}),
            candidate=holding.candidate.digest if holding.candidate else None,
        )
        if active is None:
            return report
        return replace(
            report,
            version=active.version,
            digest=active.digest,
            tables_digest=active.tables_digest,
            deadline=int(self._parts.wall() + (active.deadline_ns - boot_ns) / SECOND),
        )


def _cut_text(untold: int) -> tuple[str, ...]:
    """For people who wonder why a peer's rules lack an address of this host."""
    if not untold:
        return ()
    return (f"own addresses: others are told of {MOST_TOLD}, the likeliest, and not of {untold} more",)


def state_of(
    holding: Holding, wanted: str | None, failed: bool, boot_ns: int, panicked: bool, matches: bool
) -> HostState:
    """The word for a service: what stands in the way comes before what is in force. `matches`: whether any
    cgroup is bound to it."""
    active = holding.active
    if panicked:
        return "panicked"
    if wanted is not None and (active is None or active.digest != wanted):
        if holding.refused is not None and holding.refused.digest == wanted:
            return "reverted"
        return "nacked" if failed else "pending"
    if active is None:
        return "pending"
    if boot_ns >= active.deadline_ns:
        return "expired"
    if not matches:
        return "matches nothing"
    return "observing" if active.mode == "observe" else "in_force"
