"""From the spool to the bus, and the life of all that is told of a host.

A batch is published until the bus has it: after a kill it is sent again with the same bytes, and the store
knows the sequences that it has. While the bus is away, or refuses because it is full, one batch at a time
tries; when all is well several are under way.
"""

import asyncio
import random
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

from aegisflux.agent.collector import Collector
from aegisflux.agent.packages import Packages
from aegisflux.agent.parts import Parts, Senses
from aegisflux.agent.segments import Record
from aegisflux.agent.troubles import Troubles
from aegisflux.agent.wakes import Bell, Watch
from aegisflux.domain.errors import AegisError, Forbidden, Refused, Unavailable
from aegisflux.domain.flow import Flow
from aegisflux.ports.datapath import DeniedFlow
from aegisflux.runtime.ending import end
from aegisflux.wire import subjects

IN_FLIGHT: Final = 8
FIRST_RETRY, LAST_RETRY = 0.25, 2.0
DISK_SECONDS: Final = 1.0


class Telemetry:
    """What an agent tells of its host beside its own state."""

    def __init__(self, parts: Parts, senses: Senses) -> None:
        self._parts, self._senses = parts, senses
        rate = parts.settings.telemetry.events_per_second
        self.collector = Collector(senses.feeds, senses.spool, parts.host_id, parts.boot_id, rate, parts.log)
        self._filled = asyncio.Event()
        self._bell, self._watches = Bell(), list[Watch]()
        self._opened, self._again = -1, False
        self._well = True
        self._probe = asyncio.Lock()
        self._refused: list[Mapping[str, int]] = []
        self._disk = ""
        self.troubles: Troubles | None = None
        self.sent = 0
        self.packages = Packages(parts, senses.software, senses.background) if senses.software else None

    def lost(self) -> Mapping[str, int]:
        """Events that were lost since the host booted, and inventories since the agent began, by where."""
        refused = self.packages.refused if self.packages else 0
        return {**self.collector.lost, **({"inventory.refused": refused} if refused else {})}

    def recent(self, service_id: int) -> list[Flow]:
        """What a service talked about lately."""
        return self.collector.recent.flows(service_id, time.monotonic())

    def report(self) -> dict[str, object]:
        """How it is, for `aegisflux agent status`."""
        trouble = self._disk or ("" if self._well else "the bus takes nothing now")
        found = {**self.collector.report, "batches_sent": self.sent, "trouble": trouble}
        return found if self.packages is None else {**found, "inventory": self.packages.said}

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What runs for as long as the agent does."""
        found = [self._collecting(), self._sending()]
        return found if self.packages is None else [*found, self.packages.run()]

    def connected(self) -> None:
        """The bus is there again; perhaps another one, that knows nothing of this host."""
        if self.packages is not None:
            self.packages.compare()

    def look_again(self) -> None:
        """The host changed, as in a panic: look at every source now."""
        self._again = True
        self._bell.ring()

    async def denied(self, flows: Sequence[DeniedFlow]) -> None:
        """Flows that were denied; durable when this returns."""
        if not flows:
            return
        boot_ns, wall_ns = self._parts.datapath.boot_ns(), self._wall_ns()
        try:
            await self._senses.blocking(self.collector.verdicts, flows, time.monotonic(), boot_ns, wall_ns)
        except Unavailable as error:
            self._say(str(error), error)
        self._filled.set()

    async def collect(self) -> float:
        """Read what is due; the seconds until something is."""
        opened = self.collector.opened
        try:
            pause = await self._senses.blocking(self.collector.step, time.monotonic(), self._wall_ns())
            if self.collector.opened != opened:
                await self._senses.background(self._parts.trim)
        except AegisError as error:
            self._say(str(error), error)
            return DISK_SECONDS
        except Exception as error:  # noqa: BLE001 - a loop's edge: a defect here must not end enforcement
            self._say(f"{type(error).__name__}: {error}")
            return DISK_SECONDS
        self._say("")
        if self.collector.report["batches_waiting"]:
            self._filled.set()
        return pause

    async def send(self, record: Record) -> Record:
        """Publish a batch until the bus has it, or says that it never will."""
        pause = FIRST_RETRY
        while True:
            try:
                await self._put(record)
            except (Unavailable, Forbidden) as error:
                self._trouble(error)
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, LAST_RETRY)
                continue
            except Refused as error:
                self._refused.append(record.meta.kinds)
                self._parts.log(f"telemetry: {sum(record.meta.kinds.values())} events were refused: {error}")
            return record

    def close(self) -> None:
        """Let go; on the thread of `Senses.blocking`."""
        self.collector.close()

    async def _collecting(self) -> None:
        """When something is due, or a source wakes us: but then no sooner than it wants to be read again."""
        try:
            while True:
                pause = await self.collect()
                self._listen()
                if await self._bell.heard(pause) and not self._again:
                    await asyncio.sleep(self.collector.wake(time.monotonic()))
                elif self._again:
                    self._again = False
                    self.collector.again(time.monotonic())
        finally:
            for watch in self._watches:
                watch.close()

    def _listen(self) -> None:
        """Let the sources that have nothing more wake us."""
        anew, self._opened = self._opened != self.collector.opened, self.collector.opened
        waits_for = self.collector.waits_for()
        while len(self._watches) < len(waits_for):
            self._watches.append(Watch(self._bell.ring))
        for i, watch in enumerate(self._watches):
            watch.arm(waits_for[i] if i < len(waits_for) else None, anew=anew)

    async def _sending(self) -> None:
        flying: set[asyncio.Task[Record]] = set()
        done: list[Record] = []
        woken = asyncio.create_task(self._filled.wait())
        try:
            while True:
                for record in await self._exchange(done, IN_FLIGHT - len(flying)):
                    flying.add(asyncio.create_task(self.send(record)))
                await asyncio.wait({woken, *flying}, return_when=asyncio.FIRST_COMPLETED)
                if woken.done():
                    self._filled.clear()
                    woken = asyncio.create_task(self._filled.wait())
                ended = {task for task in flying if task.done()}
                flying -= ended
                done += [task.result() for task in ended]
        finally:
            await end(woken, *flying)

    async def _exchange(self, done: list[Record], most: int) -> list[Record]:
        """Settle these, and get others; `done` is emptied once that is durable."""
        refused, settled = list(self._refused), list(done)
        if not settled and not most:
            return []
        try:
            found = await self._senses.blocking(self._exchanged, settled, refused, most)
        except Unavailable as error:
            self._say(str(error), error)
            await asyncio.sleep(DISK_SECONDS)
            return []
        self.sent += len(settled) - len(refused)
        del done[: len(settled)], self._refused[: len(refused)]
        return found

    def _exchanged(
        self, done: Sequence[Record], refused: Sequence[Mapping[str, int]], most: int
    ) -> list[Record]:
        self.collector.open()
        found = self._senses.spool.exchange(done, most)
        for kinds in refused:
            self._senses.spool.count("refused", kinds)
        if done:
            self.collector.look()
        return found

    async def _put(self, record: Record) -> None:
        """Publish once, and alone when the last one could not be published."""
        if self._well:
            await self._publish(record)
            return
        async with self._probe:
            await self._publish(record)
            if not self._well:
                self._well = True
                self._parts.log("telemetry: the bus takes events again")

    async def _publish(self, record: Record) -> None:
        await self._parts.bus.publish(subjects.telemetry(self._parts.host_id), record.batch)

    def _trouble(self, error: AegisError) -> None:
        if self._well:
            self._well = False
            self._parts.log(f"telemetry: events wait in the spool: {error}")

    def _say(self, trouble: str, error: AegisError | None = None) -> None:
        if self.troubles is not None and error is not None and isinstance(error.__cause__, OSError):
            self.troubles.not_written("spool", error)
        elif self.troubles is not None and not trouble:
            self.troubles.end("spool")
        if trouble and trouble != self._disk:
            self._parts.log(f"telemetry: {trouble}")
        self._disk = trouble

    def _wall_ns(self) -> int:
        return int(self._parts.wall() * 1_000_000_000)
