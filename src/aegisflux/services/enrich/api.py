"""Enrich over HTTP: what hosts did, for people and programs that read."""

from datetime import datetime
from typing import Annotated, Any

from litestar import Litestar, Request, get
from litestar.params import Parameter

from aegisflux.domain.errors import Unavailable
from aegisflux.runtime import health, pages
from aegisflux.runtime.access import needs
from aegisflux.services.enrich.app import Enrich
from aegisflux.services.enrich.graph import BlastRadius, Reach
from aegisflux.services.enrich.readers import Asked, Page

Handler = Request[Any, Any, Any]
SERVICE = "enrich"
Filter = Annotated[
    str,
    Parameter(max_length=4096, description="field=value terms; a leading - excludes: service=web -port=22"),
]
Since = Annotated[datetime | None, Parameter(description="from this time on; 15 minutes ago when absent")]
Until = Annotated[datetime | None, Parameter(description="up to, and without, this time")]
Cursor = Annotated[str | None, Parameter(max_length=1024, description="`next_cursor` of the page before")]
Follow = Annotated[bool, Parameter(description="oldest first, to go on from the last cursor")]
Limit = Annotated[int, Parameter(ge=1, le=1000, description="rows a page")]
Name = Annotated[str | None, Parameter(max_length=256)]


def enrich_of(request: Handler) -> Enrich:
    """The service behind the application."""
    found: Enrich = request.app.state[SERVICE]
    return found


def _asked(
    request: Handler,
    filter: str,  # noqa: A002 - the parameter's name on the wire
    since: datetime | None,
    until: datetime | None,
    cursor: str | None,
    follow: bool,
    limit: int,
) -> Asked:
    now = enrich_of(request).parts.clock.now()
    return Asked(now=now, filter=filter, since=since, until=until, cursor=cursor, follow=follow, limit=limit)


@get("/api/v1/flows", guards=[needs("viewer")])
async def flows(
    request: Handler,
    filter: Filter = "",  # noqa: A002
    since: Since = None,
    until: Until = None,
    cursor: Cursor = None,
    follow: Follow = False,
    limit: Limit = 100,
) -> Page:
    """Flow reports, newest first, or oldest first when followed."""
    asked = _asked(request, filter, since, until, cursor, follow, limit)
    return await enrich_of(request).readers.flows(asked)


@get("/api/v1/flows/summary", guards=[needs("viewer")])
async def summary(
    request: Handler, since: Since = None, until: Until = None, limit: Limit = 100
) -> list[dict[str, Any]]:
    """Who talked to whom, by service where one is known, most first."""
    return await enrich_of(request).readers.summary(_asked(request, "", since, until, None, False, limit))


@get("/api/v1/events", guards=[needs("viewer")])
async def events(
    request: Handler,
    filter: Filter = "",  # noqa: A002
    since: Since = None,
    until: Until = None,
    cursor: Cursor = None,
    follow: Follow = False,
    limit: Limit = 100,
) -> Page:
    """Every event that is no flow, newest first, or oldest first when followed."""
    asked = _asked(request, filter, since, until, cursor, follow, limit)
    return await enrich_of(request).readers.events(asked)


@get("/api/v1/telemetry/hosts", guards=[needs("viewer")])
async def hosts(request: Handler) -> list[dict[str, Any]]:
    """Hosts, and how their telemetry is: last event, losses, clock offset, inventory."""
    return await enrich_of(request).readers.hosts()


@get("/api/v1/packages", guards=[needs("viewer")])
async def packages(
    request: Handler,
    host: Name = None,
    name: Name = None,
    kind: Annotated[str | None, Parameter(query="type", max_length=16)] = None,
    cursor: Cursor = None,
    limit: Limit = 1000,
) -> Page:
    """Installed packages, of all hosts or by host, name or type."""
    return await enrich_of(request).readers.packages(host, name, kind, cursor, limit)


@get("/api/v1/packages/changes", guards=[needs("viewer")])
async def package_changes(
    request: Handler, host: Name = None, since: Since = None, limit: Limit = 100
) -> list[dict[str, Any]]:
    """What was installed and removed, newest first."""
    start, _ = _asked(request, "", since, None, None, False, limit).window()
    return await enrich_of(request).readers.package_changes(host, start, limit)


@get("/api/v1/graph/reach/{service:str}", guards=[needs("viewer")])
async def reach(request: Handler, service: str) -> Reach:
    """Who reaches a service: directly, and over others."""
    return await enrich_of(request).graph.reach(service)


@get("/api/v1/graph/blast-radius/{host:str}", guards=[needs("viewer")])
async def blast_radius(request: Handler, host: str) -> BlastRadius:
    """What a compromise of a host exposes: its services, and all that they reach."""
    return await enrich_of(request).graph.blast_radius(host)


HANDLERS = (
    flows, summary, events, hosts, packages, package_changes, reach, blast_radius,
)  # fmt: skip


def application(enrich: Enrich | None) -> Litestar:
    """The application; without a service it can only describe itself."""

    async def bus() -> str:
        assert enrich is not None
        if not enrich.parts.bus.connected:
            raise Unavailable("not connected")
        return "connected"

    async def started() -> str:
        assert enrich is not None
        if not enrich.started:
            raise Unavailable("still starting")
        return "started"

    checks: dict[str, health.Check] = {}
    if enrich is not None:
        parts = enrich.parts
        checks = {"store": parts.facts.check, "bus": bus, "graph": parts.graph.check, SERVICE: started}
    return pages.application(
        SERVICE,
        "Flows, events, inventories and the graph of the fleet, to read.",
        HANDLERS,
        bearers=enrich.bearers if enrich else None,
        checks=checks,
        state={SERVICE: enrich},
    )
