"""The orchestrator as a whole: what runs while it lives."""

import asyncio

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.shares import Share
from aegisflux.ports.bus import Fair
from aegisflux.runtime import logs
from aegisflux.runtime.tasks import Tasks
from aegisflux.services.orchestrator.access import Access
from aegisflux.services.orchestrator.answers import Answers
from aegisflux.services.orchestrator.changes import Changes
from aegisflux.services.orchestrator.contents import Contents
from aegisflux.services.orchestrator.core import Core
from aegisflux.services.orchestrator.credentials import HostCredentials
from aegisflux.services.orchestrator.hosts import Hosts
from aegisflux.services.orchestrator.panic import Panic
from aegisflux.services.orchestrator.pilot import Pilot
from aegisflux.services.orchestrator.registry import Registry
from aegisflux.services.orchestrator.relay import Relay
from aegisflux.services.orchestrator.renewals import Renewals
from aegisflux.services.orchestrator.rollouts import Rollouts
from aegisflux.services.orchestrator.rotation import Rotation
from aegisflux.services.orchestrator.sealing import seal_rows
from aegisflux.services.orchestrator.snapshots import Snapshots
from aegisflux.services.orchestrator.standing import Standing, load_keys
from aegisflux.services.orchestrator.upkeep import Upkeep
from aegisflux.services.orchestrator.views import Views
from aegisflux.wire import subjects

DURABLE = "orchestrator"
ACKS = subjects.stream_of(subjects.ALL_ACKS).name
HEARTBEATS = subjects.stream_of(subjects.ALL_HEARTBEATS).name
# An agent acks each of its 256 services at most once for each change: all that its places on the stream hold
# is handled at once, and a change every five seconds for ever. It beats every five seconds, and at a change;
# one every 0.2 s is within its share.
ACKS_FAIR = Fair(Share(rate=50.0, burst=1024.0), beyond="dropped")
HEARTBEATS_FAIR = Fair(
    Share(rate=5.0, burst=20.0), Share(rate=float(1 << 20), burst=float(8 << 20)), beyond="newest"
)
LAST_MARK_SECONDS = 2.0
log = logs.get("orchestrator")


class Orchestrator:
    """`start` needs an open store and an opened bus (connected or not); `close` leaves both open."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.access = Access(core)
        self.hosts = Hosts(core)
        self.registry = Registry(core)
        self.snapshots = Snapshots(core)
        self.changes = Changes(core)
        self.rollouts = Rollouts(core)
        self.panic = Panic(core, self.rollouts)
        self.pilot = Pilot(core, self.rollouts)
        self.renewals = Renewals(core)
        self.views = Views(core)
        self.relay = Relay(core)
        self.answers = Answers(core)
        self.contents = Contents(core)
        self.credentials = HostCredentials(core)
        self.rotation = Rotation(core, self.contents)
        self.standing = Standing(core, self.contents)
        self.upkeep = Upkeep(core)
        self._tasks = Tasks()
        self.started = False

    async def start(self) -> None:
        """Load the keys, serve and consume, publish what is due."""
        await load_keys(self.core)
        await seal_rows(self.core)
        await self.core.workshop.warm()
        bus = self.core.bus
        bus.on_connect(self._connected)
        await bus.ensure_streams()
        await self.core.hearing.begin(self.contents.answer, self.credentials.answer)
        await bus.consume(ACKS, DURABLE, self.answers.on_acks, fair=ACKS_FAIR)
        await bus.consume(HEARTBEATS, DURABLE, self.answers.on_heartbeats, fair=HEARTBEATS_FAIR)
        self._tasks.loop("endings", self.standing.follow)
        self._tasks.loop("standing", self.standing.look)
        self._tasks.loop("manifests", self.relay.manifests)
        self._tasks.loop("announcements", self.relay.announcements)
        self._tasks.loop("compare", self._compare)
        self._tasks.loop("upkeep", self.upkeep.tick)
        self._tasks.loop("rollouts", self.pilot.tick)
        self._tasks.loop("renewals", self.renewals.tick)
        self._tasks.loop("rotation", self.rotation.step)

    async def close(self) -> None:
        """End all loops and workers."""
        await self._tasks.close()
        await self._last_mark()
        self.core.workshop.close()

    async def _last_mark(self) -> None:
        try:
            async with asyncio.timeout(LAST_MARK_SECONDS):
                await self.standing.keep()
        except (Unavailable, TimeoutError) as error:
            log.warning("the mark of the audit log is not written at the end", error=str(error))

    async def _connected(self) -> None:
        await self.core.bus.ensure_streams()
        await self.relay.compare()
        await self.answers.confirm_again()
        self.pilot.patient()

    async def _compare(self) -> None:
        await self.relay.compare()
        await self.core.hearing.follow()
        await asyncio.sleep(self.core.options.compare_every)
