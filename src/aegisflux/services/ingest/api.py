"""Ingest over HTTP: events of third parties, and dead letters."""

import asyncio
from typing import Annotated, Any

from litestar import Litestar, Request, get, post
from litestar.exceptions import HTTPException, InternalServerException
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.params import Parameter

from aegisflux.domain.errors import OverLimit, Unavailable
from aegisflux.runtime import logs, pages
from aegisflux.runtime.access import Who, needs, needs_source, who
from aegisflux.runtime.again import again
from aegisflux.runtime.http import MAX_BODY
from aegisflux.services.ingest import body as bodies
from aegisflux.services.ingest.app import Ingest
from aegisflux.services.ingest.letters import Page, Replayed, Whole
from aegisflux.services.ingest.posted import Answer

Handler = Request[Any, Any, Any]
LARGE = 4 << 20
BODY_SECONDS = 60.0
Number = Annotated[int, Parameter(ge=1, le=2**62, description="the letter's id")]
DryRun = Annotated[bool, Parameter(description="say what would become of it, and change nothing")]
log = logs.get("ingest")


class _Body(Operation):
    """The body is read as bytes: what it holds is said by `format` and its Content-Type."""

    def __init__(self, **parts: Any) -> None:
        kinds = ("application/x-ndjson", "application/json", "application/msgpack", "text/plain")
        content = {kind: OpenAPIMediaType(schema=Schema()) for kind in kinds}
        super().__init__(**{**parts, "request_body": RequestBody(required=True, content=content)})


def ingest_of(request: Handler) -> Ingest:
    """The ingest behind the application."""
    found: Ingest = request.app.state["ingest"]
    return found


async def _whole(request: Handler) -> bytes:
    """The body, once all of it is here; who is slow is told so."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise HTTPException(f"body: expected within {BODY_SECONDS:.0f} s", status_code=408) from None
    except InternalServerException:
        raise HTTPException("body: expected as long as was said, it ended before", status_code=400) from None


@post(
    "/api/v1/events",
    status_code=202,
    guards=[needs_source],
    operation_class=_Body,
    request_max_body_size=MAX_BODY,
)
async def post_events(
    request: Handler,
    form: Annotated[
        str,
        Parameter(query="format", description="native, falco, tetragon, auditd, sshd, ocsf", max_length=16),
    ] = "native",
    idempotency_key: Annotated[
        str | None,
        Parameter(
            header="Idempotency-Key",
            max_length=128,
            pattern=r"^[ -~]*$(?!\n)",
            description="with another key the same body is another request",
        ),
    ] = None,
) -> Answer:
    """Events of the host that the token is bound to: NDJSON, a JSON array, MessagePack, or lines of a log;
    gzip or zstd. 16 MiB, 64 MiB decompressed. Sent again it adds nothing. What is refused becomes dead
    letters, and is named here.
    """
    ingest = ingest_of(request)
    raw = await _whole(request)
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", *bodies.ENCODINGS):
        raise HTTPException(f"Content-Encoding: expected {', '.join(bodies.ENCODINGS)}", status_code=415)
    try:
        kind, host = request.headers.get("Content-Type", ""), request.scope["user"].host_id
        async with ingest.posted.turn(host, large=len(raw) > LARGE or bool(encoding)):
            plain = await asyncio.to_thread(bodies.plain, raw, encoding) if encoding else raw
            return await ingest.posted.take(plain, kind, form, host, idempotency_key or "", ingest.now_ns())
    except OverLimit as error:
        raise HTTPException(str(error), status_code=413) from None


@get("/api/v1/dead", guards=[needs("operator")])
async def list_letters(
    request: Handler,
    stream: Annotated[str | None, Parameter(max_length=63, description="telemetry, http, acks, ...")] = None,
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    cursor: Annotated[int, Parameter(ge=0, le=2**62, description="only letters above this id")] = 0,
) -> Page:
    """Dead letters, oldest first: what was refused, when, from where, and why."""
    return await ingest_of(request).letters.page(stream, cursor, limit)


@get("/api/v1/dead/{number:int}", guards=[needs("operator")])
async def show_letter(number: Number, request: Handler) -> Whole:
    """A dead letter with its bytes."""
    return await ingest_of(request).letters.one(number)


@post("/api/v1/dead/{number:int}/replay", status_code=200, guards=[needs("operator")])
async def replay_letter(
    number: Number,
    request: Handler,
    dry_run: Annotated[
        bool, Parameter(description="say what would become of it, and change nothing")
    ] = False,
) -> Replayed:
    """Put a dead letter in again: that of a host through ingest's own checks, others to their subject."""
    ingest, asker = ingest_of(request), who(request)
    done = await ingest.letters.replay(number, dry_run, ingest.now_ns())
    if not dry_run:
        await _noted(ingest, asker, done)
    return done


@get("/api/v1/clocks", guards=[needs("viewer")], sync_to_thread=False)
def clocks(request: Handler) -> dict[str, int]:
    """By how many nanoseconds each host's clock is behind ours, by the least delay of the last minute."""
    return ingest_of(request).offsets.all()


async def _noted(ingest: Ingest, asker: Who, done: Replayed) -> None:
    """A line of the audit log, where there is a store."""
    try:
        await _audited(ingest, asker, done)
    except Unavailable as error:
        log.warning("no audit line", letter=done.id, actor=asker.principal.name, error=str(error))


@again
async def _audited(ingest: Ingest, asker: Who, done: Replayed) -> None:
    async with ingest.store.change() as db:
        await db.audit(asker.did("dead.replay", f"dead/{done.id}", after=done.subject))


def application(ingest: Ingest | None) -> Litestar:
    """The application; without an ingest it can only describe itself."""

    async def bus() -> str:
        assert ingest is not None
        if not ingest.bus.connected:
            raise Unavailable("not connected")
        if ingest.waiting:
            raise Unavailable(f"checked events wait: {ingest.waiting}")
        return f"connected; {ingest.lag} batches wait"

    async def started() -> str:
        assert ingest is not None
        if not ingest.started:
            raise Unavailable("still starting")
        return "started"

    checks = {"store": ingest.store.check, "bus": bus, "ingest": started} if ingest else {}
    return pages.application(
        "ingest",
        "Events of third parties, and dead letters. Errors are RFC 9457 problems.",
        (post_events, list_letters, show_letter, replay_letter, clocks),
        bearers=ingest.bearers if ingest else None,
        checks=checks,
        state={"ingest": ingest},
    )
