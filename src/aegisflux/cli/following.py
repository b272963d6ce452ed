"""Rows as they come, for ever.

Hosts tell at their own pace, a flow only every few seconds: what happened shortly before the newest row may
come after it. So that time is looked at again now and then, and what was shown is not shown twice.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aegisflux.cli.output import say
from aegisflux.domain.errors import Unavailable

POLL_SECONDS: Final = 0.5
AGAIN_SECONDS: Final = 3.0
LATE: Final = timedelta(seconds=30)
Row = dict[str, Any]
Ask = Callable[[Mapping[str, object]], Any]


def following(
    ask: Ask,
    query: Mapping[str, object],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[list[Row]]:
    """New rows, oldest first in each part; raises Unavailable only when nobody answers the first time."""
    seen, answered, quiet = _Seen(now), False, False
    end: dict[str, object] = dict(query)
    again = clock() + AGAIN_SECONDS
    while True:
        try:
            page = ask(end)
            rows = page["items"]
            end["cursor"] = page["next_cursor"] or end.get("cursor")
            if clock() >= again:
                again = clock() + AGAIN_SECONDS
                rows = _late(ask, query, seen) + rows
            answered, quiet = True, False
        except Unavailable as error:
            if not answered:
                raise
            if not quiet:
                say(f"{error}; goes on when it answers again")
            rows, quiet = [], True
        yield seen.new(rows)
        sleep(0 if len(rows) >= int(str(query["limit"])) else POLL_SECONDS)


class _Seen:
    """What was shown of the last moments. `newest` is never ahead of now, whatever a row says."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._rows: dict[tuple[int, int], datetime] = {}
        self.newest: datetime | None = None

    def new(self, rows: list[Row]) -> list[Row]:
        """Those that were not shown yet, which they are from now on."""
        found = []
        for row in rows:
            name, at = (row["source"], row["seq"]), datetime.fromisoformat(row["time"])
            if name not in self._rows:
                self._rows[name] = at
                found.append(row)
            at = min(at, self._now())
            self.newest = at if self.newest is None else max(at, self.newest)
        if found and self.newest is not None:
            oldest = self.newest - 2 * LATE
            self._rows = {name: at for name, at in self._rows.items() if at >= oldest}
        return found


def _late(ask: Ask, query: Mapping[str, object], seen: _Seen) -> list[Row]:
    """All rows of the last moments once more."""
    if seen.newest is None:
        return []
    since = max(seen.newest - LATE, datetime.fromisoformat(str(query["since"])))
    look: dict[str, object] = {**query, "since": since.isoformat()}
    rows: list[Row] = []
    while True:
        page = ask(look)
        rows += page["items"]
        look["cursor"] = page["next_cursor"]
        if len(page["items"]) < int(str(query["limit"])):
            return rows
