"""Ingest over HTTP: for now its health; events come over the bus."""

from typing import Any

from litestar import Litestar, MediaType, Request, Response, get
from litestar.exceptions import HTTPException
from msgspec import Struct

from aegisflux import __version__
from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.runtime import health, http, metrics
from aegisflux.runtime.access import STATE, needs
from aegisflux.services.ingest.app import Ingest

Handler = Request[Any, Any, Any]
SERVICE = "ingest"


class Health(Struct, frozen=True):
    """The process is up."""

    status: str = "ok"


class Version(Struct, frozen=True):
    """What answers here."""

    name: str
    version: str


@get("/healthz", security=[{}], sync_to_thread=False)
def healthz() -> Health:
    """Whether the process is up. Needs no token, touches nothing else."""
    return Health()


@get("/readyz", security=[{}])
async def readyz(request: Handler) -> Response[health.Readiness]:
    """Whether what it needs is reachable, a line for each; 503 when not. Needs no token."""
    ingest: Ingest = request.app.state[SERVICE]

    async def started() -> str:
        if not ingest.started:
            raise Unavailable("still starting")
        return "started"

    found = await health.readiness({"bus": ingest.check_bus, "ingest": started})
    return http.Line(found, status_code=200 if found.ready else 503)


@get("/version", security=[{}], sync_to_thread=False)
def version() -> Version:
    """Name and version of what answers here. Needs no token."""
    return Version("aegisflux-ingest", __version__)


@get("/metrics", guards=[needs("viewer")], sync_to_thread=False, media_type=MediaType.TEXT)
def metrics_page() -> Response[bytes]:
    """Metrics in Prometheus's text format."""
    return Response(metrics.page(), media_type=metrics.CONTENT_TYPE)


def application(ingest: Ingest | None) -> Litestar:
    """The application; without a service it can only describe itself."""
    app = Litestar(
        route_handlers=[healthz, readyz, version, metrics_page],
        exception_handlers={AegisError: http.refused, HTTPException: http.failed, Exception: http.broken},
        openapi_config=http.openapi("AegisFlux ingest", "Takes events from hosts and third parties."),
        request_max_body_size=http.MAX_BODY,
        response_class=http.Line,
        debug=False,
        logging_config=None,
    )
    app.state[SERVICE] = ingest
    app.state[STATE] = ingest.bearers if ingest else None
    return http.documented(app)
