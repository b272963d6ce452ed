"""The orchestrator over HTTP (contracts §3): the application, who may call what, and what is open to
everybody.
"""

from typing import Any

from litestar import Litestar, MediaType, Request, get, post

from aegisflux.domain.errors import Unavailable
from aegisflux.runtime import health, http, metrics, pages, serving
from aegisflux.runtime.access import Connection, Who
from aegisflux.services.orchestrator.app import Orchestrator
from aegisflux.wire.token import (
    CA_PATH,
    ENROLL_PATH,
    RENEW_PATH,
    EnrollAnswer,
    EnrollRequest,
    Renewed,
    RenewRequest,
)

MOST_REMARKS = 8
Handler = Request[Any, Any, Any]


def orchestrator_of(connection: Connection) -> Orchestrator:
    """The orchestrator behind the application."""
    found: Orchestrator = connection.app.state["orchestrator"]
    return found


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


@post(RENEW_PATH, status_code=200, security=[{}])
async def renew(data: RenewRequest, request: Handler) -> Renewed:
    """Give an enrolled host a user JWT of the bus that ends later, for a proof by the key of its enrolment.

    It is for a host whose JWT has ended, since others ask over the bus. Needs no token.
    """
    return await orchestrator_of(request).credentials.renew(data)


def application(orchestrator: Orchestrator | None) -> Litestar:
    """The application; without an orchestrator it can only describe itself."""
    from aegisflux.services.orchestrator import rollout_routes, routes

    async def bus() -> str:
        assert orchestrator is not None
        found = await orchestrator.core.store.row("dirty_count")
        count = found["dirty"] if found else 0
        metrics.dirty_hosts.set(count)
        if not orchestrator.core.bus.connected:
            raise Unavailable("not connected")
        full = found["overfull"] if found else 0
        cut = f"; {full} hosts are offered too many services: see aegisflux hosts list" if full else ""
        shared = orchestrator.core.shared_addresses
        cut += (
            f"; {shared} addresses are used for no host: see address_conflicts in hosts list"
            if shared
            else ""
        )
        cut += "".join(f"; {text}" for text in orchestrator.core.bus_remarks[:MOST_REMARKS])
        return f"connected; {count} hosts wait for their manifest{cut}"

    async def started() -> str:
        assert orchestrator is not None
        if not orchestrator.started:
            raise Unavailable("still starting")
        return "started"

    checks: dict[str, health.Check] = {}
    if orchestrator is not None:
        checks = {
            "store": orchestrator.core.store.check,
            "bus": bus,
            "orchestrator": started,
            "audit log": orchestrator.standing.said,
        }
    return pages.application(
        "orchestrator",
        "Services, snapshots, rollouts, host enrolment. Errors are RFC 9457 problems.",
        (authority, enroll, renew, *routes.HANDLERS, *rollout_routes.HANDLERS),
        bearers=orchestrator.access.bearers if orchestrator else None,
        checks=checks,
        state={"orchestrator": orchestrator, serving.URGENT: (rollout_routes.PANIC_PATH,)},
    )
