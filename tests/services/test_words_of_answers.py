"""No answer has words of a library: not of a body that cannot be read, nor of a text that a pattern does not
take, on no route of no service; and each refusal has a type of ours."""

import ast
import json
import re
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from litestar.testing import TestClient
from structlog.testing import capture_logs

from aegisflux.domain import json_text, patterns
from aegisflux.domain.errors import Invalid
from aegisflux.domain.roles import Principal
from aegisflux.runtime import access
from aegisflux.services.enrich import api as enrich
from aegisflux.services.ingest import api as ingest
from aegisflux.services.orchestrator import api as orchestrator
from aegisflux.services.segmenter import api as segmenter

ROOT = Path(__file__).parents[2]
SERVICES = {"orchestrator": orchestrator, "ingest": ingest, "enrich": enrich, "segmenter": segmenter}
METHODS = ("get", "put", "post", "delete")
LIBRARIES = re.compile(
    r"regex|\(\?|\\u0000-|\^\[|truncated|malformed|Traceback|JSON is|Input data|Expecting |msgspec|litestar|"
    r"asyncpg|Object (missing|contains)|`|NoneType|about:blank"
)
BODIES = {
    "nothing": b"", "spaces": b" \n", "an open object": b"{", "an open text": b'{"a', "no JSON": b"nul",
    "two": b"{} {}", "a comma": b'{"a":1,}', "a bad escape": b'{"a":"\\x"}', "an array": b"[1]",
    "a text": b'"a"', "a number beyond": b"1e999", "a long number": b"9" * 5000,
    "not UTF-8": b'{"a":"\xff"}', "deep": b"[" * 5000,
}  # fmt: skip


class Anybody:
    """Bearers that know every token, as the role that its text names."""

    async def principal(self, token, *, fresh=True):
        return Principal("somebody", token, "web-1" if token == "source" else None, id="0123")


@contextmanager
def client_of(name):
    app = SERVICES[name].application(None)
    app.state[access.STATE] = Anybody()
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, json.loads(json.dumps(app.openapi_schema.to_schema()))


def operations(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield method.upper(), path, operation


def filled(path, operation):
    for one in operation.get("parameters", ()):
        if one["in"] == "path":
            text = "7" if one["schema"].get("type") == "integer" else "0123456789abcdef"
            path = path.replace("{" + one["name"] + "}", text)
    return path


def ours(answer, what):
    problem = answer.json()
    assert not LIBRARIES.search(answer.text), (what, answer.text)
    assert problem["type"].startswith("urn:aegisflux:problem:"), (what, problem)
    assert re.fullmatch(r"[A-Z][a-z ]+", problem["title"]), (what, problem)
    return problem


def texts(schema, document, path=()):
    """The places of texts in a body, as far as the document says: paths of keys."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for part in (*schema.get("oneOf", ()), *schema.get("anyOf", ())):
        yield from texts(part, document, path)
    if schema.get("type") == "string" and "pattern" in schema:
        yield path
    for name, part in schema.get("properties", {}).items():
        if len(path) < 3:
            yield from texts(part, document, (*path, name))


@pytest.mark.parametrize("name", SERVICES)
def test_a_body_that_cannot_be_read_is_refused_in_our_words(name):
    with client_of(name) as (client, document):
        count = 0
        for method, path, operation in operations(document):
            if "requestBody" not in operation:
                continue
            bearer = "source" if path == "/api/v1/events" else "admin"
            for what, body in BODIES.items():
                headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
                answer = client.request(method, filled(path, operation), content=body, headers=headers)
                if answer.status_code in (400, 413, 415, 422):
                    ours(answer, (method, path, what))
                    count += 1
        assert count or name in ("enrich", "ingest"), "which read no body, or bytes"


@pytest.mark.parametrize("name", SERVICES)
def test_a_text_that_no_pattern_takes_is_refused_in_our_words(name):
    with client_of(name) as (client, document):
        for method, path, operation in operations(document):
            headers = {"Authorization": "Bearer admin"}
            for one in operation.get("parameters", ()):
                if one["in"] == "query":
                    answer = client.request(
                        method, filled(path, operation), params={one["name"]: "\u202e{}\n"}, headers=headers
                    )
                    if answer.status_code == 422:
                        ours(answer, (method, path, one["name"]))
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for place in texts(content.get("schema", {}), document):
                body = "\u202e{}\n"
                for key in reversed(place):
                    body = {key: body}
                answer = client.request(method, filled(path, operation), json=body, headers=headers)
                if answer.status_code == 422:
                    ours(answer, (method, path, place))


@pytest.mark.parametrize("name", SERVICES)
def test_who_may_not_is_refused_as_one_problem_and_written_into_the_log(name):
    with client_of(name) as (client, document):
        for method, path, operation in operations(document):
            token = "viewer" if path == "/api/v1/events" and method == "POST" else "source"
            with capture_logs() as lines:
                answer = client.request(
                    method, filled(path, operation), headers={"Authorization": f"Bearer {token}"}
                )
            if answer.status_code != 403:
                continue
            problem = ours(answer, (method, path))
            assert (problem["type"], problem["title"]) == (
                "urn:aegisflux:problem:forbidden", "This is not allowed"
            )  # fmt: skip
            (line,) = [one for one in lines if one["event"] == "an attempt is refused"]
            assert (line["actor"], line["role"], line["method"]) == ("somebody", token, method)
            assert line["path"] == filled(path, operation)
            assert line["why"] == problem["detail"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_the_framework_refuses_has_a_type_and_a_title_of_ours(name):
    with client_of(name) as (client, _):
        for method, path, status in (
            ("GET", "/nowhere", 404), ("DELETE", "/healthz", 405), ("GET", "/metrics", 401),
            ("PUT", "/version", 405),
        ):  # fmt: skip
            answer = client.request(method, path)
            assert answer.status_code == status
            ours(answer, (method, path))


@pytest.mark.parametrize("name", SERVICES)
def test_readiness_in_detail_is_for_viewers(name):
    details = {}
    with client_of(name) as (client, _):
        client.app.state["checks"] = {"store": _version, "graph": _count}
        for token in ("", "source", "viewer", "operator", "admin"):
            answer = client.get("/readyz", headers={"Authorization": f"Bearer {token}"} if token else {})
            assert answer.status_code == 200
            found = answer.json()["dependencies"]
            assert [(one["name"], one["ok"]) for one in found] == [("store", True), ("graph", True)]
            details[token] = [one["detail"] for one in found]
    told = ["PostgreSQL 17.2", "12 hosts"]
    assert details == {"": ["", ""], "source": ["", ""], "viewer": told, "operator": told, "admin": told}


async def _version():
    return "PostgreSQL 17.2"


async def _count():
    return "12 hosts"


def test_each_pattern_of_our_schemas_has_words():
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text())
        known = {
            node.targets[0].id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            if isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "pattern":
                value = node.value
                found.add(
                    known.get(value.id) if isinstance(value, ast.Name) else getattr(value, "value", None)
                )
    found = {text for text in found if isinstance(text, str) and text.startswith("^")}
    assert len(found) > 5
    assert [text for text in found if patterns.in_words(text) == patterns.UNKNOWN] == []


@pytest.mark.parametrize("what", BODIES)
def test_json_is_refused_in_our_words(what):
    with suppress(Invalid):  # some of them are JSON
        json_text.parse(BODIES[what], what="a JSON object")
        return
    with pytest.raises(Invalid, match="expected a JSON object, got ") as found:
        json_text.parse(BODIES[what], what="a JSON object")
    assert not LIBRARIES.search(str(found.value))
