"""A path that no route has is refused to who has no token before anything else is done for the request."""

import pytest
from litestar import Litestar, get
from tests.services.test_http_limits import get_of, post_of, running

from aegisflux.runtime import http
from aegisflux.runtime.known import Paths

TEMPLATES = ("/", "/healthz", "/api/v1/hosts", "/api/v1/hosts/{host}", "/api/v1/{what}/deep/er", "/a/{b}/{c}")
KNOWN = {
    "/": True,
    "//": True,
    "/healthz": True,
    "/healthz/": True,
    "/healthz/x": False,
    "/api": False,
    "/api/v1": False,
    "/api/v1/hosts/web-1": True,
    "/api/v1/hosts/web-1/": True,
    "/api/v1/hosts/web-1/x": False,
    "/api/v1/hosts/deep/er": True,  # a literal part does not hide what a parameter leads to
    "/api/v1/x/deep/er": True,
    "/a/{/{": True,
    "/a/b": False,
    "/{": False,
    "/nothing": False,
}


@pytest.mark.parametrize("path", KNOWN)
def test_a_path_is_known_by_its_parts(path):
    assert (path in Paths(TEMPLATES)) is KNOWN[path]


def test_each_path_of_an_application_is_known():
    @get(["/x", "/x/{n:int}/y"], sync_to_thread=False)
    def x() -> str:
        return ""

    app = Litestar([x], openapi_config=http.openapi("x", "x"))
    found = Paths(http.table(app))
    wanted = ("/x", "/x/1/y", "/schema", "/schema/openapi.json")
    assert [path for path in wanted if path not in found] == []


REFUSED = {
    "no such path": (get_of("/none"), 404),
    "no such path, with a body": (post_of("/none", 5) + b"hello", 404),
    "no such path, a body that never comes": (post_of("/none", 50_000), 404),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_it_is_refused_before_its_body_is_looked_at(what):
    request, status = REFUSED[what]
    async with running() as place:
        found, text = await place.ask(request)
        assert found == status, text
        assert b"application/problem+json" in text
        assert place.tokens.asked == []
