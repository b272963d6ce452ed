"""The orchestrator over HTTP (contracts §3): the application, who may call what, and what is open to
everybody.
"""

from collections.abc import Callable
from typing import Any

from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, NotAuthorizedException, PermissionDeniedException
from litestar.handlers import BaseRouteHandler
from msgspec import Struct

from aegisflux import __version__
from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.domain.roles import Role, may
from aegisflux.runtime import health, http, metrics
from aegisflux.services.orchestrator.app import Orchestrator
from aegisflux.services.orchestrator.core import Who
from aegisflux.wire.token import CA_PATH, ENROLL_PATH, EnrollAnswer, EnrollRequest

Connection = ASGIConnection[Any, Any, Any, Any]
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


def needs(role: Role) -> Callable[[Connection, BaseRouteHandler], Any]:
    """A guard: a bearer of this role or a higher one."""

    async def guard(connection: Connection, _handler: BaseRouteHandler) -> None:
        scheme, _, token = connection.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise NotAuthorizedException(
                "a bearer token is needed: Authorization: Bearer <token>",
                headers={"WWW-Authenticate": "Bearer"},
            )
        found = await orchestrator_of(connection).access.principal(token.strip())
        if found is None:
            raise NotAuthorizedException(
                "this token is unknown, expired or revoked",
                headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
            )
        if not may(found.role, role):
            raise PermissionDeniedException(f"this needs the role {role}; {found.name} is {found.role}")
        connection.scope["user"] = found

    return guard


def who(request: Handler) -> Who:
    """Who asks, for the audit log."""
    client = request.client
    return Who(request.scope["user"], client.host if client else "", http.request_id(request))


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
    return http.documented(app)
