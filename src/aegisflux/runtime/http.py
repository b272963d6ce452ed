"""HTTP as all our services speak it: problems as RFC 9457, request ids, bodies with a bound, pages that
load nothing.
"""

import html
import re
import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any, Final, cast

import msgspec
from litestar import Litestar, Request, Response
from litestar._openapi.plugin import OpenAPIPlugin
from litestar.datastructures import MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Schema,
    SecurityScheme,
)
from litestar.serialization import default_serializer
from litestar.types import ASGIApp, Message, Receive, Scope, Send, Serializer

from aegisflux import __version__
from aegisflux.domain.errors import (
    AegisError,
    Busy,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    OverLimit,
    Refused,
    Unavailable,
)
from aegisflux.domain.paths import pointer
from aegisflux.runtime import logs, metrics

MAX_BODY: Final = 16 << 20  # of snapshots and events
MAX_SHOWN: Final = 500  # characters of a text in a log
USUAL_BODY: Final = 256 << 10  # of every route that says nothing else
OTHER, NO_ROUTE = "other", "none"  # labels of metrics
SCOPE_KEY: Final = "aegisflux.request_id"
URN: Final = "urn:aegisflux:problem:"
PROBLEM: Final = "application/problem+json"
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
STATUS: Final[tuple[tuple[type[AegisError], int, str], ...]] = (
    (Invalid, 422, "A field is not as the schema says"),
    (OverLimit, 422, "A limit is passed"),
    (Conflict, 409, "The object is in another state"),
    (NotFound, 404, "There is no such object"),
    (Forbidden, 403, "This is not allowed"),
    (Refused, 422, "The request is refused"),
    (Busy, 429, "Too much is asked at once"),
    (Unavailable, 503, "Something that we need cannot be used now"),
)
# Of what the framework refuses: the type of the problem, and its title.
OF_STATUS: Final = {
    400: ("invalid", "The request cannot be read"),
    401: ("unauthenticated", "A valid token is needed"),
    403: ("forbidden", "This is not allowed"),
    404: ("notfound", "There is no such object"),
    405: ("methodnotallowed", "This path has other methods"),
    408: ("toolate", "The request took too long"),
    413: ("toolarge", "The request is too large"),
    415: ("mediatype", "The body is of another kind than this route reads"),
    422: ("invalid", "A field is not as the schema says"),
    429: ("busy", "Too much is asked at once"),
    503: ("unavailable", "Something that we need cannot be used now"),
}
log = logs.get("http")


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with a field; `pointer` is a JSON pointer."""

    pointer: str
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 9457. `current_version` and `next_version` come with a refused version of a snapshot."""

    type: str
    title: str
    status: int
    detail: str = ""
    instance: str = ""
    request_id: str = ""
    errors: tuple[FieldError, ...] = ()
    current_version: int | None = None
    next_version: int | None = None


def request_id(request: Request[Any, Any, Any]) -> str:
    """The id of this request, as it is echoed."""
    return str(request.scope.get(SCOPE_KEY, ""))


def refused(request: Request[Any, Any, Any], error: AegisError) -> Response[bytes]:
    """Our errors as problems."""
    status, title = next((code, words) for kind, code, words in STATUS if isinstance(error, kind))
    if isinstance(error, Forbidden):
        _note_attempt(request, error)
    errors: tuple[FieldError, ...] = ()
    if isinstance(error, Invalid) and error.path:
        errors = (FieldError(pointer(error.path), str(error)),)
    current = getattr(error, "current", None)
    problem = Problem(
        type=URN + type(error).__name__.lower(),
        title=title,
        status=status,
        detail=str(error),
        instance=request.url.path,
        request_id=request_id(request),
        errors=errors,
        current_version=current,
        next_version=getattr(error, "following", None),
    )
    return _answer(problem, {"Retry-After": "1"} if status in (429, 503) else {})


