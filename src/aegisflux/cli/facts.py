"""`aegisflux flows`, `events`, `inventory`, `graph`: what hosts really do."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from cyclopts import App, Parameter

from aegisflux.cli.client import facts, quoted
from aegisflux.cli.following import following
from aegisflux.cli.output import PEOPLES, Output, columnar, line, say, show
from aegisflux.domain.digits import whole
from aegisflux.domain.errors import Invalid, Misused
from aegisflux.domain.net import PROTOCOL_NAMES
from aegisflux.domain.search import EVENT_KINDS

Since = Annotated[str, Parameter(help="a time (RFC 3339), or how long ago: 30s, 15m, 2h, 7d")]
Until = Annotated[str | None, Parameter(help="up to this time, written like --since")]
Not = Annotated[tuple[str, ...], Parameter(name="--not", help="field=value terms to leave out", negative="")]
Filter = Annotated[str, Parameter(help="further field=value terms: service=web -port=22")]
Picture = Callable[[dict[str, Any]], dict[str, Any]]
MAX_ROWS = 1000
PACKAGES = ("deb", "rpm", "apk", "pypi")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MARKS = {
    "allowed": "+ allowed",
    "would block": "~ would block",
    "blocked": "x blocked",
    "unknown": "? unknown",
}

flows_app = App(name="flows", help="Who talked to whom, as the kernels of the hosts counted it.")
inventory_app = App(name="inventory", help="Which software lies on which host.")
graph_app = App(name="graph", help="Who reaches what.")


@flows_app.command
def observe(
    *,
    from_: Annotated[
        str | None, Parameter(name="--from", help="who initiated: service, host or address")
    ] = None,
    to: Annotated[str | None, Parameter(help="who was called: service, host or address")] = None,
    port: Annotated[str | None, Parameter(help="one or more, comma-separated")] = None,
    proto: str | None = None,
    verdict: Annotated[str | None, Parameter(help="allowed, would-block, blocked, unknown")] = None,
    without: Not = (),
    filter: Filter = "",  # noqa: A002
    since: Since = "15m",
    until: Until = None,
    follow: Annotated[
        bool, Parameter(name=("--follow", "-f"), negative="", help="go on with what comes")
    ] = False,
    limit: int = 100,
    output: Output = "table",
) -> None:
    """Flows between named services, newest first; with -f as they come.

    Example: aegisflux flows observe --from web --verdict blocked -f
    """
    given = {"from": from_, "to": to, "port": port, "proto": proto, "verdict": verdict}
    text = " ".join([*_terms(given), *(f"-{term}" for term in without), filter])
    columns = FLOW if output == "table" else FLOW_WIDE
    _pages("/api/v1/flows", text, since, until, follow, limit, output, columns, _flow)


@flows_app.command
def summary(*, since: Since = "1h", until: Until = None, limit: int = 100, output: Output = "table") -> None:
    """Who talked to whom, one line for each pair, port and verdict."""
    query = {"since": moment(since), "until": moment(until), "limit": limit}
    rows = facts("/api/v1/flows/summary", query)
    show(pictured(rows, output, _named), output, SUMMARY)


def events(
    *,
    kind: Annotated[str | None, Parameter(help="exec, exit, listen, verdict, auth, file, log")] = None,
    host: str | None = None,
    service: str | None = None,
    without: Not = (),
    filter: Filter = "",  # noqa: A002
    since: Since = "15m",
    until: Until = None,
    follow: Annotated[
        bool, Parameter(name=("--follow", "-f"), negative="", help="go on with what comes")
    ] = False,
    limit: int = 100,
    output: Output = "table",
) -> None:
    """Every event that is no flow: programs, listening sockets, refusals, and what third parties sent.

    Example: aegisflux events --kind exec --host web-1 --since 1h
    """
    given = {"kind": kind, "host": host, "service": service}
    text = " ".join([*_terms(given), *(f"-{term}" for term in without), filter])
    _pages("/api/v1/events", text, since, until, follow, limit, output, EVENT, _event)


@inventory_app.command(name="list")
def packages(
    *,
    host: str | None = None,
    name: str | None = None,
    type: Annotated[str | None, Parameter(help="deb, rpm, apk, pypi")] = None,  # noqa: A002
    limit: int = 1000,
    output: Output = "table",
) -> None:
    """Installed packages, of all hosts or by host, name or type."""
    _given(host=host, name=name, type=type)
    if type is not None and type not in PACKAGES:
        raise Misused("--type", " or ".join(PACKAGES), type)
    query = {"host": host, "name": name, "type": type, "limit": min(limit, MAX_ROWS)}
    rows: list[dict[str, Any]] = []
    while len(rows) < limit:
        page = facts("/api/v1/packages", query)
        rows += page["items"]
        query["cursor"] = page["next_cursor"]
        if page["next_cursor"] is None:
            break
    show(
        rows[:limit],
        output,
        ("host_id", "type", "name", "version", "arch", "source", "source_version"),
    )


@inventory_app.command
def changes(
    *, host: str | None = None, since: Since = "7d", limit: int = 100, output: Output = "table"
) -> None:
    """What was installed and removed, newest first."""
    _given(host=host)
    rows = facts("/api/v1/packages/changes", {"host": host, "since": moment(since), "limit": limit})
    if columnar(output):
        rows = [row | {"change": "added" if row["added"] else "removed"} for row in rows]
    show(rows, output, ("time", "host_id", "change", "type", "name", "version"))


@inventory_app.command
def hosts(*, output: Output = "table") -> None:
    """Hosts, and how their telemetry is: last event, losses, packages."""
    rows = facts("/api/v1/telemetry/hosts")
    show(rows, output, ("host_id", "last_at", "lost", "offset_ns", "packages", "taken_at", "labels"))


@graph_app.command
def reach(service: str, *, output: Output = "table") -> None:
    """Who reaches a service, directly and over others; who could, since no snapshot in force forbids it; and
    who was refused there.

    Example: aegisflux graph reach db
    """
    found = facts(f"/api/v1/graph/reach/{quoted(service)}")
    if not columnar(output):
        show(found, output)
        return
    say(f"service {service} runs on {', '.join(found['hosts']) or 'no host that is known'}")
    rows = [way | {"what": "reaches"} for way in found["reached_by"]]
    rows += [way | {"what": "could reach"} for way in found["could"]]
    rows += [way | {"what": "was refused"} for way in found["refused"]]
    show(rows, output, ("actor", "what", "hops", "by"))
    if found["open"]:
        say("anybody may call it: on some host nothing restricts its ingress")
    _told_cut(found)


@graph_app.command(name="blast-radius")
def blast_radius(host: str, *, output: Output = "table") -> None:
    """What a compromise of a host exposes: its services, all that they reach, and all that they could.

    Example: aegisflux graph blast-radius web-1
    """
    found = facts(f"/api/v1/graph/blast-radius/{quoted(host)}")
    if not columnar(output):
        show(found, output)
        return
    say(f"host {host} runs {', '.join(found['services']) or 'no service that is known'}")
    rows = [way | {"what": "reaches"} for way in found["reaches"]]
    rows += [way | {"what": "could reach"} for way in found["could"]]
    show(rows, output, ("actor", "what", "hops", "by"))
    _told_cut(found)


def _told_cut(found: Mapping[str, Any]) -> None:
    if found["cut"]:
        say("there were too many services, addresses or ports to judge all that could be")


FLOW = ("time", "client", "server", "what", "verdict", "reason", "conns", "bytes")
FLOW_WIDE = (*FLOW, "host_id", "direction", "local", "peer", "path", "cgroup", "package")
SUMMARY = ("client", "server", "what", "verdict", "reason", "flows", "connections", "bytes")
EVENT = ("time", "host_id", "kind", "service", "what")


def _given(**options: str | None) -> None:
    """Raises Misused for an option that is there and empty: it would mean every value."""
    for name, value in options.items():
        if value is not None and not value.strip():
            raise Misused(f"--{name}", "a value, or the option left out", value)


def _terms(options: Mapping[str, str | None]) -> list[str]:
    """Options as terms of a filter; raises Misused for one that is empty or that nothing can have."""
    _given(**options)
    if (kind := options.get("kind")) is not None:
        for one in kind.split(","):
            if one not in EVENT_KINDS:
                raise Misused("--kind", " or ".join(EVENT_KINDS), one)
    return [
        f'{name}="{value}"' if " " in value else f"{name}={value}"
        for name, value in options.items()
        if value is not None
    ]


def _pages(
    path: str,
    text: str,
    since: str,
    until: str | None,
    follow: bool,
    limit: int,
    output: str,
    columns: tuple[str, ...],
    picture: Picture,
) -> None:
    """One answer of at most `limit` rows, or answers for ever."""
    query: dict[str, object] = {
        "filter": text.strip() or None, "since": moment(since), "until": moment(until),
        "follow": str(follow).lower(), "limit": min(limit, MAX_ROWS),
    }  # fmt: skip
    if follow:
        for new in following(lambda asked: facts(path, asked), query):
            _live(new, output, columns, picture)
    rows: list[dict[str, Any]] = []
    while True:
        page = facts(path, query)
        query["cursor"] = page["next_cursor"]
        rows += page["items"]
        if page["next_cursor"] is None or len(rows) >= limit:
            break
    rows = rows[:limit]
    show(pictured(rows, output, picture), output, columns)


def _live(rows: list[dict[str, Any]], output: str, columns: tuple[str, ...], picture: Picture) -> None:
    if not rows:
        return
    shown = pictured(rows, output, picture)
    if output in PEOPLES:
        for row in shown:
            line("  ".join(str(row[name]) for name in columns))
    else:
        show(shown, "jsonl" if output == "json" else output, columns, headed=False)


def pictured(rows: list[dict[str, Any]], output: str, picture: Picture) -> list[dict[str, Any]]:
    """Rows as columns show them; verdicts are marked for people alone."""
    if not columnar(output):
        return rows
    marked = [
        row | {"verdict": MARKS.get(row["verdict"], row["verdict"])} if "verdict" in row else row
        for row in rows
    ]
    return [picture(row) for row in (marked if output in PEOPLES else rows)]


def _flow(row: dict[str, Any]) -> dict[str, Any]:
    here = row["service"] or row["host_id"]
    there = row["peer_service"] or row["peer_host"] or row["peer"]
    client, server = (here, there) if row["direction"] == "egress" else (there, here)
    sides = {"client": client, "server": server, "conns": row["connections"]}
    return row | sides | _what(row) | {"bytes": row["bytes_out"] + row["bytes_in"]}


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return row | _what(row)


def _what(row: dict[str, Any]) -> dict[str, str]:
    proto = PROTOCOL_NAMES.get(row["proto"], str(row["proto"]))
    return {"what": f"{proto}/{row['port']}"}


def _event(row: dict[str, Any]) -> dict[str, Any]:
    event = row["body"]["event"]
    words: dict[str, Callable[[], str]] = {
        "exec": lambda: " ".join(event.get("args") or [event["path"]]),
        "exit": lambda: (
            f"{row['path'] or event.get('comm', '')} ended with {event.get('signal') or event.get('code', 0)}"
        ),
        "listen": lambda: f"{event['address']}:{event['port']}" + (" closed" if event.get("closed") else ""),
        "verdict": lambda: _verdict(event),
        "auth": lambda: f"{event.get('user', '')} {'let in' if event['success'] else 'refused'}",
        "file": lambda: f"{event['action']} {event['path']}",
        "log": lambda: event["message"],
    }
    return row | {"service": row["service"] or "-", "what": words[row["kind"]]()}


def _verdict(event: Mapping[str, Any]) -> str:
    port = event.get("peer_port") if event["direction"] == "egress" else event.get("local_port")
    proto = PROTOCOL_NAMES.get(event["proto"], str(event["proto"]))
    where = f"{event['peer']} {proto}" + (f"/{port}" if port else "")
    return f"{event['verdict']} {event['direction']} {where} ({event['reason']})"


def moment(text: str | None) -> str | None:
    """A time as the API wants it; raises Invalid."""
    if text is None:
        return None
    try:
        count = whole(text[:-1])
        if count is not None and text[-1:] in UNITS:
            return (datetime.now(UTC) - timedelta(seconds=count * UNITS[text[-1]])).isoformat()
        found = datetime.fromisoformat(text if text.isascii() and text[4:5] == "-" else "")
    except (ValueError, OverflowError):
        raise Invalid("--since", "a time (2026-11-24T12:00:00Z) or how long ago (15m)", text) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).isoformat()
