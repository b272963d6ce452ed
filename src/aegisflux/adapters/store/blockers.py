"""Who holds locks that the orchestrator waits for, and is not the orchestrator: its session is ended.

The time-outs of a role (`adapters/engines/roles.sql`) end what an honest service left behind. A role can
switch them off for itself, so a service that was taken over could hold the head of the audit log for ever,
and with it panic; it cannot keep this one from ending its session.
"""

import asyncio
from typing import Any, Final

import asyncpg

from aegisflux.adapters.store.postgres import away
from aegisflux.domain.errors import Unavailable
from aegisflux.runtime import logs, metrics

EVERY: Final = 0.5  # seconds
SECONDS: Final = 10.0
# Of all who are ahead of a session of ours, those who wait for nobody themselves. A service that has the
# database for itself, with one user for all, finds none.
END: Final = r"""
with recursive ahead(pid) as (
    select unnest(pg_blocking_pids(w.pid)) from pg_locks w join pg_stat_activity a on a.pid = w.pid
    where not w.granted and w.waitstart < clock_timestamp() - interval '2 seconds'
        and a.datname = current_database() and a.usename in (current_user, 'aegisflux_owner')
    union
    select unnest(pg_blocking_pids(pid)) from ahead
)
select a.usename::text as role, pg_terminate_backend(a.pid) as ended
from ahead join pg_stat_activity a on a.pid = ahead.pid
where a.usename like 'aegisflux\_%' and a.usename not in (current_user, 'aegisflux_owner')
    and not exists (select from pg_locks w where w.pid = a.pid and not w.granted)
"""
AWAY: Final = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError)
log = logs.get("store")


class Blockers:
    """Looks every half a second, on a connection of its own, since all others may wait.

    `dsn`: the orchestrator's.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: Any = None

    async def step(self) -> None:
        """Look once, then rest. Raises Unavailable."""
        await self.look()
        await asyncio.sleep(EVERY)

    async def look(self) -> list[str]:
        """The roles whose sessions were ended. Raises Unavailable."""
        try:
            if self._connection is None:
                self._connection = await asyncpg.connect(self._dsn, command_timeout=SECONDS, timeout=SECONDS)
            rows = await self._connection.fetch(END)
        except AWAY as error:
            await self.close()
            raise Unavailable(f"the store: who holds locks cannot be seen: {away(error)}") from error
        ended = [row["role"] for row in rows if row["ended"]]
        for role in ended:
            metrics.sessions_ended.inc()
            log.error(
                "a session that held locks for seconds is ended, since the orchestrator waits", role=role
            )
        return ended

    async def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
