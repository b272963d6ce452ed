"""The orchestrator over HTTP (contracts §3): the application, who may call what, and what is open to
everybody.
"""

from typing import Any

from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.exceptions import HTTPException
from msgspec import Struct

from aegisflux import __version__
from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.runtime import access, health, http, metrics
from aegisflux.runtime.access import Connection, Who, needs
from aegisflux.services.orchestrator.app import Orchestrator
from aegisflux.wire.token import CA_PATH, ENROLL_PATH, EnrollAnswer, EnrollRequest

Handler = Request[Any, Any, Any]


class Health(Struct, frozen=True):
    """The process is up."""

    status: str = "ok"


class Version(Struct, frozen=True):
    """What answers here."""

    name: str
    version: str


def orchestrator_of(connection: Connection) -> Orchestrator:
    """The orchestrator behind the application."""
    found: Orchestrator = connection.app.state["orchestrator"]
    return found


@get("/healthz", security=[{}], sync_to_thread=False)
def healthz() -> Health:
    """Whether the process is up. Needs no token, touches nothing else."""
    return Health()


@get("/readyz", security=[{}])
async def readyz(request: Handler) -> Response[health.Readiness]:
    """Whether what it needs is reachable, a line for each; 503 when not. Needs no token."""
    core = orchestrator_of(request).core

    async def bus() -> str:
        found = await core.store.row("dirty_count")
        count = found["dirty"] if found else 0
        metrics.dirty_hosts.set(count)
        if not core.bus.connected:
            raise Unavailable("not connected")
        return f"connected; {count} hosts wait for their manifest"

    async def started() -> str:
        if not orchestrator_of(request).started:
            raise Unavailable("still starting")
        return "started"

    checks = {"store": core.store.check, "bus": bus, "orchestrator": started}
    found = await health.readiness(checks)
    return http.Line(found, status_code=200 if found.ready else 503)


@get("/version", security=[{}], sync_to_thread=False)
def version() -> Version:
    """Name and version of what answers here. Needs no token."""
    return Version("aegisflux-orchestrator", __version__)


@get("/metrics", guards=[needs("viewer")], sync_to_thread=False, media_type=MediaType.TEXT)
def metrics_page() -> Response[bytes]:
    """Metrics in Prometheus's text format."""
    return Response(metrics.page(), media_type=metrics.CONTENT_TYPE)


@get(CA_PATH, security=[{}], media_type=MediaType.TEXT, sync_to_thread=False)
def authority(request: Handler) -> str:
    """The certificate of our CA (PEM), for hosts that enrol: they compare it with their token. Needs no
    token.
    """
    return orchestrator_of(request).core.options.ca_pem


@post(ENROLL_PATH, status_code=200, security=[{}])
async def enroll(data: EnrollRequest, request: Handler) -> EnrollAnswer:
    """Enrol a host with an enrolment token. A retry with the same token and key gets the same answer;
    another key 409.
    """
    client = request.client
    asker = Who(source=client.host if client else "", request_id=http.request_id(request))
    return await orchestrator_of(request).hosts.enroll(data, asker)


def application(orchestrator: Orchestrator | None) -> Litestar:
    """The application; without an orchestrator it can only describe itself."""
    from aegisflux.services.orchestrator import routes

    app = Litestar(
        route_handlers=[healthz, readyz, version, metrics_page, authority, enroll, *routes.HANDLERS],
        exception_handlers={AegisError: http.refused, HTTPException: http.failed, Exception: http.broken},
        openapi_config=http.openapi(
            "AegisFlux orchestrator",
            "Services, snapshots, rollouts, host enrolment. Errors are RFC 9457 problems.",
        ),
        request_max_body_size=http.MAX_BODY,
        response_class=http.Line,
        debug=False,
        logging_config=None,
    )
    app.state["orchestrator"] = orchestrator
    app.state[access.STATE] = orchestrator.access.bearers if orchestrator else None
    return http.documented(app)
