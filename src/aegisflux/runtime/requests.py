"""Requests that mean what they say: query parameters, numbers in paths, headers, and bodies of JSON, checked
for every route of every service after its guards and before its handler.

What a route reads is taken from its OpenAPI document, so that what is documented is what is accepted.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from litestar import Litestar, Request
from litestar.openapi.spec import OpenAPIType, Operation, Schema
from litestar.openapi.spec import Parameter as Documented

from aegisflux.domain import json_text
from aegisflux.domain.decoding import converted
from aegisflux.domain.errors import Invalid
from aegisflux.runtime.beside import beside
from aegisflux.wire import query
from aegisflux.wire.query import Parameter

STATE: Final = "query_parameters"
LARGE: Final = 64 << 10
BYTES_OF_A_VALUE: Final = 16  # at least, of a body that is as long as its route takes
_PART: Final = re.compile(r"\{([A-Za-z_]+):(?:int|str)\}")
SINGLE: Final = ("authorization", "content-type", "content-encoding", "idempotency-key")
_LIMITS: Final = ("minimum", "maximum", "max_length", "enum", "pattern")
Known = dict[tuple[str, str], "Read"]


class Read:
    """What a route reads: its query parameters and headers, whether a body, the type that a JSON body becomes
    (None: the handler reads the bytes itself), and the parameters in its path by their place."""

    def __init__(self, path: str, operation: Operation | None, handler: Any) -> None:
        documented = (operation.parameters or []) if operation else []
        every = [one for one in documented if isinstance(one, Documented)]
        self.query, self.headers, inside = (
            {one.name: _parameter(one) for one in every if one.param_in == place}
            for place in ("query", "header", "path")
        )
        self.body = bool(operation and operation.request_body)
        data = handler.parsed_fn_signature.parameters.get("data")
        self.data = data.annotation if data is not None else None
        self.values = (handler.resolve_request_max_body_size() or 0) // BYTES_OF_A_VALUE
        parts = enumerate(path.strip("/").split("/"))
        named = ((place, found[1]) for place, part in parts if (found := _PART.fullmatch(part)))
        self.path = {place: (name, inside.get(name, Parameter())) for place, name in named}


def reads(app: Litestar) -> Known:
    """Return what each route of an application reads, by its path and method."""
    paths = app.openapi_schema.paths or {}
    return {
        (route.path_format, method): Read(
            route.path, getattr(paths.get(route.path_format), method.lower(), None), handler
        )
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        for method in handler.http_methods
    }


async def check(request: Request[Any, Any, Any]) -> None:
    """Refuse a request that says what its route does not read, or that could be read in two ways."""
    found: Read = request.app.state[STATE][request.scope["path_template"], request.method]
    seen = query.check(request.scope["query_string"], found.query)
    query.check_path(request.scope.get("raw_path", b""), "path")
    _check_path(request.scope["path"], found.path)
    _check_headers(request, found.headers)
    if found.data is not None:
        body = await request.body()
        if len(body) > LARGE:
            await beside(_check_body, body, found)
        else:
            _check_body(body, found)
    elif not found.body and _announced(request):
        body = await request.body()
        if body.strip() not in (b"", b"{}"):
            raise Invalid("body", "no body: this route reads none", body.decode("latin-1"))
    query.check_required(seen, found.query)


def _announced(request: Request[Any, Any, Any]) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def _check_body(body: bytes, found: Read) -> None:
    raw = json_text.parse(body, what="a JSON object", most=found.values)
    json_text.require_no_nul(body, raw)
    converted(raw, found.data)


def _check_path(path: str, known: Mapping[int, tuple[str, Parameter]]) -> None:
    """The framework reads numbers as `int()` does: in digits of any script, with signs and underscores."""
    given = path.strip("/").split("/")
    for place, (name, parameter) in known.items():
        query.check_value(given[place], parameter, name)


def _check_headers(request: Request[Any, Any, Any], known: Mapping[str, Parameter]) -> None:
    for name in SINGLE:
        if len(request.headers.getall(name, [])) > 1:
            raise Invalid(name, "this header once", "it more than once")
    for name, parameter in known.items():
        for value in request.headers.getall(name, []):
            query.check_value(value, parameter, name)


def _parameter(one: Documented) -> Parameter:
    types, formats, said = set[str](), set[str](), dict[str, Any]()
    waiting: list[Any] = [one.schema]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, Schema):
            continue
        kinds = schema.type if isinstance(schema.type, list) else [schema.type]
        types |= {str(getattr(kind, "value", kind)) for kind in kinds}
        formats |= {str(getattr(schema.format, "value", schema.format))}
        said |= {name: value for name in _LIMITS if (value := getattr(schema, name)) is not None}
        waiting += [*(schema.one_of or ()), *(schema.any_of or ())]
    kind = (
        "time" if "date-time" in formats else next((k for k in ("integer", "boolean") if k in types), "text")
    )
    return Parameter(
        kind,
        many=OpenAPIType.ARRAY.value in types,
        required=one.required,
        least=_whole(said.get("minimum", 0)),  # the framework documents no 0 of what may be left out
        most=_whole(said.get("maximum")),
        longest=said.get("max_length"),
        words=tuple(said.get("enum", ())),
        form=said.get("pattern", ""),
    )


def _whole(number: float | None) -> int | None:
    """A limit of integers; the framework keeps it as a float."""
    return None if number is None else int(number)
