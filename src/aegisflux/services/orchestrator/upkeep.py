"""What time brings: leases to renew, hosts that began to run a service, manifests that grow old, keys to
rotate.
"""

import asyncio
from collections.abc import Sequence

from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.domain.text import first_of
from aegisflux.runtime import logs, metrics
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.hosts import is_silent
from aegisflux.services.orchestrator.joining import Pair, planned, write
from aegisflux.services.orchestrator.relay import MANIFEST_SECONDS

NO_LIMIT = 2_592_000
BATCH = 2000
JOINS_AT_ONCE = 500
MOST_NAMED = 5
COUNT_SECONDS = 60.0
NOTHING = (-1, "")  # below every pair of a service and a host
KEEP_OUTBOX, KEEP_ANSWERS = 30 * 86_400, 86_400
log = logs.get("upkeep")


class JoinedMeanwhile(Exception):
    """Another change gave these hosts what they were to get; nothing is written."""


class Upkeep:
    """The orchestrator's clockwork; every step is safe to do twice."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._silent: frozenset[str] = frozenset()
        self._count_at = 0.0

    async def tick(self) -> None:
        """One round, then a pause. A step that fails leaves the others."""
        for step in (self._renew_all, self.join, self.refresh, self.watch, self.count_shared_addresses):
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

    @again
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
            db.bump(hosts)
            await db.audit(
                Who().did("lease.renew", "leases", after=f"{len(rows)} leases on {len(hosts)} hosts")
            )
        core.wake()
        metrics.renewals.inc(len(rows))
        return len(rows)

    async def join(self) -> None:
        """Hosts whose heartbeat reports a matched cgroup of a service get its snapshot: a page of them in one
        transaction, and leases are renewed between the pages."""
        core, now, last = self._core, self._core.now(), NOTHING
        while rows := await core.store.rows("joiners", now, *last, JOINS_AT_ONCE):
            pairs = [(row["service_id"], row["host_id"]) for row in rows]
            await self._join(pairs, now)
            if len(pairs) < JOINS_AT_ONCE:
                return
            last = pairs[-1]
            await self._renew_all()

    async def _join(self, pairs: Sequence[Pair], now: int) -> None:
        """One transaction for all of them; where that fails, halves, until the one that fails is alone."""
        try:
            full = await self._joined(pairs, now)
        except Unavailable:
            raise
        except JoinedMeanwhile:
            return
        except Exception:  # what is wrong with one host or service stops no other
            if len(pairs) == 1:
                log.exception("cannot join", host_id=pairs[0][1], service_id=pairs[0][0])
                return
            middle = len(pairs) // 2
            await self._join(pairs[:middle], now)
            await self._join(pairs[middle:], now)
            return
        if full:
            log.warning("hosts have as many services as a host can have", hosts=first_of(full, MOST_NAMED))

    @again
    async def _joined(self, pairs: Sequence[Pair], now: int) -> tuple[str, ...]:
        """The hosts that have no room for one more service."""
        core = self._core
        joins = await planned(core, core.store, pairs, now)
        if not joins.given:
            return joins.full
        async with core.store.change() as db:
            joins = await planned(core, db, pairs, now)
            await write(core, db, joins, now)
            hosts: dict[int, list[str]] = {}
            for number, host, _ in joins.given:
                hosts.setdefault(number, []).append(host)
            if not hosts:
                raise JoinedMeanwhile
            for number, names in hosts.items():
                await db.audit(Who().did("host.join", f"service/{number}", after=", ".join(names)))
        core.wake()
        return joins.full

    @again
    async def refresh(self) -> None:
        """Sign manifests anew that have lived half their time; forget what nobody needs."""
        core, now = self._core, self._core.now()
        aged = [row["host_id"] for row in await core.store.rows("aged", now - MANIFEST_SECONDS // 2, BATCH)]
        if aged:
            async with core.store.change() as db:
                db.bump(aged)
                await db.audit(Who().did("manifest.refresh", "hosts", after=f"{len(aged)} hosts"))
            core.wake()
        await core.store.run("forget_outbox", now - KEEP_OUTBOX)
        await core.store.run("forget_idempotency", now - KEEP_ANSWERS)

    async def count_shared_addresses(self) -> None:
        """Once a minute, since it costs as much as there are hosts: for `/readyz` and the doctor."""
        core = self._core
        if core.clock.now() < self._count_at:
            return
        self._count_at = core.clock.now() + COUNT_SECONDS
        row = await core.store.row("shared_address_count")
        found = row["addresses"] if row else 0
        if found > core.shared_addresses:
            log.warning("addresses are reported by several hosts, and used for none of them", addresses=found)
        core.shared_addresses = found

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
