"""No text of a request hides anything from its reader: control characters, those that turn the direction of
what is displayed, and those that no one sees are refused in every field that is kept. The fields are those of
the OpenAPI documents: a new one is refused by its schema, or has its check here, or a reason.
"""

import json
import re

import pytest
from litestar.testing import TestClient
from tests.support.hostile import KINDS

from aegisflux.domain import json_text
from aegisflux.domain.errors import Invalid, NotFound, Refused
from aegisflux.domain.guardrails import Limits
from aegisflux.domain.names import check_label
from aegisflux.domain.net import parse_address, parse_cidr
from aegisflux.domain.roles import Principal
from aegisflux.domain.selectors import parse_selector
from aegisflux.runtime import access
from aegisflux.services.enrich import api as enrich
from aegisflux.services.ingest import api as ingest
from aegisflux.services.orchestrator import api as orchestrator
from aegisflux.services.orchestrator.core import LINE
from aegisflux.services.orchestrator.routes import PRINTABLE
from aegisflux.services.segmenter import api as segmenter
from aegisflux.wire import policyfile
from aegisflux.wire.subjects import host_token
from aegisflux.wire.token import from_b64, parse_token

SERVICES = {"orchestrator": orchestrator, "ingest": ingest, "enrich": enrich, "segmenter": segmenter}
METHODS = ("get", "put", "post", "delete")
# What JSON can hold: a byte and half a character are refused before any schema.
HOSTILE = {name: text for name, text in KINDS.items() if name not in ("byte", "surrogate")}
SOUND = ("", "p99 is 3 s", "grün 日本 🙂 \\x2d", "a\u00a0b", "naïve: «x» — 50 %", "مرحبا", "שלום")
POLICY = 'policy: 1\nrules:\n  - {{from: web, to: db, ports: [tcp/1], why: "{0}"}}\n'
# Texts that are parsed or looked up by name before anything is kept, by the field's place: the check that
# refuses them, or why nothing of them is kept.
PARSED = {
    "token": parse_token,
    "agent_public_key": lambda text: from_b64(text, "agent_public_key", 32),
    "proof": lambda text: from_b64(text, "proof", 64),
    "host_id": host_token,
    "{host_id}": host_token,
    "labels.{}": lambda text: check_label("labels", "role", text),
    "host_labels.{}": lambda text: check_label("labels", "role", text),
    "labels.{key}": lambda text: check_label("labels", text, "web"),
    "host_labels.{key}": lambda text: check_label("labels", text, "web"),
    "selectors.[]": lambda text: parse_selector(f"unit:{text}"),
    "edges.[].dst_cidr": lambda text: parse_cidr(text, "x"),
    "allow_cidrs.[].cidr": lambda text: parse_cidr(text, "x"),
    "ingress.[].src_cidr": lambda text: parse_cidr(text, "x"),
    "deny.[].cidr": lambda text: parse_cidr(text, "x"),
    "?peer": lambda text: parse_address(text, "peer"),
    "policy": lambda text: policyfile.read(POLICY.format("") + f"# {text}\n"),
    "strategy.limits.never_block.{}": lambda text: Limits(never_block={"a": text}).check_labels(""),
    "strategy.limits.never_block.{}.[]": lambda text: Limits(never_block={"a": (text,)}).check_labels(""),
    "strategy.limits.never_block.{key}": lambda text: Limits(never_block={text: "a"}).check_labels(""),
}
LOOKED_UP = {
    "?target_host": "names enrolled hosts, else 422: check_enrolled",
    "?filter": "selects, and is kept nowhere",
    "?host": "selects, and is kept nowhere",
    "?name": "selects, and is kept nowhere",
    "?type": "selects, and is kept nowhere",
    "?stream": "selects, and is kept nowhere",
    "?cursor": "is a place in a list, and is kept nowhere",
    "?proto": "is a protocol's name or number, else 422",
    "?format": "is one of six words, else 422",
    "{token_id}": "is looked up, else 404",
    "{service}": "is looked up, else 404",
    "{host}": "is looked up, else 404",
    "without.[]": "names enrolled hosts, else 422: Rotation.rotate",
    "scope.[]": "names registered services, else 422: Proposals.prepared",
    "meta.{}": "is kept byte for byte: the digest is of it; every output escapes it (test_hostile_texts)",
    "meta.{key}": "as its values",
    "": "telemetry: what a program is called is a fact, whatever it is; every output escapes it",
}


class Anybody:
    """Bearers that know every token, as the role that its text names."""

    async def principal(self, token, *, fresh=True):
        return Principal("somebody", token, "web-1" if token == "source" else None, id="0123")


def documents():
    for name, service in SERVICES.items():
        yield name, json.loads(json.dumps(service.application(None).openapi_schema.to_schema()))


