"""From the store to the bus: the newest manifest of each dirty host, and announcements in the order of the
commits.

The bus is a cache: at start, after each reconnect and every five minutes what it holds is compared and
published again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256

import msgspec

from aegisflux.domain.errors import Refused
from aegisflux.domain.manifest import ActiveRef, CandidateRef, HostManifest, ServiceState
from aegisflux.domain.rollout import runs
from aegisflux.ports.store import Row
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.tasks import woken
from aegisflux.services.orchestrator.core import Core
from aegisflux.wire import envelope, subjects
from aegisflux.wire.envelope import ManifestMessage

MANIFEST_SECONDS = 30 * 86_400
BATCH, AT_ONCE = 256, 128
IDLE_SECONDS = 2.0
log = logs.get("relay")


class Relay:
    """Two loops, one for manifests and one for announcements, so that neither waits for the other."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._room = asyncio.Semaphore(AT_ONCE)
        self._one_writer = asyncio.Lock()
        self._unmade: set[str] = set()

    async def manifests(self) -> None:
        """Publish until no host is dirty, then wait for the bell."""
        while await self._next_dirty():
            pass
        await woken(self._core.manifests_due, IDLE_SECONDS)

    async def announcements(self) -> None:
        """Publish one after the other, in the order of the commits, then wait for the bell."""
        while found := await self._core.store.rows("unsent", BATCH):
            for row in found:
                try:
                    await self._core.bus.publish(subjects.MAPS, row["payload"], msg_id=row["msg_id"])
                    metrics.announcements.inc()
                except Refused as error:  # it never will be sent, and the later ones wait for it
                    log.warning("an announcement is refused, and left out", id=row["id"], error=str(error))
                await self._core.store.run("sent", row["id"])
        await woken(self._core.announcements_due, IDLE_SECONDS)

    async def compare(self) -> int:
        """Publish again what the bus does not hold as we stored it; gives the number of manifests."""
        again = 0
        rows = await self._core.store.rows("published_messages")
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            lost = [row for row, held in zip(part, await self._held(part), strict=True) if not held]
            again += await self._publish_again(lost)
        if again:
            log.info("published again", manifests=again)
        await self._compare_announcements()
        self._core.wake()
        return again

    async def _publish_again(self, lost: Sequence[Row]) -> int:
        """Of these, what is still the newest: a manifest published since then must not be overwritten."""
        if not lost:
            return 0
        async with self._one_writer:
            rows = await self._core.store.rows("built_of", [row["host_id"] for row in lost])
            newest = {row["host_id"]: row["serial"] for row in rows}
            still = [row for row in lost if newest.get(row["host_id"]) == row["serial"]]
            await self._publish([(r["host_id"], r["serial"], r["message"]) for r in still], "again")
        return len(still)

    async def _compare_announcements(self) -> None:
        newest = await self._core.store.row("newest_sent")
        if newest is None:
            return
        held = await self._core.bus.last(subjects.MAPS)
        held_id = held.headers.get("Nats-Msg-Id", "") if held else ""
        if held_id != newest["msg_id"]:
            log.info("announcements are missing on the bus; sent again", after=held_id)
            await self._core.store.run("send_again", held_id)

    async def _held(self, rows: Sequence[Row]) -> list[bool]:
        async def one(row: Row) -> bool:
            async with self._room:
                try:
                    found = await self._core.bus.last(subjects.desired(row["host_id"]))
                except Refused as error:  # what is wrong with one host stops no other
                    log.warning("cannot be compared", host_id=row["host_id"], error=str(error))
                    return True
            return found is not None and found.payload == row["message"]

        return list(await asyncio.gather(*(one(row) for row in rows)))

    async def _next_dirty(self) -> bool:
        async with self._one_writer:
            return await self._publish_dirty()

    async def _publish_dirty(self) -> bool:
        dirty = await self._core.store.rows("dirty", BATCH)
        if not dirty:
            return False
        fresh = [row for row in dirty if row["built_serial"] != row["serial"]]
        kept = [(r["host_id"], r["serial"], r["message"]) for r in dirty if r["built_serial"] == r["serial"]]
        built = await self._build(fresh) if fresh else []
        await self._publish([*kept, *built], "new")
        return any(row["host_id"] not in self._unmade for row in dirty)

    async def _build(self, dirty: Sequence[Row]) -> list[tuple[str, int, bytes]]:
        """Sign and store; what somebody else built or raised meanwhile is left for the next round."""
        core, now = self._core, self._core.now()
        services = await self._services(dirty)
        made: dict[str, tuple[int, bytes, frozenset[str]]] = {}
        for row in dirty:
            host, given = row["host_id"], services[row["host_id"]]
            manifest = HostManifest(host, row["serial"], now, now + MANIFEST_SECONDS, tuple(given))
            try:
                sealed = core.keys.seal(envelope.MANIFEST, msgspec.msgpack.encode(manifest))
                message = envelope.encode(ManifestMessage(core.keys.envelope, sealed))
            except Exception:  # one that cannot be made leaves those of the other hosts
                log.exception("a manifest cannot be made", host_id=host)
                self._unmade.add(host)
                continue
            self._unmade.discard(host)
            refs = (ref for service in given for ref in (service.active, service.candidate) if ref)
            made[host] = row["serial"], message, frozenset(ref.digest for ref in refs)
        stored = await core.store.rows(
            "store_built",
            list(made),
            [serial for serial, _, _ in made.values()],
            [message for _, message, _ in made.values()],
            now,
            [",".join(sorted(digests)) for _, _, digests in made.values()],
        )
        hosts = [row["host_id"] for row in stored]
        core.digests.update((host, made[host][2]) for host in hosts)
        return [(host, made[host][0], made[host][1]) for host in hosts]

    async def _services(self, dirty: Iterable[Row]) -> dict[str, list[ServiceState]]:
        """The services of each host: those with a snapshot, and those whose selectors it is to look for."""
        labels = {row["host_id"]: row["labels"] for row in dirty}
        found: dict[str, dict[int, ServiceState]] = defaultdict(dict)
        offered = [
            (row["host_labels"], ServiceState(row["id"], row["name"], tuple(row["selectors"])))
            for row in await self._core.store.rows("offered")
        ]
        for host, given in labels.items():
            for wanted, service in offered:
                if not wanted or runs(wanted, given):
                    found[host][service.service_id] = service
        confirm = self._core.options.confirm_seconds
        for row in await self._core.store.rows("active_of", list(labels)):
            trial = 0 if row["copy_of"] is not None else confirm  # what comes back was good before
            active = ActiveRef(row["version"], row["digest"], row["lease_until"], trial, row["preflight"])
            found[row["host_id"]][row["service_id"]] = ServiceState(
                row["service_id"], row["name"], tuple(row["selectors"]), active
            )
        for row in await self._core.store.rows("candidates_of", list(labels)):
            beside = CandidateRef(row["version"], row["digest"])
            known = found[row["host_id"]].get(row["service_id"]) or ServiceState(
                row["service_id"], row["name"], tuple(row["selectors"])
            )
            found[row["host_id"]][row["service_id"]] = msgspec.structs.replace(known, candidate=beside)
        return {host: [found[host][number] for number in sorted(found[host])] for host in labels}

    async def _publish(self, messages: Sequence[tuple[str, int, bytes]], why: str) -> None:
        """Put manifests on the bus, many at once, and note those that lie there."""

        async def one(host: str, serial: int, message: bytes) -> None:
            digest = sha256(message).hexdigest()[:16]
            again = f":{self._core.clock.now()}" if why == "again" else ""
            async with self._room:
                await self._core.bus.publish(
                    subjects.desired(host), message, msg_id=f"desired:{host}:{serial}:{digest}{again}"
                )

        results = await asyncio.gather(*(one(*message) for message in messages), return_exceptions=True)
        good = [
            m for m, result in zip(messages, results, strict=True) if not isinstance(result, BaseException)
        ]
        if good:
            await self._core.store.run("published", [host for host, _, _ in good], [s for _, s, _ in good])
            metrics.manifests.inc(len(good))
        for result in results:
            if isinstance(result, BaseException):
                raise result
