"""Native partitions by day: made ahead, and dropped when the retention of their table is over. A hypertable
of TimescaleDB is left to its own policies.

The owner of the tables has functions for both (migration 12): whoever writes rows need not own tables.
A row outside of all of them (a very old or lying clock) lies in the default partition, and is deleted there.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

AHEAD_DAYS: Final = 2
NAME: Final = re.compile(r"(flows|events)_(\d{8})")
DAILY: Final = ("flows", "events")


async def upkeep(
    connection: Any, queries: Mapping[str, str], now: float, keep_seconds: Mapping[str, int]
) -> Sequence[str]:
    """Bring the partitions to what `now` (seconds since the epoch) wants; what was done, in words."""
    at, done = datetime.fromtimestamp(now, UTC), []
    native = {row["name"] for row in await connection.fetch(queries["partitioned"], list(DAILY))}
    for table in sorted(native):
        oldest = (at - timedelta(seconds=keep_seconds[table])).date()
        found = {row["name"] for row in await connection.fetch(queries["partitions"], table)}
        for name in sorted(found):
            day = day_of(name)
            if day is not None and day < oldest:
                await connection.execute(queries["drop_day"], table, day)
                done.append(f"dropped {name}")
        for day in (at.date() + timedelta(days=n) for n in range(AHEAD_DAYS + 1)):
            if name_of(table, day) not in found:
                await connection.execute(queries["add_day"], table, day)
                done.append(f"made {name_of(table, day)}")
        gone = await connection.execute(f"delete from {table}_other where time < $1", _midnight(oldest))  # noqa: S608
        done += _deleted(gone, f"{table}_other")
    for query, name in (("forget_minutes", "flow_minutes"), ("forget_sources", "sources")):
        before = at - timedelta(seconds=keep_seconds[name])
        done += _deleted(await connection.execute(queries[query], before), name)
    return done


def name_of(table: str, day: date) -> str:
    """The name of a table's partition of a day."""
    return f"{table}_{day:%Y%m%d}"


def day_of(name: str) -> date | None:
    """The day of a partition of that name, None for other names."""
    found = NAME.fullmatch(name)
    return datetime.strptime(found[2], "%Y%m%d").replace(tzinfo=UTC).date() if found else None


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _deleted(answer: str, what: str) -> list[str]:
    count = int(answer.rpartition(" ")[2])
    return [f"deleted {count} rows of {what}"] if count else []