def texts(schema, document, path=()):
    """The places of texts in a schema, also of free keys and values: (path, its schema)."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    parts = (*schema.get("oneOf", ()), *schema.get("anyOf", ()), *schema.get("allOf", ()))
    for part in parts:
        yield from texts(part, document, path)
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds or (kinds == [None] and not parts):
        yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from texts(part, document, (*path, name))
    if "array" in kinds:
        yield from texts(schema.get("items", {}), document, (*path, "[]"))
    free = schema.get("additionalProperties", "properties" not in schema)
    if "object" in kinds and free is not False:
        yield (*path, "{key}"), {}
        yield from texts(free if isinstance(free, dict) else {}, document, (*path, "{}"))


def fields():
    """Every text that a client may send: (service, method, route, place, its schema)."""
    for service, document in documents():
        for route, item in document["paths"].items():
            for method, operation in item.items():
                if method not in METHODS:
                    continue
                for one in operation.get("parameters", ()):
                    form = {"path": "{%s}", "query": "?%s", "header": "%s:"}[one["in"]]
                    for _, schema in texts(one["schema"], document):
                        yield service, method.upper(), route, form % one["name"], schema
                content = operation.get("requestBody", {}).get("content", {})
                for place, schema in {
                    ".".join(path): schema
                    for kind in content.values()
                    for path, schema in texts(kind.get("schema", {}), document)
                }.items():
                    yield service, method.upper(), route, place, schema


FIELDS = list(fields())
FREE = [one for one in FIELDS if "enum" not in one[4] and one[4].get("format") != "date-time"]


def hostile_to(pattern):
    """What a schema's pattern lets through of what it should not."""
    return [name for name, text in HOSTILE.items() if re.search(pattern, f"a{text}b")]


def test_every_text_of_a_request_is_refused_by_its_schema_or_has_its_check_here():
    assert len(FREE) > 60
    unknown = [
        (method, route, place)
        for _, method, route, place, schema in FREE
        if place not in PARSED and place not in LOOKED_UP
        if "pattern" not in schema or hostile_to(schema["pattern"])
        if place not in OPTIONAL
    ]
    assert unknown == []
    known = {place for *_, place, _ in FREE}
    assert sorted({*PARSED, *LOOKED_UP} - known) == []


# Patterns that the documents leave out: of `HostId` in lists, and of a header, which is tested below.
OPTIONAL = ("suspicious.[]", "strategy.canary_hosts.[]", "Idempotency-Key:")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", PARSED)
def test_what_reads_a_text_refuses_what_hides_in_it(place, name):
    with pytest.raises((Refused, NotFound)):
        PARSED[place](f"a{HOSTILE[name]}b")


@pytest.mark.parametrize("pattern", [LINE, PRINTABLE])
def test_a_free_text_is_one_line_of_characters_that_are_seen(pattern):
    assert hostile_to(pattern) == []
    assert [text for text in SOUND if not re.search(pattern, text)] == ([""] if pattern == PRINTABLE else [])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_policy_with_a_why_that_hides_something_is_refused(name):
    """Also where the text of the policy has an escape of YAML for it."""
    escaped = "".join(f"\\U{ord(character):08x}" for character in HOSTILE[name])
    if name != "feed":  # a line break begins a line, which is shown as one
        with pytest.raises(Invalid, match="each character can be seen"):
            policyfile.read(POLICY.format(f"a{escaped}b"))


BODIES = {
    "detail": [("POST", "/api/v1/services/1/health", {"healthy": True}),
               ("POST", "/api/v1/hosts/a/suspicion", {"suspicious": True})],
    "why": [("POST", "/api/v1/panic", {"fleet": True})]
    + [("POST", f"/api/v1/rollouts/1/{verb}", {"stage": "canary", "turn": 0})
       for verb in ("promote", "pause", "resume", "abort", "rollback")],
    "name": [("POST", "/api/v1/tokens", {"role": "viewer"})],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_over_http_the_refusal_names_the_field_and_shows_no_such_character(name):
    app = orchestrator.application(None)
    app.state[access.STATE] = Anybody()
    with TestClient(app) as client:
        for field, requests in BODIES.items():
            for method, path, body in requests:
                given = body | {field: f"a{HOSTILE[name]}b"}
                headers = {"Authorization": "Bearer admin"}
                answer = client.request(method, path, json=given, headers=headers)
                assert answer.status_code == 422, (path, field, answer.text)
                problem = json_text.parse(answer.content, what="a problem")
                assert field in problem["detail"]
                assert re.search(r"can be seen|the character NUL", problem["detail"])
                assert HOSTILE[name] not in problem["detail"]


@pytest.mark.parametrize("name", ["orchestrator", "ingest"])
@pytest.mark.parametrize("key", [b"a\x85b", b"a\xadb", b"a\x7fb", b"\xe2\x80\xae"])
def test_an_idempotency_key_is_printable_ascii(name, key):
    app = SERVICES[name].application(None)
    app.state[access.STATE] = Anybody()
    route, token = ("/seg/maps", "admin") if name == "orchestrator" else ("/api/v1/events", "source")
    headers = {b"Authorization": f"Bearer {token}".encode(), b"Idempotency-Key": key}
    with TestClient(app) as client:
        answer = client.post(route, content=b"{}", headers=headers)
    assert answer.status_code == 422, answer.text
    assert "printable characters of ASCII" in answer.json()["detail"]
