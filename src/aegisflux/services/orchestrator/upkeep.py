"""What time brings: leases to renew, hosts that began to run a service, manifests that grow old, keys to
rotate.
"""

import asyncio

from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.runtime import logs, metrics
from aegisflux.services.orchestrator import guard
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.hosts import is_silent
from aegisflux.services.orchestrator.joining import join_service
from aegisflux.services.orchestrator.relay import MANIFEST_SECONDS

NO_LIMIT = 2_592_000
BATCH = 2000
KEEP_OUTBOX, KEEP_ANSWERS = 30 * 86_400, 86_400
log = logs.get("upkeep")


class Upkeep:
    """The orchestrator's clockwork; every step is safe to do twice."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._silent: frozenset[str] = frozenset()

    async def tick(self) -> None:
        """One round, then a pause. A step that fails leaves the others."""
        for step in (self._renew_all, self.join, self.refresh, self.watch):
            try:
                await step()
            except AegisError as error:
                log.warning("comes again", step=step.__name__, error=str(error))
            except Exception:
                log.exception("failed", step=step.__name__)
        await asyncio.sleep(self._core.options.renew_every)

    async def _renew_all(self) -> None:
        while await self.renew() >= BATCH:
            pass

    async def renew(self) -> int:
        """Renew promoted leases of which half is over; gives how many."""
        core = self._core
        longest = core.options.max_lease or NO_LIMIT
        due = "renewal_due", core.now(), longest
        if await core.store.row(*due) is None:
            return 0
        async with core.store.change() as db:
            rows = await db.rows("renew", core.now(), longest, BATCH)
            hosts = sorted({row["host_id"] for row in rows})
            await db.run("bump", hosts)
            await db.audit(
                Who().did("lease.renew", "leases", after=f"{len(rows)} leases on {len(hosts)} hosts")
            )
        core.wake()
        metrics.renewals.inc(len(rows))
        return len(rows)

    async def join(self) -> None:
        """Hosts whose heartbeat reports a matched cgroup of a service get its snapshot."""
        core, now = self._core, self._core.now()
        rows = await core.store.rows("joiners", now)
        spared = await guard.spared(core, core.store, {row["host_id"] for row in rows})
        for row in (row for row in rows if row["host_id"] not in spared):
            host, service_id = row["host_id"], row["service_id"]
            try:
                async with core.store.change() as db:
                    await join_service(core, db, host, service_id, now)
                    await db.audit(Who().did("host.join", f"service/{service_id}", after=host))
            except Unavailable:
                raise
            except Exception:  # what is wrong with one host or service stops no other
                log.exception("cannot join", host_id=host, service_id=service_id)
            core.wake()

    async def refresh(self) -> None:
        """Sign manifests anew that have lived half their time; forget what nobody needs."""
        core, now = self._core, self._core.now()
        aged = [row["host_id"] for row in await core.store.rows("aged", now - MANIFEST_SECONDS // 2, BATCH)]
        if aged:
            async with core.store.change() as db:
                await db.run("bump", aged)
                await db.audit(Who().did("manifest.refresh", "hosts", after=f"{len(aged)} hosts"))
            core.wake()
        await core.store.run("forget_outbox", now - KEEP_OUTBOX)
        await core.store.run("forget_idempotency", now - KEEP_ANSWERS)

    async def watch(self) -> None:
        """Say which hosts fell silent or came back."""
        rows = await self._core.store.rows("hosts")
        silent = frozenset(row["host_id"] for row in rows if is_silent(self._core, row))
        for host in sorted(silent - self._silent):
            log.warning("silent", host_id=host)
        for host in sorted(self._silent - silent):
            log.info("heard again", host_id=host)
        self._silent = silent
        metrics.hosts.labels("silent").set(len(silent))
        metrics.hosts.labels("heard").set(len(rows) - len(silent))
