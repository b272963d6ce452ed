"""The pages that each of our services has: health, readiness, version, metrics, and its own description."""

from collections.abc import Mapping, Sequence
from typing import Any

from litestar import Litestar, MediaType, Request, Response, get
from litestar.exceptions import HTTPException
from litestar.types import ControllerRouterHandler
from msgspec import Struct

from aegisflux import __version__
from aegisflux.domain.errors import AegisError
from aegisflux.runtime import access, health, http, metrics, requests
from aegisflux.runtime.access import Bearers, needs

CHECKS, NAME = "checks", "name"
Handler = Request[Any, Any, Any]


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
    """Whether what it needs is reachable, a line for each; 503 when not. Needs no token; what each line says
    in detail (versions, counts, errors) needs the role viewer."""
    found = await health.readiness(request.app.state[CHECKS])
    if not await access.is_viewer(request):
        found = health.bare(found)
    return http.Line(found, status_code=200 if found.ready else 503)


@get("/version", security=[{}], sync_to_thread=False)
def version(request: Handler) -> Version:
    """Name and version of what answers here. Needs no token."""
    return Version(request.app.state[NAME], __version__)


@get("/metrics", guards=[needs("viewer")], sync_to_thread=False, media_type=MediaType.TEXT)
def metrics_page() -> Response[bytes]:
    """Metrics in Prometheus's text format."""
    return Response(metrics.page(), media_type=metrics.CONTENT_TYPE)


def application(
    name: str,
    words: str,
    handlers: Sequence[ControllerRouterHandler],
    *,
    bearers: Bearers | None,
    checks: Mapping[str, health.Check],
    state: Mapping[str, object],
) -> Litestar:
    """The application of a service: its handlers and the common pages. Without `bearers` it can only describe
    itself.
    """
    app = Litestar(
        route_handlers=[healthz, readyz, version, metrics_page, *handlers],
        before_request=requests.check,
        exception_handlers={AegisError: http.refused, HTTPException: http.failed, Exception: http.broken},
        openapi_config=http.openapi(f"AegisFlux {name}", words),
        request_max_body_size=http.USUAL_BODY,
        response_class=http.Line,
        debug=False,
        logging_config=None,
    )
    if bearers is not None:
        checks = {**checks, "tokens": bearers.said}
    found = {CHECKS: checks, NAME: f"aegisflux-{name}", access.STATE: bearers, **state}
    for key, value in found.items():
        app.state[key] = value
    app.state[requests.STATE] = requests.reads(app)
    return http.documented(app)
