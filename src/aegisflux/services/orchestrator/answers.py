"""What hosts say: acks, nacks and heartbeats, believed only when the host's own key signed them.

A confirmation goes out when a host acked what it waits to have confirmed and a heartbeat from after the
flip says the same.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import BROKEN, Refused
from aegisflux.domain.manifest import (
    MAX_SERVICES,
    Ack,
    Answer,
    Confirm,
    Heartbeat,
    HostState,
    Nack,
    ServiceReport,
)
from aegisflux.domain.own_addresses import believed, unbelieved_text
from aegisflux.domain.runs import Run, Runs, answered
from aegisflux.domain.shares import MAX_NAMES, Share, Shares
from aegisflux.domain.storable import check_storable
from aegisflux.domain.text import printable
from aegisflux.domain.trust import Signed
from aegisflux.ports.bus import Message
from aegisflux.ports.store import Row
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.again import again
from aegisflux.runtime.letters import letter_room
from aegisflux.runtime.over_share import Refusals
from aegisflux.services.orchestrator.core import CLASH_SECONDS, Core, Who, clash_text
from aegisflux.services.orchestrator.keys import verified
from aegisflux.wire import envelope, subjects
from aegisflux.wire.token import b64

T = TypeVar("T")
MAX_BYTES = 1 << 20
CONFIRM_AGAIN_SECONDS = 120
SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.1, 300.0
AT_ONCE = MAX_LINES = 64
# What a host says is bounded by what it costs us. An agent looks at its addresses every ten seconds, and each
# change makes others read all of them anew; a Nack of a whole manifest, which is said once for each manifest,
# is written to each service of the host.
ADDRESSES = Share(rate=0.1, burst=8.0)
WHOLE_NACKS = Share(rate=0.1, burst=8.0)
log = logs.get("answers")


class Answers:
    """Handlers of the ack and heartbeat consumers. What is off becomes a dead letter; the rest is stored in
    one go.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._cut: set[str] = set()
        self._moves, self._whole = Shares(ADDRESSES), Shares(WHOLE_NACKS)
        self._over = Refusals("answers", log.warning, metrics.count_over_share)
        self._addresses: dict[str, str] = {}
        self._letters = letter_room("orchestrator")

    async def on_acks(self, messages: Sequence[Message]) -> None:
        """Store a batch of acks and nacks."""
        good = await self._believed(messages, "ACKS", envelope.ANSWER, Answer)
        acks = [answer for answer in good if isinstance(answer, Ack)]
        nacks = [answer for answer in good if isinstance(answer, Nack)]
        if acks:
            await self._store_acks(acks)
        if nacks:
            await self._store_nacks(nacks)
        if any(ack.awaits_confirm for ack in acks):
            await self.confirm({ack.host_id for ack in acks if ack.awaits_confirm})

    async def on_heartbeats(self, messages: Sequence[Message]) -> None:
        """Store a batch of heartbeats: the newest of each host, as the server's order says. The others are
        not even read, which costs most of a heartbeat."""
        last = {message.subject: message for message in messages}
        metrics.heartbeats_replaced.inc(len(messages) - len(last))
        good = await self._believed(list(last.values()), "HEARTBEATS", envelope.HEARTBEAT, Heartbeat)
        newest = {beat.host_id: beat for beat in good}
        if not newest:
            return
        beats = [self._bounded(beat) for beat in newest.values()]
        await self._store_heartbeats(good, beats)
        await self._store_reports(beats)
        metrics.heartbeats.inc(len(good))
        await self.confirm(set(newest))

    def _bounded(self, beat: Heartbeat) -> Heartbeat:
        """The heartbeat with the addresses that others are told of, and lists of bounded length, as it is
        kept. What of the addresses is left out is a trouble of that host."""
        found = believed(beat.addresses)
        trouble, host = unbelieved_text(found), beat.host_id
        if trouble and host not in self._cut:
            log.warning("addresses of a host are left out", host_id=host, detail=trouble)
        (self._cut.add if trouble else self._cut.discard)(host)
        troubles = (trouble, *beat.troubles) if trouble else beat.troubles
        services = tuple(map(_with_few_names, beat.services[:MAX_SERVICES]))
        return msgspec.structs.replace(beat, addresses=found.addresses, troubles=troubles, services=services)

    @again
    async def _store_heartbeats(self, good: Sequence[Heartbeat], newest: Sequence[Heartbeat]) -> None:
        """Store the newest of each host with the processes that all of them are of: a batch that is delivered
        again is compared with what was stored of it. Two live agents of one host are audited with it."""
        core, now = self._core, self._core.clock.now()
        known = await self._runs({beat.host_id for beat in newest})
        runs, clashes = dict(known), list[str]()
        for beat in (one for one in good if one.started):
            before = runs.get(beat.host_id, Runs())
            after = answered(before, Run(beat.boot_id, beat.started), beat.clock, now)
            runs[beat.host_id] = after
            if after.clashed_at != before.clashed_at:
                clashes.append(beat.host_id)
        addresses = [self._settled(beat) for beat in newest]
        values = (*_columns(newest), addresses, now, [_packed(runs.get(beat.host_id)) for beat in newest])
        fresh = [h for h in dict.fromkeys(clashes) if not known.get(h, Runs()).clashes(now, CLASH_SECONDS)]
        if not fresh:
            await core.store.run("store_heartbeats", *values)
        else:
            async with core.store.change() as db:
                await db.run("store_heartbeats", *values)
                for host in fresh:
                    await db.audit(Who().did("host.clash", f"host/{host}", reason=clash_text(runs[host])))
        core.runs.update(runs)
        metrics.identity_clashes.inc(len(clashes))
        for host in fresh:
            log.error("two agents with one identity", host_id=host, detail=clash_text(runs[host]))

    def _settled(self, beat: Heartbeat) -> str:
        """The addresses by lines; "" leaves those that are known: of a host that changes them too often."""
        addresses, host = "\n".join(beat.addresses), beat.host_id
        if self._addresses.get(host) == addresses:
            return addresses
        if not self._moves.take(host, 1.0, time.monotonic()):
            self._over.note(host)
            return ""
        if len(self._addresses) >= MAX_NAMES:
            self._addresses.clear()
        self._addresses[host] = addresses
        return addresses

    async def _runs(self, hosts: set[str]) -> dict[str, Runs]:
        found = {}
        for row in await self._core.store.rows("runs_of", list(hosts)):
            try:
                found[row["host_id"]] = msgspec.msgpack.decode(row["runs"], type=Runs)
            except BROKEN as error:  # another version of ours stored them: they are learned again
                log.warning("stored runs cannot be read", host_id=row["host_id"], error=in_words(error, Runs))
        return found

    async def confirm(self, hosts: set[str]) -> None:
        """Send what is due among these hosts."""
        store = self._core.store
        waiting = await store.rows("awaiting", list(hosts))
        if not waiting:
            return
        beats = await self._heartbeats({row["host_id"] for row in waiting})
        due = [row for row in waiting if _agrees(row, beats.get(row["host_id"]))]
        await self._send_confirms(due)
        if due:
            now = self._core.clock.now()
            await store.run("confirmed", [r["host_id"] for r in due], [r["service_id"] for r in due], now)

    async def confirm_again(self) -> None:
        """After a reconnect: what was confirmed lately may have been lost with the bus."""
        since = self._core.clock.now() - CONFIRM_AGAIN_SECONDS
        await self._send_confirms(await self._core.store.rows("confirmed_lately", since))

    async def _send_confirms(self, rows: Sequence[Row]) -> None:
        await self._at_once(self._send_confirm(row) for row in rows)

    async def _at_once(self, calls: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Many at once: one after the other would cost a round trip each."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one(call: Coroutine[Any, Any, None]) -> None:
            async with room:
                await call

        await asyncio.gather(*map(one, calls))

    async def _send_confirm(self, row: Row) -> None:
        host = row["host_id"]
        said = Confirm(host, row["ack_serial"], row["service_id"], row["ack_version"], row["ack_digest"])
        sealed = self._core.keys.seal(envelope.CONFIRM, msgspec.msgpack.encode(said))
        msg_id = f"confirm:{host}:{said.serial}:{said.service_id}:{said.version}:{self._core.clock.now()}"
        await self._core.bus.publish(subjects.confirm(host), envelope.encode(sealed), msg_id=msg_id)
        metrics.confirms.inc()

    async def _heartbeats(self, hosts: set[str]) -> dict[str, Heartbeat]:
        rows = await self._core.store.rows("heartbeats_of", list(hosts))
        found = {row["host_id"]: heartbeat_of(row) for row in rows}
        return {host: beat for host, beat in found.items() if beat is not None}

    async def _believed(self, messages: Sequence[Message], stream: str, kind: str, type_: Any) -> list[Any]:
        good, bad = [], []
        for message in messages:
            try:
                good.append(await self._read(message, kind, type_))
            except Refused as error:
                bad.append((message, str(error)))
        await self._at_once(self._bury(message, stream, reason) for message, reason in bad)
        return good

    async def _read(self, message: Message, kind: str, type_: Any) -> Any:
        host = subjects.host_of(message.subject)
        sealed = envelope.opened(envelope.decode_envelope(message.payload, MAX_BYTES), kind)
        public = await self._key_of(host)
        if public is None:
            raise Refused(f"host {host} is not enrolled")
        if not self._signed(sealed, host, public):
            raise Refused(f"not signed with the key of host {host}")
        try:
            said = msgspec.msgpack.decode(sealed.payload, type=type_)
        except BROKEN as error:
            raise Refused(f"not as the schema says: {in_words(error, type_)}") from None
        if said.host_id != host:
            raise Refused(f"host {host} speaks for {said.host_id}")
        check_storable(said)
        return said

    def _signed(self, sealed: Signed, host: str, public: bytes) -> bool:
        return any(
            keyid == host and verified(public, sealed.signed_bytes, sig) for keyid, sig in sealed.signatures
        )

    async def _key_of(self, host: str) -> bytes | None:
        keys = self._core.host_keys
        if host not in keys:
            rows = await self._core.store.rows("host_keys")
            keys.clear()
            released = self._core.register.rights.released_host
            enrolled = [(row["host_id"], row["public_key"]) for row in rows if row["public_key"]]
            keys.update((name, public) for name, public in enrolled if not released(b64(public)))
        return keys.get(host)

    async def _bury(self, message: Message, stream: str, reason: str) -> None:
        metrics.dead_letters.inc()
        if not self._letters.take(message.subject.rpartition(".")[2], len(message.payload)):
            return
        log.warning("dead letter", subject=message.subject, reason=reason)
        headers = {"Aegisflux-Reason": " ".join(reason.split())[:500], "Aegisflux-Subject": message.subject}
        msg_id = f"dead:{stream}:orchestrator:{message.sequence}"
        await self._core.bus.publish(subjects.dead(stream), message.payload, msg_id=msg_id, headers=headers)

    async def _store_acks(self, acks: Sequence[Ack]) -> None:
        newest: dict[tuple[str, int], Ack] = {}
        for ack in acks:
            known = newest.get((ack.host_id, ack.service_id))
            if known is None or known.serial <= ack.serial:
                newest[ack.host_id, ack.service_id] = ack
        rows = list(newest.values())
        await self._core.store.run(
            "store_acks",
            [a.host_id for a in rows],
            [a.service_id for a in rows],
            ["in_force" if a.matches else "matches nothing" for a in rows],
            [a.version for a in rows],
            [a.digest for a in rows],
            [a.tables_digest for a in rows],
            [a.deadline for a in rows],
            [a.serial for a in rows],
            [a.applied_at for a in rows],
            self._core.clock.now(),
            [a.awaits_confirm for a in rows],
        )
        metrics.acks.inc(len(acks))

    async def _store_nacks(self, nacks: Sequence[Nack]) -> None:
        newest = {(nack.host_id, nack.service_id): nack for nack in nacks}
        unique: dict[tuple[str, int], Nack] = {}
        for (host, service_id), nack in newest.items():
            if service_id is not None:
                unique[host, service_id] = nack
            elif not self._whole.take(host, 1.0, time.monotonic()):
                self._over.note(host)
            else:
                for row in await self._core.store.rows("assignments_of_host", host):
                    unique[host, row["service_id"]] = nack
        await self._core.store.run(
            "store_nacks",
            [host for host, _ in unique],
            [service_id for _, service_id in unique],
            [n.serial for n in unique.values()],
            [n.version for n in unique.values()],
            [n.reason for n in unique.values()],
            [n.detail[:1000] for n in unique.values()],
            self._core.clock.now(),
        )
        counts = Counter(nack.host_id for nack in nacks)
        for nack in {nack.host_id: nack for nack in nacks}.values():
            count, detail = counts[nack.host_id], nack.detail[:300]
            log.warning("nack", host_id=nack.host_id, reason=nack.reason, detail=detail, nacks=count)
        for reason, count in Counter(nack.reason for nack in nacks).items():
            metrics.nacks.labels(reason).inc(count)

    async def _store_reports(self, beats: Sequence[Heartbeat]) -> None:
        rows = [(beat, report) for beat in beats for report in beat.services]
        unique = {(beat.host_id, report.service_id): (beat, report) for beat, report in rows}
        if not unique:
            return
        reports: list[ServiceReport] = [report for _, report in unique.values()]
        await self._core.store.run(
            "store_reports",
            [host for host, _ in unique],
            [service_id for _, service_id in unique],
            [_state(beat, report) for beat, report in unique.values()],
            [r.version for r in reports],
            [r.digest for r in reports],
            [r.tables_digest for r in reports],
            [r.deadline for r in reports],
            [_lines(r.cgroups) for r in reports],
            [_lines(r.conflicts) for r in reports],
            [r.drift for r in reports],
            self._core.clock.now(),
            [r.candidate for r in reports],
        )


def heartbeat_of(row: Row) -> Heartbeat | None:
    """The last heartbeat of a host as the store has it; None where there is none, or one that cannot be read.

    Another version of ours may have stored it; it is logged, and the next heartbeat replaces it.
    """
    if not row["heartbeat"]:
        return None
    try:
        return msgspec.msgpack.decode(row["heartbeat"], type=Heartbeat)
    except BROKEN as error:
        log.warning(
            "a stored heartbeat cannot be read", host_id=row["host_id"], error=in_words(error, Heartbeat)
        )
        return None


def _columns(beats: Sequence[Heartbeat]) -> tuple[list[Any], ...]:
    return (
        [b.host_id for b in beats],
        [min(max(b.interval, SHORTEST_INTERVAL), LONGEST_INTERVAL) for b in beats],
        [msgspec.msgpack.encode(b) for b in beats],
        [b.serial for b in beats],
    )


def _packed(runs: Runs | None) -> bytes | None:
    return msgspec.msgpack.encode(runs) if runs else None


def _with_few_names(report: ServiceReport) -> ServiceReport:
    cgroups, conflicts = report.cgroups[:MAX_LINES], report.conflicts[:MAX_LINES]
    return msgspec.structs.replace(report, cgroups=cgroups, conflicts=conflicts)


def _lines(names: Sequence[str]) -> str:
    """Names for a column that takes them by lines; one that holds a line feed is still one name."""
    return "\n".join(printable(name) for name in names)


def _state(beat: Heartbeat, report: ServiceReport) -> HostState:
    return "panicked" if beat.panicked else report.state


def _agrees(row: Row, beat: Heartbeat | None) -> bool:
    """Whether a heartbeat reports what was acked. A digest names its version, so it can only come from after
    the flip; no clock is asked, because clocks step.
    """
    if beat is None or beat.serial < row["ack_serial"]:
        return False
    return any(
        report.service_id == row["service_id"] and report.digest == row["ack_digest"]
        for report in beat.services
    )
