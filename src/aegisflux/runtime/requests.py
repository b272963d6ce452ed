"""Requests that mean what they say: query parameters, numbers in paths, headers, and bodies of JSON, checked
for every route of every service after its guards and before its handler.

What a route reads is taken from its OpenAPI document, so that what is documented is what is accepted.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final

from litestar import Litestar, Request
from litestar.openapi.spec import OpenAPIType, Operation, Schema
from litestar.openapi.spec import Parameter as Documented

from aegisflux.domain import json_text
from aegisflux.domain.decoding import converted
from aegisflux.domain.errors import Invalid
from aegisflux.wire import query
from aegisflux.wire.query import Parameter

STATE: Final = "query_parameters"
LARGE: Final = 64 << 10
_NUMBER: Final = re.compile(r"0|[1-9][0-9]*")
_INTEGER_PART: Final = re.compile(r"\{([A-Za-z_]+):int\}")
SINGLE: Final = ("authorization", "content-type", "content-encoding", "idempotency-key")
Known = dict[tuple[str, str], "Read"]


class Read:
    """What a route reads: its query parameters, whether a body, the type that a JSON body becomes (None: the
    handler reads the bytes itself), and the numbers in its path by their place."""

    def __init__(self, path: str, operation: Operation | None, handler: Any) -> None:
        documented = (operation.parameters or []) if operation else []
        every = (one for one in documented if isinstance(one, Documented))
        self.query = {one.name: _parameter(one) for one in every if one.param_in == "query"}
        self.body = bool(operation and operation.request_body)
        data = handler.parsed_fn_signature.parameters.get("data")
        self.data = data.annotation if data is not None else None
        parts = enumerate(path.strip("/").split("/"))
        self.numbers = {place: found[1] for place, part in parts if (found := _INTEGER_PART.fullmatch(part))}


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
    query.check(request.scope["query_string"], found.query)
    _check_path(request.scope["path"], found.numbers)
    _check_headers(request)
    if found.data is not None:
        body = await request.body()
        if len(body) > LARGE:
            await asyncio.to_thread(_check_body, body, found.data)
        else:
            _check_body(body, found.data)
    elif not found.body and _announced(request):
        body = await request.body()
        if body.strip() not in (b"", b"{}"):
            raise Invalid("body", "no body: this route reads none", body.decode("latin-1"))


def _announced(request: Request[Any, Any, Any]) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def _check_body(body: bytes, kind: Any) -> None:
    converted(json_text.parse(body, what="a JSON object"), kind)


def _check_path(path: str, numbers: Mapping[int, str]) -> None:
    """The framework reads numbers as `int()` does: in digits of any script, with signs and underscores."""
    given = path.strip("/").split("/")
    for place, name in numbers.items():
        if not _NUMBER.fullmatch(given[place]):
            raise Invalid(name, "a number in ASCII digits, without leading zeros", given[place])


def _check_headers(request: Request[Any, Any, Any]) -> None:
    for name in SINGLE:
        if len(request.headers.getall(name, [])) > 1:
            raise Invalid(name, "this header once", "it more than once")


def _parameter(one: Documented) -> Parameter:
    types, formats = set[str](), set[str]()
    waiting: list[Any] = [one.schema]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, Schema):
            continue
        kinds = schema.type if isinstance(schema.type, list) else [schema.type]
        types |= {str(getattr(kind, "value", kind)) for kind in kinds}
        formats |= {str(getattr(schema.format, "value", schema.format))}
        waiting += [*(schema.one_of or ()), *(schema.any_of or ())]
    kind = (
        "time" if "date-time" in formats else next((k for k in ("integer", "boolean") if k in types), "text")
    )
    return Parameter(kind, OpenAPIType.ARRAY.value in types)
