"""What people ask the store of facts: flows, events, hosts, inventories, page by page."""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct

from aegisflux.domain.errors import Invalid
from aegisflux.domain.inventory import PackageType
from aegisflux.domain.search import (
    EVENT_FIELDS,
    FLOW_FIELDS,
    Names,
    Search,
    names_of,
    not_known,
    parse_search,
    unknown,
)
from aegisflux.ports.facts import Facts, Row

MAX_PAGE: Final = 1000
LOOK_BACK: Final = timedelta(minutes=15)
LONG: Final = timedelta(days=3)  # a window without an end is a day longer than its start
_NUMBERS: Final = frozenset({"port", "proto", "pid"})


class Page(Struct, frozen=True):
    """Some rows; `next_cursor` asks for those behind them. A following reader keeps the last one it had."""

    items: list[dict[str, Any]]
    next_cursor: str | None = None


class Place(Struct, frozen=True, array_like=True):
    """Where a page ended: microseconds since the epoch, source, sequence."""

    time: int
    source: int
    seq: int


class Readers:
    """Questions to the store; every method raises Invalid or Unavailable."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    async def flows(self, asked: "Asked") -> Page:
        """Flow reports, newest first; oldest first when followed."""
        return await self._page("flows", asked, FLOW_FIELDS)

    async def events(self, asked: "Asked") -> Page:
        """Every other event, newest first; oldest first when followed."""
        return await self._page("events", asked, EVENT_FIELDS)

    async def _page(self, query: str, asked: "Asked", fields: tuple[str, ...]) -> Page:
        search = parse_search(asked.filter, fields)
        start, end = asked.window()
        place = asked.place()
        await self._check_names(search, "filter.")
        values = [part for name in fields for part in _arrays(search, name)]
        rows = await self._facts.rows(
            query, start, end, *place, asked.follow, *values, _page_size(asked.limit)
        )
        return Page([shown(row) for row in rows], _cursor(rows, asked))

    async def summary(self, asked: "Asked") -> list[dict[str, Any]]:
        """Who talked to whom, most first; by whole hours where the window is longer than two days."""
        start, end = asked.window()
        query = "flow_summary" if end - start <= LONG else "flow_summary_hours"
        rows = await self._facts.rows(query, start, end, _page_size(asked.limit))
        return [shown(row) for row in rows]

    async def hosts(self) -> list[dict[str, Any]]:
        """Enrolled hosts, and how their telemetry is."""
        return [shown(row) for row in await self._facts.rows("hosts_seen")]

    async def packages(
        self, host: str | None, name: str | None, kind: str | None, cursor: str | None, limit: int
    ) -> Page:
        """Installed packages of all hosts, or those of one host, name or type."""
        if kind is not None and kind not in get_args(PackageType):
            raise Invalid("type", " or ".join(get_args(PackageType)), kind)
        await self._check_host(host)
        after = _decoded(cursor, tuple[str, str, str, str, str, str]) if cursor else (None,) * 6
        rows = await self._facts.rows("packages", host, name, kind, *after, _page_size(limit))
        last = rows[-1] if len(rows) == _page_size(limit) else None
        following = tuple(last[name] for name in PACKAGE_KEY) if last else None
        return Page([shown(row) for row in rows], _encoded(following) if following else None)

    async def package_changes(self, host: str | None, since: datetime, limit: int) -> list[dict[str, Any]]:
        """What was installed and removed, newest first."""
        await self._check_host(host)
        return [
            shown(row) for row in await self._facts.rows("package_changes", host, since, _page_size(limit))
        ]

    async def _check_host(self, host: str | None) -> None:
        if host is not None:
            await self._check_names(Search({"host": (host,)}), "")

    async def _check_names(self, search: Search, prefix: str) -> None:
        """Raise Invalid for a name of a host or service that nothing has."""
        names = sorted({value for _, value in names_of(search)})
        if not names:
            return
        found = unknown(search, _names(await self._facts.rows("names_known", names)))
        if found is not None:
            field, value = found
            raise not_known(prefix + field, field, value, _names(await self._facts.rows("names")))


PACKAGE_KEY = ("host_id", "type", "name", "version", "arch", "place")


class Asked(Struct, frozen=True, kw_only=True):
    """A question about a window of time, by default the 15 minutes before `now`, the time of asking."""

    now: float
    filter: str = ""
    since: datetime | None = None
    until: datetime | None = None
    cursor: str | None = None
    follow: bool = False
    limit: int = 100

    def window(self) -> tuple[datetime, datetime]:
        """From, up to and without."""
        now = datetime.fromtimestamp(self.now, UTC)
        start, end = self.since or now - LOOK_BACK, self.until or now + timedelta(days=1)
        if start.tzinfo is None or end.tzinfo is None:
            raise Invalid("since" if start.tzinfo is None else "until", "a time with its zone", str(start))
        return start, end

    def place(self) -> tuple[datetime | None, int | None, int | None]:
        """Where the last page ended."""
        if self.cursor is None:
            return None, None, None
        at = _decoded(self.cursor, Place)
        try:
            return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at.time), at.source, at.seq
        except OverflowError:
            raise Invalid("cursor", "a cursor of an earlier page", self.cursor) from None


def shown(row: Row) -> dict[str, Any]:
    """A row as JSON shows it."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _names(rows: Sequence[Row]) -> Names:
    kinds = ("host", "service")
    return Names(*(frozenset(row["name"] for row in rows if row["kind"] == kind) for kind in kinds))


def _arrays(search: Search, name: str) -> tuple[list[Any] | None, list[Any]]:
    wanted, unwanted = search.wanted.get(name), search.unwanted.get(name, ())
    return None if wanted is None else _typed(name, wanted), _typed(name, unwanted)


def _typed(name: str, values: Sequence[str]) -> list[Any]:
    if name in _NUMBERS:
        return [int(value) for value in values]
    if name == "peer":
        return [ip_network(value) for value in values]
    return list(values)


def _page_size(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise Invalid("limit", f"1 to {MAX_PAGE}", limit)
    return limit


def _cursor(rows: Sequence[Row], asked: Asked) -> str | None:
    if not rows:
        return asked.cursor if asked.follow else None
    if len(rows) < asked.limit and not asked.follow:
        return None
    last: Mapping[str, Any] = rows[-1]
    micros = (last["time"] - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    return _encoded(Place(micros, last["source"], last["seq"]))


def _encoded(place: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).decode().rstrip("=")


def _decoded(cursor: str, kind: Any) -> Any:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.msgpack.decode(raw, type=kind)
    except (ValueError, RecursionError):
        raise Invalid("cursor", "a cursor of an earlier page", cursor) from None
