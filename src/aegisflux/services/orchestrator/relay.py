"""From the store to the bus: the newest manifest of each dirty host, and announcements in the order of the
commits.

The bus is a cache: at start, after each reconnect and every five minutes what it holds is compared and
published again.
"""

import asyncio
from collections.abc import Sequence
from hashlib import sha256

import msgspec
from msgspec import Struct

from aegisflux.domain.errors import OverLimit, Refused
from aegisflux.domain.manifest import HostManifest
from aegisflux.domain.manifest_room import fitted, left_out_text
from aegisflux.ports.store import Row
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.tasks import woken
from aegisflux.services.orchestrator.core import Core, Unmade
from aegisflux.services.orchestrator.wanted import measure, wanted_of
from aegisflux.wire import envelope, subjects
from aegisflux.wire.envelope import ManifestMessage

MANIFEST_SECONDS = 30 * 86_400
BATCH, AT_ONCE = 256, 128
IDLE_SECONDS = 2.0
AGAIN_SECONDS = 30.0  # until a manifest that could not be made is tried again
LONGEST = subjects.MAX_MESSAGE - 1024  # beside its headers
log = logs.get("relay")


class Built(Struct, frozen=True):
    """A manifest as it is stored and sent; `left_out`: what it has no room for, in words."""

    serial: int
    message: bytes
    digests: frozenset[str]
    left_out: str


class Relay:
    """Two loops, one for manifests and one for announcements, so that neither waits for the other."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._room = asyncio.Semaphore(AT_ONCE)
        self._one_writer = asyncio.Lock()

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
        bad, now = self._core.unmade, self._core.clock.now()
        waits = [(host, one.serial) for host, one in bad.items() if now < one.again_at]
        dirty = await self._core.store.rows("dirty", BATCH, [h for h, _ in waits], [s for _, s in waits])
        if not dirty:
            return False
        fresh = [row for row in dirty if row["built_serial"] != row["serial"]]
        kept = [(r["host_id"], r["serial"], r["message"]) for r in dirty if r["built_serial"] == r["serial"]]
        if never_sent := [host for host, _, message in kept if len(message) > LONGEST]:
            await self._core.store.run(
                "bump", never_sent
            )  # an older version of ours made it: make a shorter one
        built = await self._build(fresh) if fresh else []
        await self._publish([*(one for one in kept if len(one[2]) <= LONGEST), *built], "new")
        return True

    async def _build(self, dirty: Sequence[Row]) -> list[tuple[str, int, bytes]]:
        """Sign and store; what somebody else built or raised meanwhile is left for the next round."""
        core, now = self._core, self._core.now()
        wanted, bytes_of = await wanted_of(core, dirty), measure()
        made: dict[str, Built] = {}
        for row in dirty:
            host, serial = row["host_id"], row["serial"]
            try:
                fit = fitted(host, wanted[host], bytes_of)
                left_out = left_out_text(fit.left_out, len(fit.services))
                manifest = HostManifest(host, serial, now, now + MANIFEST_SECONDS, fit.services)
                made[host] = self._sealed(manifest, left_out)
            except Exception as error:  # one that cannot be made leaves those of the other hosts
                log.exception("a manifest cannot be made", host_id=host, serial=serial)
                self._set_aside(host, serial, error)
                continue
            if left_out and left_out != row["left_out"]:
                log.warning("services are left out of a manifest", host_id=host, detail=left_out)
        stored = await core.store.rows(
            "store_built",
            list(made),
            [one.serial for one in made.values()],
            [one.message for one in made.values()],
            now,
            [",".join(sorted(one.digests)) for one in made.values()],
            [one.left_out for one in made.values()],
        )
        hosts = [row["host_id"] for row in stored]
        core.digests.update((host, made[host].digests) for host in hosts)
        return [(host, made[host].serial, made[host].message) for host in hosts]

    def _sealed(self, manifest: HostManifest, left_out: str) -> Built:
        core = self._core
        sealed = core.keys.seal(envelope.MANIFEST, msgspec.msgpack.encode(manifest))
        message = envelope.encode(ManifestMessage(core.keys.envelope, sealed))
        if len(message) > LONGEST:
            raise OverLimit("message", LONGEST, len(message), f"the manifest of host {manifest.host_id}")
        refs = (ref for service in manifest.services for ref in (service.active, service.candidate) if ref)
        return Built(manifest.serial, message, frozenset(ref.digest for ref in refs), left_out)

    def _set_aside(self, host: str, serial: int, error: Exception) -> None:
        """This manifest waits a while, or for a newer one, so that no other waits for it."""
        self._core.unmade[host] = Unmade(serial, str(error), self._core.clock.now() + AGAIN_SECONDS)

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
        good = []
        for (host, serial, _), result in zip(messages, results, strict=True):
            if not isinstance(result, BaseException):
                self._core.unmade.pop(host, None)
                good.append((host, serial))
            elif isinstance(result, Refused):  # it never will be sent
                log.error("a manifest cannot be sent", host_id=host, serial=serial, error=str(result))
                self._set_aside(host, serial, result)
        if good:
            await self._core.store.run(
                "published", [host for host, _ in good], [serial for _, serial in good]
            )
            metrics.manifests.inc(len(good))
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Refused):
                raise result
