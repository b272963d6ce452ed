"""What a token can do to others: nothing but what its role allows, whatever it asks and however often.

Every route of every service is asked with odd paths and odd bodies; then tokens of the lowest roles flood.
"""

import base64
import http.client
import json

import pytest
from tests.services.test_requests import ROUTES
from tests.support.floods import felt_during
from tests.support.up import running_up
from tests.system.test_hostile_network import in_time

pytestmark = pytest.mark.engines
PORTS = {"orchestrator": 0, "enrich": 2, "ingest": 5, "segmenter": 6}
ODD_PATHS = {
    "nul": "%00", "nul inside": "a%00b", "no utf-8": "%ff", "half a pair": "%ED%A0%80", "overlong": "%C0%80",
    "line feed": "%0A", "slash": "a%2Fb", "dots": "%2e%2e", "override": "%E2%80%AE", "long": "a" * 3000,
    "broken": "%zz", "percent": "%25", "large": "9" * 400, "negative": "-1", "beyond": "9223372036854775808",
    "quote": "%27%3B--", "empty": "%20",
}  # fmt: skip
DEEP = 30_000
ODD_BODIES = {
    "nested lists": b"[" * DEEP,
    "nested objects": b'{"a":' * DEEP,
    "nested and closed": b"[" * DEEP + b"]" * DEEP,
    "nested in a field": b'{"token":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "no utf-8": b'{"token": "\xff\xfe"}',
    "no utf-8 as a key": b'{"\xff": 1}',
    "half a pair": b'{"token": "\\ud800", "name": "\\udfff", "why": "\\ud800", "detail": "\\ud83d"}',
    "not finite": b'{"ttl_seconds": NaN, "since": Infinity}',
    "large numbers": b'{"version": 1e999, "service_id": 99999999999999999999999, "plan": -1e400}',
    "twice": b'{"name": "a", "name": "b"}',
    "nothing": b"",
    "null": b"null",
    "a mark": b"\xef\xbb\xbf{}",
    "other bytes": bytes(range(256)),
    "many values": b"[" + b"1," * 20_000 + b"1]",
}
MARKED = {
    "nul": "a\0b", "override": "a\u202eb", "long": "x" * 60_000, "line feed": "a\nb", "empty": "",
    "mark": "\ufeff",
}  # fmt: skip


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with running_up(tmp_path_factory.mktemp("token")) as up:
        up.until(lambda: "AegisFlux is up" in up.log.read_text(), 40)
        yield up


@pytest.fixture(scope="module")
def tokens(up):
    found = {}
    for role in ("source", "viewer", "operator", "approver", "admin"):
        body = {"name": f"t-{role}", "role": role} | ({"host_id": "h1"} if role == "source" else {})
        found[role] = up.call("POST", "/api/v1/tokens", body).json["token"]
    return found


