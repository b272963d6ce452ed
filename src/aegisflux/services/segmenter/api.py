"""The segmenter over HTTP: long work answers 202 with an operation, which says where its answer lies."""

from typing import Annotated, Any

from litestar import Litestar, MediaType, Request, Response, delete, get, post
from litestar.exceptions import HTTPException
from litestar.params import Parameter
from msgspec import Struct

from aegisflux import __version__
from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.runtime import health, http, metrics
from aegisflux.runtime.access import STATE, needs, who
from aegisflux.services.segmenter.app import Segmenter
from aegisflux.services.segmenter.operations import Operation
from aegisflux.services.segmenter.proposals import Asked, Kept
from aegisflux.wire import policyfile

Handler = Request[Any, Any, Any]
SERVICE = "segmenter"
Number = Annotated[int, Parameter(ge=1, le=2**62)]
OperationId = Annotated[str, Parameter(pattern="^[0-9a-f]{16}$")]


class Health(Struct, frozen=True):
    """The process is up."""

    status: str = "ok"


class Version(Struct, frozen=True):
    """What answers here."""

    name: str
    version: str


class Summaries(Struct, frozen=True):
    """Proposals in short, newest first; `next_cursor` is the `before` of the next page."""

    items: list[dict[str, Any]]
    next_cursor: int | None


def segmenter_of(request: Handler) -> Segmenter:
    """The service behind the application."""
    found: Segmenter = request.app.state[SERVICE]
    return found


@get("/healthz", security=[{}], sync_to_thread=False)
def healthz() -> Health:
    """Whether the process is up. Needs no token, touches nothing else."""
    return Health()


@get("/readyz", security=[{}])
async def readyz(request: Handler) -> Response[health.Readiness]:
    """Whether what it needs is reachable, a line for each; 503 when not. Needs no token."""
    segmenter = segmenter_of(request)

    async def started() -> str:
        if not segmenter.started:
            raise Unavailable("still starting")
        return "started"

    checks = {"store": segmenter.parts.store.check, "facts": segmenter.parts.facts.check, SERVICE: started}
    found = await health.readiness(checks)
    return http.Line(found, status_code=200 if found.ready else 503)


@get("/version", security=[{}], sync_to_thread=False)
def version() -> Version:
    """Name and version of what answers here. Needs no token."""
    return Version("aegisflux-segmenter", __version__)


@get("/metrics", guards=[needs("viewer")], sync_to_thread=False, media_type=MediaType.TEXT)
def metrics_page() -> Response[bytes]:
    """Metrics in Prometheus's text format."""
    return Response(metrics.page(), media_type=metrics.CONTENT_TYPE)


@post("/segment/propose", status_code=202, guards=[needs("operator")])
async def propose(data: Asked, request: Handler) -> Operation:
    """Learn from the flows of a window: a proposal with rules and their evidence. Answers with an operation;
    its `result` is where the proposal lies.
    """
    segmenter, asker = segmenter_of(request), who(request)
    asked = segmenter.proposals.settled(data)

    async def work(told: Any) -> str:
        return f"/segment/proposals/{await segmenter.proposals.make(asked, asker, told)}"

    return segmenter.operations.begin("propose", work)


@get("/segment/operations/{operation:str}", guards=[needs("viewer")])
async def operation(operation: OperationId, request: Handler) -> Operation:
    """How far an operation is, and what came of it."""
    return segmenter_of(request).operations.one(operation)


@delete("/segment/operations/{operation:str}", status_code=200, guards=[needs("operator")])
async def cancel(operation: OperationId, request: Handler) -> Operation:
    """End an operation that runs; nothing of it is kept."""
    return await segmenter_of(request).operations.cancel(operation)


@get("/segment/proposals", guards=[needs("viewer")])
async def proposals(
    request: Handler,
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    before: Annotated[int, Parameter(ge=1, le=2**62, description="only proposals below this number")] = 2**62,
) -> Summaries:
    """Proposals in short, newest first."""
    items = await segmenter_of(request).proposals.all(before, limit)
    return Summaries([dict(item) for item in items], items[-1]["id"] if len(items) == limit else None)


@get("/segment/proposals/{number:int}", guards=[needs("viewer")])
async def proposal(number: Number, request: Handler) -> Kept:
    """A proposal: groups, rules with their evidence, what is held back and why, and what to look at first."""
    return await segmenter_of(request).proposals.one(number)


@get("/segment/proposals/{number:int}/policy", guards=[needs("viewer")], media_type=MediaType.TEXT)
async def policy(number: Number, request: Handler) -> str:
    """A proposal as a policy file, YAML with what each rule rests on as a comment above it."""
    found = await segmenter_of(request).proposals.policy(number)
    return policyfile.write(found)


HANDLERS = [healthz, readyz, version, metrics_page, propose, operation, cancel, proposals, proposal, policy]


def application(segmenter: Segmenter | None) -> Litestar:
    """The application; without a service it can only describe itself."""
    app = Litestar(
        route_handlers=HANDLERS,
        exception_handlers={AegisError: http.refused, HTTPException: http.failed, Exception: http.broken},
        openapi_config=http.openapi(
            "AegisFlux segmenter", "Proposals from recorded flows, and what would come of them."
        ),
        request_max_body_size=http.MAX_BODY,
        response_class=http.Line,
        debug=False,
        logging_config=None,
    )
    app.state[SERVICE] = segmenter
    app.state[STATE] = segmenter.bearers if segmenter else None
    return http.documented(app)
