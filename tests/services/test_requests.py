"""What a request says that its route does not read is refused, on every route of every service."""

import asyncio
import json
from contextlib import ExitStack
from typing import Any

import pytest
from litestar.testing import TestClient

from aegisflux.domain import json_text, snapshot
from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.roles import Principal
from aegisflux.runtime import access, requests
from aegisflux.services.enrich import api as enrich
from aegisflux.services.ingest import api as ingest
from aegisflux.services.orchestrator import api as orchestrator
from aegisflux.services.segmenter import api as segmenter

SERVICES = {one.__name__.split(".")[-2]: one for one in (orchestrator, ingest, enrich, segmenter)}
METHODS = ("get", "put", "post", "delete")
UNDOCUMENTED = ("/schema", "/schema/openapi.json")
VALUES = {"integer": "7", "boolean": "true", "date-time": "2026-11-30T12:00:00Z"}


class Anybody:
    """Bearers that know every token, as the role that its text names."""

    async def principal(self, token: str, *, fresh: bool = True) -> Principal:
        host = "web-1" if token == "source" else None
        return Principal("somebody", token, host)  # type: ignore[arg-type]


def documented(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        json.dumps(SERVICES[name].application(None).openapi_schema.to_schema())
    )
    return found


def operations() -> list[tuple[str, str, str, dict[str, Any]]]:
    """(service, method, path, operation) of every route of every service."""
    found = [
        (name, method, path, operation)
        for name in SERVICES
        for path, item in documented(name)["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]
    return found + [(name, "get", path, {}) for name in SERVICES for path in UNDOCUMENTED]


ROUTES = operations()
NAMES = [f"{name} {method.upper()} {path}" for name, method, path, _ in ROUTES]


@pytest.fixture(scope="module")
def clients():
    with ExitStack() as stack:
        found = {}
        for name, module in SERVICES.items():
            app = module.application(None)
            app.state[access.STATE] = Anybody()
            found[name] = stack.enter_context(TestClient(app, raise_server_exceptions=False))
        yield found


def asked(clients, route, query: str, body: bytes | None = None, **more):
    name, method, path, operation = route
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            kind = parameter["schema"].get("type")
            text = "7" if kind == "integer" else "0123456789abcdef"
            path = path.replace("{" + parameter["name"] + "}", text)
    bearer = "source" if path == "/api/v1/events" and method == "post" else "admin"
    headers = {"Authorization": f"Bearer {bearer}", **more}
    return clients[name].request(method, path + query, content=body, headers=headers)


def parameters(route) -> dict[str, dict[str, Any]]:
    return {p["name"]: p["schema"] for p in route[3].get("parameters", ()) if p["in"] == "query"}


def kinds(schema: dict[str, Any]) -> set[str]:
    found = {str(schema.get("type")), str(schema.get("format"))}
    for part in (*schema.get("oneOf", ()), *schema.get("anyOf", ())):
        found |= kinds(part)
    return found


def value_of(schema: dict[str, Any]) -> str:
    return next((text for kind, text in VALUES.items() if kind in kinds(schema)), "egress")


def refused(answer, pointer: str) -> str:
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    assert [error["pointer"] for error in problem["errors"]] == [pointer], problem
    return str(problem["detail"])


def test_the_walk_covers_every_service():
    assert {name for name, *_ in ROUTES} == set(SERVICES)
    assert len(ROUTES) > 75


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_a_parameter_that_a_route_does_not_read_is_refused_by_name(clients, route):
    detail = refused(asked(clients, route, "?surely_unknown=1"), "/surely_unknown")
    for name in parameters(route):
        assert name in detail


SPELLED = [
    pytest.param(lambda name: name.upper(), id="upper"),
    pytest.param(lambda name: name.title(), id="title"),
    pytest.param(lambda name: name + "s", id="plural"),
    pytest.param(lambda name: name.replace("_", "-") + "-", id="dashes"),
    pytest.param(lambda name: name.replace("_", "") + "_", id="underscores"),
    pytest.param(lambda name: name[0].upper() + name[1:].replace("_", ""), id="camel"),
]


@pytest.mark.parametrize("spell", SPELLED)
@pytest.mark.parametrize("route", [r for r in ROUTES if parameters(r)], ids=lambda r: f"{r[1]} {r[2]}")
def test_a_name_in_other_letters_is_refused_and_the_right_one_is_named(clients, route, spell):
    for name, schema in parameters(route).items():
        detail = refused(asked(clients, route, f"?{spell(name)}={value_of(schema)}"), f"/{spell(name)}")
        assert f"did you mean {name}?" in detail


@pytest.mark.parametrize("route", [r for r in ROUTES if parameters(r)], ids=lambda r: f"{r[1]} {r[2]}")
def test_empty_values_repeated_scalars_and_broken_encodings_are_refused(clients, route):
    for name, schema in parameters(route).items():
        good = value_of(schema)
        for query in (
            f"?{name}=",
            f"?{name}",
            f"?{name}=%20",
            f"?{name}=%zz",
            f"?{name}=%ff",
            f"?{name}=a%00",
        ):
            refused(asked(clients, route, query), f"/{name}")
        if "array" not in kinds(schema):
            assert "one value" in refused(asked(clients, route, f"?{name}={good}&{name}={good}"), f"/{name}")


@pytest.mark.parametrize("route", [r for r in ROUTES if parameters(r)], ids=lambda r: f"{r[1]} {r[2]}")
def test_values_that_a_lenient_reader_takes_for_others_are_refused(clients, route):
    """Every one of these was another number, truth or moment, or was at least taken."""
    lenient = {
        "integer": (
            "1e2",
            "5.0",
            "+5",
            "%2B5",
            "05",
            "1_0",
            "%D9%A5",
            "%EF%BC%95",
            "0x5",
            "%205",
            "-0",
            "5;limit=9",
        ),
        "boolean": (
            "1",
            "0",
            "-1",
            "True",
            "TRUE",
            "False",
            "yes",
            "on",
            "t",
            "01",
            "%D9%A1",
            "null",
            "true;dry_run=false",
        ),
        "date-time": ("5", "1e9", "0.5", "2026-11-30", "2026-11-30T12:00:00", "2026-11-30T12:00:00+01:00"),
    }
    for name, schema in parameters(route).items():
        for text in next((texts for kind, texts in lenient.items() if kind in kinds(schema)), ()):
            refused(asked(clients, route, f"?{name}={text}"), f"/{name}")


@pytest.mark.parametrize("route", [r for r in ROUTES if parameters(r)], ids=lambda r: f"{r[1]} {r[2]}")
def test_documented_parameters_are_read(clients, route):
    """Behind the check there is nothing here, so that whatever passes it fails with 500, or with its body."""
    for name, schema in parameters(route).items():
        answer = asked(clients, route, f"?{name}={value_of(schema)}")
        assert f"/{name}" not in [e["pointer"] for e in answer.json().get("errors", ())], answer.text


@pytest.mark.parametrize(
    "query", ["?target_host=c1,c2", "?target_host=c1&target_host=c2", "?target_host=c1%2Cc2"]
)
def test_target_hosts_come_comma_separated_repeated_or_both(clients, query):
    for method in ("post", "delete"):
        path = "/seg/maps" if method == "post" else "/seg/maps/101"
        headers = {"Authorization": "Bearer admin"}
        answer = clients["orchestrator"].request(method, path + query, headers=headers)
        assert answer.status_code == 500, answer.text  # it got as far as the orchestrator that is not there


BODILESS = [r for r in ROUTES if "requestBody" not in r[3]]


@pytest.mark.parametrize("route", BODILESS, ids=lambda r: f"{r[0]} {r[1]} {r[2]}")
def test_a_body_that_a_route_does_not_read_is_refused(clients, route):
    """`DELETE /seg/maps/101` with the target hosts in a body withdrew from all hosts."""
    assert "no body" in refused(asked(clients, route, "", b'{"target_host":["c1"]}'), "/body")
    needed = [
        f"{p['name']}=7" for p in route[3].get("parameters", ()) if p["in"] == "query" and p["required"]
    ]
    for empty in (b"", b"{}", b" {}\n"):
        assert asked(clients, route, "?" * bool(needed) + "&".join(needed), empty).status_code != 422


NUMBERED = [r for r in ROUTES if any(p["in"] == "path" and p["schema"].get("type") == "integer"
                                     for p in r[3].get("parameters", ()))]  # fmt: skip


@pytest.mark.parametrize("text", ["%D9%A7", "%EF%BC%97", "07", "+7", "%2B7", "1_0", "%207", "7%20", "-0"])
@pytest.mark.parametrize("route", NUMBERED, ids=lambda r: f"{r[1]} {r[2]}")
def test_numbers_in_paths_are_ascii_digits(clients, route, text):
    name, method, path, operation = route
    (number,) = (p["name"] for p in operation["parameters"] if p["in"] == "path")
    headers = {"Authorization": "Bearer admin"}
    answer = clients[name].request(method, path.replace("{" + number + "}", text), headers=headers)
    refused(answer, f"/{number}")


URN = "urn:aegisflux:problem:invalid"


def said(schema: dict[str, Any], key: str) -> Any:
    """A limit of a schema, or of one of its alternatives."""
    return next((one[key] for one in (schema, *schema.get("oneOf", ())) if key in one), None)


def limited(where: str) -> list[Any]:
    """(route, name, schema) of every parameter in a place that can have a value which it cannot hold."""
    found = []
    for route in ROUTES:
        for one in route[3].get("parameters", ()):
            schema = one["schema"]
            if one["in"] == where and ("integer" in kinds(schema) or said(schema, "maxLength")
                                       or said(schema, "enum") or said(schema, "pattern")):  # fmt: skip
                name = f"{route[0]} {route[1]} {route[2]} {one['name']}"
                found.append(pytest.param(route, one["name"], schema, id=name))
    return found


def beyond(schema: dict[str, Any]) -> tuple[str, ...]:
    """Values that the schema of a parameter does not allow."""
    if "integer" in kinds(schema):
        least, most = int(said(schema, "minimum") or 0), int(said(schema, "maximum"))
        return str(least - 1), "-1", str(most + 1), str(2**64), "9" * 4000
    if longest := said(schema, "maxLength"):
        return ("x" * (longest + 1),)
    return ("Egress", "0123456789abcdeg")


def ours(answer, name: str, value: str) -> None:
    """The answer is a problem as all of ours are: by its type, with what came."""
    detail = refused(answer, f"/{name}")
    assert answer.json()["type"] == URN
    assert f'got "{value[:20]}' in detail


@pytest.mark.parametrize(("route", "name", "schema"), limited("query"))
def test_a_value_beyond_its_limits_is_told_with_the_limits_and_the_value(clients, route, name, schema):
    for value in beyond(schema):
        ours(asked(clients, route, f"?{name}={value}"), name, value)


@pytest.mark.parametrize(("route", "name", "schema"), limited("path"))
def test_a_part_of_a_path_beyond_its_limits_is_told_with_the_value(clients, route, name, schema):
    service, method, path, _ = route
    for value in beyond(schema):
        answer = clients[service].request(
            method, path.replace("{" + name + "}", value), headers={"Authorization": "Bearer admin"}
        )
        ours(answer, name, value)


@pytest.mark.parametrize(("route", "name", "schema"), limited("header"))
def test_a_header_beyond_its_limits_is_told_with_the_value(clients, route, name, schema):
    for value in beyond(schema):
        ours(asked(clients, route, "", **{name: value}), name, value)


def test_the_limits_of_parameters_are_walked_and_every_number_has_some():
    assert [len(limited(where)) for where in ("query", "path", "header")] == [33, 25, 2]


def test_a_parameter_that_has_to_come_is_asked_for_as_all_else_is(clients):
    answer = clients["orchestrator"].get("/seg/maps/7/why", headers={"Authorization": "Bearer admin"})
    assert "this route needs it" in refused(answer, "/peer")
    assert answer.json()["type"] == URN


READ = [r for r in ROUTES if "requestBody" in r[3] and r[2] not in ("/seg/maps", "/api/v1/events")]
AMBIGUOUS = [
    pytest.param(b'{"a":1,"a":1}', "/a", id="the same twice"),
    pytest.param(b'{"a":1,"b":2,"a":3}', "/a", id="with another between"),
    pytest.param(b'{"a":{"b":[{"c":1,"c":2}]}}', "/a/b/0/c", id="nested"),
    pytest.param(b'{"a":1,"\\u0061":2}', "/a", id="escaped"),
    pytest.param(b'{"a" :1, "a"\t:2}', "/a", id="spaced"),
    pytest.param(b'{"a/b":{"~":0,"~":1}}', "/a~1b/~0", id="keys to be escaped"),
    pytest.param(b'{"x":{"y":1},"x":{"y":1,"y":2}}', "/x", id="the outer first"),
    pytest.param(b'{"":":a","":1}', "/", id="the empty key"),
]
BROKEN = {
    "BOM": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "UTF-16 without BOM": '{"a":1}'.encode("utf-16-le"),
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "beyond a double": b'{"a":1e999}',
    "lone surrogate": b'{"a":"\\ud800"}',
    "lone surrogate as a key": b'{"\\udc00":1}',
    "surrogates in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "not UTF-8": b'{"a":"\xff"}',
    "NUL behind": b"{}\x00",
    "two documents": b"{} {}",
    "a comment": b'{"a":1 // b\n}',
    "single quotes": b"{'a':1}",
    "trailing comma": b'{"a":1,}',
    "control character": b'{"a":"\x01"}',
    "leading zero": b'{"a":01}',
    "plus sign": b'{"a":+1}',
    "deep": b"[" * 100_000,
    "nothing": b"",
    "spaces": b" \n",
}


@pytest.mark.parametrize(("body", "pointer"), AMBIGUOUS)
@pytest.mark.parametrize("route", READ, ids=lambda r: f"{r[1]} {r[2]}")
def test_keys_that_come_twice_are_refused_with_their_path(clients, route, body, pointer):
    assert "once" in refused(asked(clients, route, "", body), pointer)


@pytest.mark.parametrize("route", READ, ids=lambda r: f"{r[1]} {r[2]}")
def test_json_that_two_readers_could_understand_differently_is_refused(clients, route):
    for name, body in BROKEN.items():
        answer = asked(clients, route, "", body)
        assert answer.status_code == 422, (name, answer.text)


BODIES = {"/segment/propose": 2 << 20, "/segment/plan": 4 << 20}
MANY = {
    "lists": (b"[", b"[],", b"[]]"),
    "objects": (b"[", b"{},", b"{}]"),
    "nested objects": (b'{"a":[', b'{"a":{}},', b"0]}"),
    "numbers": (b"[", b"1,", b"1]"),
    "with an escape": (b'["\\\\",', b"[],", b"[]]"),
}


@pytest.mark.parametrize("route", READ, ids=lambda r: f"{r[1]} {r[2]}")
def test_a_body_is_as_long_as_its_route_needs(clients, route):
    most = BODIES.get(route[2], 256 << 10)
    assert asked(clients, route, "", b'{"a":"' + b"x" * most + b'"}').status_code == 413
    assert asked(clients, route, "", b'{"a":"' + b"x" * (most - 100) + b'"}').status_code == 422


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("route", READ, ids=lambda r: f"{r[1]} {r[2]}")
def test_many_values_in_few_bytes_are_refused_before_they_are_read(clients, route, kind, monkeypatch):
    """16 MiB of `[],` took 800 MB and held the event loop for seconds."""
    first, each, last = MANY[kind]
    most = BODIES.get(route[2], 256 << 10)
    monkeypatch.setattr(json_text, "_surely_single", None)  # none is read
    body = first + each * ((most - 100) // len(each)) + last
    answer = asked(clients, route, "", body)
    assert answer.status_code == 422
    assert " values, got" in answer.json()["detail"]


def test_a_snapshot_has_as_many_values_as_its_entries_need():
    edge = b'{"dst_cidr":"10.0.0.0/8","proto":"tcp","port":1}'
    body = b'{"service_id":1,"version":1,"ttl_seconds":600,"edges":[' + b",".join([edge] * 100_001) + b"]}"
    with pytest.raises(OverLimit, match="entries"):
        snapshot.decode(body)
    with pytest.raises(Invalid, match="at most 1000000 values"):
        snapshot.decode(b"[" + b"[]," * 1_000_000 + b"[]]")


@pytest.mark.parametrize("value", ['"101"', "101.0", "1.01e2", "true", "[101]", "null", '"١٠١"'])
def test_a_number_is_a_number(clients, value):
    headers = {"Authorization": "Bearer admin"}
    body = b'{"service_id":%s}' % value.encode()
    answer = clients["orchestrator"].post("/seg/maps/promote", content=body, headers=headers)
    assert "an integer" in refused(answer, "/service_id")


@pytest.mark.parametrize(
    ("body", "pointer", "told"),
    [
        ('{"labels":{"env":"x","prod":true}}', "/labels/prod", "labels.prod: expected a string, got true"),
        ('{"labels":{"a.b":null}}', "/labels/a.b", 'labels["a.b"]: expected a string, got null'),
        ('{"labels":[]}', "/labels", "labels: expected an object, got an array of 0"),
        ('{"label":{}}', "/label", "label: expected no such field"),
        ('{"ttl_seconds":"60"}', "/ttl_seconds", 'ttl_seconds: expected an integer, got "60"'),
    ],
)
def test_an_error_names_path_value_and_what_was_expected(clients, body, pointer, told):
    headers = {"Authorization": "Bearer admin"}
    answer = clients["orchestrator"].post("/api/v1/hosts/tokens", content=body.encode(), headers=headers)
    assert told in refused(answer, pointer)


async def over_asgi(app, headers: list[tuple[bytes, bytes]]) -> int:
    """The status of an answer: a client of HTTP joins headers that come twice into one."""
    scope = {
        "type": "http", "method": "POST", "path": "/seg/maps", "raw_path": b"/seg/maps", "root_path": "",
        "query_string": b"", "headers": headers, "client": None, "server": None, "scheme": "http",
        "http_version": "1.1", "asgi": {"version": "3.0"}, "extensions": {},
    }  # fmt: skip
    answers: list[dict[str, Any]] = []

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        answers.append(message)

    await app(scope, receive, send)
    return int(answers[0]["status"])


@pytest.mark.parametrize("name", requests.SINGLE)
def test_a_header_that_is_read_comes_once(clients, name):
    first = [(b"authorization", b"Bearer admin")]
    once = first if name == "authorization" else [*first, (name.encode(), b"Bearer admin")]
    twice = [*once, (name.encode(), b"Bearer admin")]
    app = clients["orchestrator"].app
    assert asyncio.run(over_asgi(app, once)) == 500  # as far as the orchestrator that is not there
    assert asyncio.run(over_asgi(app, twice)) == 422


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("path", ["/schema", "/schema/openapi.json"])
def test_the_document_is_made_before_anybody_asks_for_it(clients, name, path, monkeypatch):
    def late(_self):
        raise AssertionError("made while the event loop waits")

    monkeypatch.setattr("litestar.openapi.spec.OpenAPI.to_schema", late)
    assert clients[name].get(path).status_code == 200