def _note_attempt(request: Request[Any, Any, Any], error: AegisError) -> None:
    """Say who tried what; a token that goes on trying is written ten times in ten seconds, then counted."""
    by = request.scope.get("user")
    client = request.client
    log.warning(
        "an attempt is refused",
        subject=getattr(by, "id", "") or "no token",
        actor=getattr(by, "name", ""),
        role=getattr(by, "role", ""),
        source=client.host if client else "",
        method=request.method,
        path=request.url.path[:MAX_SHOWN],
        why=str(error)[:MAX_SHOWN],
        request_id=request_id(request),
    )


def failed(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """The framework's refusals as problems; a broken body or parameter is 422 with its path."""
    status = error.status_code
    extra = error.extra if isinstance(error.extra, list) else []
    errors = tuple(
        FieldError(pointer(str(e.get("key", ""))), str(e.get("message", "")))
        for e in extra
        if isinstance(e, dict)
    )
    if status == 400 and (errors or error.detail.startswith("Validation")):
        status = 422
    kind, title = OF_STATUS.get(status, ("http", "The request is refused"))
    problem = Problem(
        type=URN + kind,
        title=title,
        status=status,
        detail="; ".join(f"{e.pointer}: {e.detail}" for e in errors) or error.detail,
        instance=request.url.path,
        request_id=request_id(request),
        errors=errors,
    )
    return _answer(problem, dict(error.headers or {}))


def broken(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """A mistake of ours: logged, and told without its inside."""
    log.error("request failed", path=request.url.path, request_id=request_id(request), exc_info=error)
    problem = Problem(
        URN + "internal", "A mistake of ours", 500, "the log says why", request.url.path, request_id(request)
    )
    return _answer(problem, {})


class Line(Response[Any]):
    """An answer whose JSON is one whole line, as terminals like it."""

    def render(self, content: Any, media_type: str, enc_hook: Serializer = default_serializer) -> bytes:
        """See `Response.render`."""
        rendered = super().render(content, media_type, enc_hook)
        whole = content is None or isinstance(content, bytes)
        return rendered if whole or "json" not in media_type else rendered + b"\n"


def _answer(problem: Problem, headers: dict[str, str]) -> Response[bytes]:
    return Response(
        msgspec.json.encode(problem) + b"\n", status_code=problem.status, media_type=PROBLEM, headers=headers
    )


def accounted(app: ASGIApp, routes: Mapping[str, Collection[str]]) -> ASGIApp:
    """Gives each request an id, echoes it, counts the answer, and lets nobody keep it. `routes` are the
    methods of each path as the application has it; a metric names nothing else, since a client chooses it.
    """

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        started = time.monotonic()
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        number = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        is_head = scope["method"] == "HEAD"
        if is_head:  # as a GET, whose body is left out: RFC 9110 wants it wherever there is a GET
            scope = cast("Scope", {**scope, "method": "GET"})
        cast("dict[str, object]", scope)[SCOPE_KEY] = number

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableScopeHeaders.from_message(message)
                headers["X-Request-Id"] = number
                headers.setdefault("Cache-Control", "no-store")
                metrics.requests.labels(*_labels(scope, routes), str(message["status"])).inc()
                metrics.request_seconds.observe(time.monotonic() - started)
            if is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await app(scope, receive, tagged)

    return wrapped


def _labels(scope: Scope, routes: Mapping[str, Collection[str]]) -> tuple[str, str]:
    route = str(scope.get("path_template", ""))
    methods = routes.get(route, ())
    method = str(scope.get("method", ""))
    return (method if method in methods else OTHER), (route if methods else NO_ROUTE)


def table(app: Litestar) -> dict[str, frozenset[str]]:
    """The methods of each route of an application."""
    found: dict[str, set[str]] = {}
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            found.setdefault(route.path_format, set()).update(handler.http_methods)
    return {path: frozenset(methods) for path, methods in found.items()}


async def refuse(scope: Scope, send: Send, error: AegisError | HTTPException) -> None:
    """Answer a request that is not given to the application."""
    request: Request[Any, Any, Any] = Request(scope)
    answer = refused(request, error) if isinstance(error, AegisError) else failed(request, error)
    headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
    body: bytes = answer.content
    headers += [(b"content-type", PROBLEM.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": answer.status_code or 500, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Document(JsonRenderPlugin):
    """The OpenAPI document, rendered once: who asks for it may have no token."""

    _made: bytes = b""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """See `JsonRenderPlugin.render`."""
        self._made = self._made or super().render(request, openapi_schema)
        return self._made


class Page(OpenAPIRenderPlugin):
    """The OpenAPI document as one page of plain HTML: no script, nothing from other hosts."""

    _made: bytes = b""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page, rendered once."""
        del request
        self._made = self._made or self._page(openapi_schema)
        return self._made

    def _page(self, openapi_schema: dict[str, Any]) -> bytes:
        rows = []
        for path, methods in sorted(openapi_schema.get("paths", {}).items()):
            for method, operation in methods.items():
                words = operation.get("description") or operation.get("summary") or ""
                rows.append(
                    f"<section><h2><code>{html.escape(method.upper())} {html.escape(path)}</code></h2>"
                    f"<p>{html.escape(words)}</p>{_answers(operation)}</section>"
                )
        title = html.escape(openapi_schema["info"]["title"])
        return (
            "<!doctype html><html lang=en><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width'>"
            f"<title>{title}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;"
            "margin:2rem auto;"
            "padding:0 1rem}h2{font-size:1rem;border-top:1px solid #ccc;padding-top:1rem}</style>"
            f"<h1>{title}</h1><p>The same as <a href='/schema/openapi.json'>OpenAPI 3.1 (JSON)</a>.</p>"
            f"{''.join(rows)}</html>"
        ).encode()


def _answers(operation: dict[str, Any]) -> str:
    given = "".join(
        f"<li><code>{html.escape(code)}</code> {html.escape(answer.get('description', ''))}</li>"
        for code, answer in sorted(operation.get("responses", {}).items())
    )
    return f"<ul>{given}</ul>"


def openapi(title: str, words: str) -> OpenAPIConfig:
    """The configuration of a service's OpenAPI document."""
    return OpenAPIConfig(
        title=title,
        version=__version__,
        description=words,
        path="/schema",
        render_plugins=[Page(), Document()],
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(type="http", scheme="bearer", description="an API token")
            }
        ),
        security=[{"bearer": []}],
        use_handler_docstrings=True,
    )


def documented(app: Litestar) -> Litestar:
    """State in the OpenAPI document that every operation may answer with a problem, and make it."""
    properties = {
        name: Schema(type=kind)
        for name, kind in (
            ("type", OpenAPIType.STRING),
            ("title", OpenAPIType.STRING),
            ("status", OpenAPIType.INTEGER),
            ("detail", OpenAPIType.STRING),
            ("instance", OpenAPIType.STRING),
            ("request_id", OpenAPIType.STRING),
            ("errors", OpenAPIType.ARRAY),
            ("current_version", OpenAPIType.INTEGER),
            ("next_version", OpenAPIType.INTEGER),
        )
    }
    problem = Schema(type=OpenAPIType.OBJECT, required=["type", "title", "status"], properties={**properties})
    answer = OpenAPIResponse(
        description="a problem (RFC 9457); the status says which",
        content={PROBLEM: OpenAPIMediaType(schema=problem)},
    )
    for item in (app.openapi_schema.paths or {}).values():
        for operation in (item.get, item.put, item.post, item.delete):
            if operation is not None and operation.responses is not None:
                operation.responses.pop("400", None)
                operation.responses["default"] = answer
    # Made now: the first to ask, who needs no token, would hold up the event loop meanwhile.
    app.plugins.get(OpenAPIPlugin).provide_openapi_schema()
    return app