class Asker:
    """One connection to each service, kept while it lasts."""

    def __init__(self, up) -> None:
        self._up, self._open = up, dict[str, http.client.HTTPConnection]()

    def ask(self, name: str, method: str, path: str, body: bytes | None, token: str):
        """Status, headers and text."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        for _ in range(2):
            found = self._open.setdefault(
                name, http.client.HTTPConnection("127.0.0.1", self._up.port + PORTS[name], timeout=20)
            )
            try:
                found.putrequest(method.upper(), path, skip_accept_encoding=True)
                for key, value in headers.items():
                    found.putheader(key, value)
                if body is not None:
                    found.putheader("Content-Length", str(len(body)))
                found.endheaders(body)
                answer = found.getresponse()
                return answer.status, answer.headers, answer.read()
            except (OSError, http.client.HTTPException):
                found.close()
                del self._open[name]
        raise AssertionError(f"no answer to {method} {path[:200]}")


@pytest.fixture(scope="module")
def asker(up):
    return Asker(up)


def sound(answer, what: str) -> None:
    """No mistake of ours, no word of our inside, and nothing that is kept on the way."""
    status, headers, text = answer
    assert status < 500, f"{what}: {status} {text[:300]!r}"
    for inside in (b"asyncpg", b"Traceback", b"msgspec", b"litestar", b"uvicorn", b"psycopg", b"granian"):
        assert inside not in text.replace(b"/schema", b"").lower() or b"openapi" in text[:300], (
            what,
            text[:300],
        )
    assert headers["Cache-Control"] == "no-store", what


def named(route, value: str) -> str:
    path = route[2]
    for one in route[3].get("parameters", ()):
        if one["in"] == "path":
            path = path.replace("{" + one["name"] + "}", value)
    return path


WITH_PATH = [r for r in ROUTES if "{" in r[2]]
# Ending our own token, or beginning a rotation, would end the test.
CHANGING = ("/api/v1/keys/rotate",)


@pytest.mark.parametrize("route", WITH_PATH, ids=lambda r: f"{r[0]} {r[1]} {r[2]}")
def test_odd_names_in_a_path_are_refused(asker, tokens, route):
    role = "source" if route[2] == "/api/v1/events" and route[1] == "post" else "admin"
    for name, value in ODD_PATHS.items():
        for body in (None, b"{}") if "requestBody" in route[3] else (None,):
            answer = asker.ask(route[0], route[1], named(route, value), body, tokens[role])
            sound(answer, f"{route[1]} {route[2]} {name}")
            assert answer[0] != 202


FIELDS = ("token", "name", "why", "detail", "labels", "policy")
WITH_BODY = [r for r in ROUTES if r[1] != "get" and r[2] not in CHANGING]


@pytest.mark.parametrize("route", WITH_BODY, ids=lambda r: f"{r[0]} {r[1]} {r[2]}")
def test_odd_bodies_are_refused(asker, tokens, route):
    role = "source" if route[2] == "/api/v1/events" and route[1] == "post" else "admin"
    path = named(route, "7")
    for name, body in ODD_BODIES.items():
        sound(asker.ask(route[0], route[1], path, body, tokens[role]), f"{route[1]} {path} {name}")
    for name, text in MARKED.items():
        for field in FIELDS:
            body = json.dumps({field: text}).encode()
            sound(
                asker.ask(route[0], route[1], path, body, tokens[role]), f"{route[1]} {path} {field} {name}"
            )
            nested = json.dumps({field: {text: text}}).encode()
            sound(
                asker.ask(route[0], route[1], path, nested, tokens[role]), f"{route[1]} {path} {field} {name}"
            )


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r[0]} {r[1]} {r[2]}")
def test_the_lowest_roles_get_no_mistake_of_ours_out_of_any_route(asker, tokens, route):
    for token in (tokens["viewer"], tokens["source"], "", "afx_nobody", "\x7f", "a" * 5000):
        for body in (None, b"{}"):
            answer = asker.ask(route[0], route[1], named(route, "7"), body, token)
            sound(answer, f"{route[1]} {route[2]}")


PROOF = {
    "agent_public_key": base64.b64encode(b"k" * 32).decode(),
    "proof": base64.b64encode(b"p" * 64).decode(),
}
WHOLE = {"url": "x", "ca_sha256": "0" * 64, "root_sha256": "0" * 64, "secret": "s" * 48}
INSIDE = {
    "nested": b"[" * 1400, "nested objects": b'{"a":' * 250, "no utf-8": b'{"url": "\xff"}', "a number": b"7",
    "half a pair": b'{"url": "\\ud800"}', "nul": b'{"url": "\\u0000"}', "nothing": b"", "null": b"null",
    "whole": json.dumps(WHOLE).encode(),
    "a secret that is no base64": json.dumps(WHOLE | {"secret": "\u00e9" * 48}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("inside", INSIDE)
def test_odd_enrolment_tokens_are_refused(asker, inside):
    """What is inside of a token is read before anybody is known."""
    text = base64.urlsafe_b64encode(INSIDE[inside]).decode().rstrip("=")
    for token in (f"aegis1.{text}", f"aegis1.{text}=", "aegis1.\u00e9", "aegis1.", "\u0661"):
        for host in ("h1", "h\0", "\u202e", "", "h" * 64):
            body = json.dumps({"token": token, "host_id": host} | PROOF).encode()
            answer = asker.ask("orchestrator", "post", "/api/v1/enroll", body, "")
            sound(answer, f"{inside} {token[:20]} {host!r}")
            assert answer[0] in (403, 422)


@pytest.mark.parametrize("value", ODD_PATHS.values(), ids=ODD_PATHS)
def test_a_host_by_an_odd_name_is_no_mistake_of_ours_either(asker, tokens, value):
    """With a body that its route takes, so that the name gets as far as it can."""
    for method, path, body in (
        ("post", f"/api/v1/hosts/{value}/suspicion", b'{"suspicious": true, "detail": "odd"}'),
        ("put", f"/api/v1/hosts/{value}/labels", b'{"labels": {"a": "b"}}'),
        ("delete", f"/api/v1/hosts/{value}", None),
        ("delete", f"/api/v1/tokens/{value}", None),
    ):
        answer = asker.ask("orchestrator", method, path, body, tokens["admin"])
        sound(answer, f"{method} {path[:60]}")
        assert answer[0] in (404, 405, 422)


@pytest.mark.parametrize("kind", ["proposals", "plans"])
def test_what_does_not_exist_is_not_begun(asker, tokens, kind):
    status, _, text = asker.ask(
        "segmenter", "post", f"/segment/{kind}/999999/recompute", None, tokens["operator"]
    )
    assert (status, b"there is no" in text) == (404, True)
    status, _, _ = asker.ask(
        "segmenter", "post", "/segment/plan", b'{"proposal": 999999}', tokens["operator"]
    )
    assert status == 404


def test_secrets_are_kept_by_nobody_on_the_way(up):
    for path, body in (("/api/v1/tokens", {"name": "kept", "role": "viewer"}), ("/api/v1/hosts/tokens", {})):
        answer = up.call("POST", path, body)
        assert (answer.status, answer.headers["Cache-Control"]) == (201, "no-store")


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_a_flood_of_one_token_waits_for_itself(up, tokens, role):
    """Another viewer and an operator go on."""
    others = (("viewer", 0, "/api/v1/hosts", up.exports()["AEGISFLUX_TOKEN"]),)
    felt, told = felt_during(up, "token_reads", 3, token=tokens[role], others=others)
    in_time(felt)
    assert felt.median("viewer") <= 2.0
    assert told["answers"].get("200", 0) > 0


def test_slow_bodies_of_a_source_take_no_memory_and_no_turn(up, tokens):
    others = (("viewer", 5, "/api/v1/clocks", tokens["viewer"]),)
    felt, told = felt_during(up, "token_bodies", 4, offset=5, token=tokens["source"], others=others)
    in_time(felt)
    assert felt.median("viewer") <= 2.0
    assert told["made"] > 0
