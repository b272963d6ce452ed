"""TimescaleDB, where the database has it: hypertables by day, compression, retention, and hours added up from
minutes by a continuous aggregate. Without it: native partitions (`partitions.py`) under the same names.

Written from TimescaleDB's documentation (2.11 and later) and run against 2.23 without its scheduler
(tests/contract/test_timescale_extension.py; docs/adr/0018-timescaledb.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import asyncpg

from aegisflux.domain.errors import Unavailable

HYPER: Final = ("flows", "events")
KEPT: Final = ("flows", "events", "flow_minutes")
MOVE_SECONDS: Final = 3600.0  # weeks of rows move in one statement


async def version(connection: Any, queries: Mapping[str, str], mode: str) -> str | None:
    """The extension's version; None where it is off, or not to be had. Raises Unavailable where it is
    required and missing.
    """
    if mode == "off":
        return None
    rows = await connection.fetch(queries["timescale_available"])
    problem = "the extension is not installed on its machine" if not rows else ""
    if rows and rows[0]["installed_version"] is None:
        try:
            await connection.execute("create extension timescaledb")
            rows = await connection.fetch(queries["timescale_available"])
        except asyncpg.PostgresError as error:  # not preloaded, or not ours to create
            problem = str(error)
    if not problem and await connection.fetchval(queries["timescale_license"]) == "apache":
        problem = "its licence is `apache`, without compression and continuous aggregates"
    if problem and mode == "require":
        raise Unavailable(f"store.timescale is `require`, but the database has no TimescaleDB: {problem}")
    return None if problem else str(rows[0]["installed_version"])


async def found(connection: Any, queries: Mapping[str, str], mode: str) -> str:
    """How tables are kept that belong to somebody else, in words. Raises Unavailable where they are to be
    hypertables and are not.
    """
    native = await connection.fetchval(queries["table_kind"], HYPER[0]) == "p"
    if native and mode == "require":
        raise Unavailable(
            "store.timescale is `require`, but the owner of the tables has not made hypertables of them: see "
            "the log of the orchestrator"
        )
    return "native partitions" if native else "hypertables, kept by their owner"


async def adopt(
    connection: Any, queries: Mapping[str, str], keep_seconds: Mapping[str, int]
) -> Sequence[str]:
    """Make hypertables of what is partitioned natively (with its rows), and set the policies anew; what was
    done, in words. Each step is whole or not done, and is not done twice.
    """
    done = []
    for table in HYPER:
        if await connection.fetchval(queries["table_kind"], table) == "p":
            async with connection.transaction():
                await connection.execute(queries[f"hyper_{table}"], timeout=MOVE_SECONDS)
            done.append(f"{table} is a hypertable")
    if not await connection.fetchval(queries["hours_adopted"]):
        async with connection.transaction():
            await connection.execute(queries["hyper_hours"], timeout=MOVE_SECONDS)
        done.append("flow_hours is a continuous aggregate")
    for table in KEPT:
        async with connection.transaction():
            await connection.execute(queries["drop_retention"], table)
            await connection.execute(queries["add_retention"], table, float(keep_seconds[table]))
    return done
