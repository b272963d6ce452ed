"""Nothing of a request is left when it has been answered, and nothing of a connection when it has ended: no
garbage collection is needed for it, which runs rarely here (a body has up to 16 MiB).
"""

import asyncio
import gc
from contextlib import contextmanager

import pytest
from litestar.utils.scope.state import ScopeState
from tests.services.test_http_limits import get_of, post_of, running
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from aegisflux.runtime.connections import Connection

pytestmark = pytest.mark.asyncio
BODY = b"x" * 100_000
ENDINGS = {
    "a body with a token": post_of("/closed", len(BODY), "viewer") + BODY,
    "a body without one": post_of("/open", 1000) + BODY[:1000],
    "a body that is refused": post_of("/closed", len(BODY), "unknown") + BODY,
    "a body that is too large": post_of("/open", 100_000) + BODY,
    "half a body, in time": post_of("/closed", len(BODY), "viewer") + BODY[:5000],
    "no such path": get_of("/none", "viewer"),
    "not HTTP": b"\x16\x03\x01\r\n\r\n",
    "a head that is too large": b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n",
    "several at once": get_of("/healthz", close=False) * 3 + get_of("/healthz"),
}


@contextmanager
def without_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def left(*kinds):
    return [type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds)]


async def settled(*kinds):
    """What is left of these once it is nothing, or after a while."""
    for _ in range(200):
        if not (found := left(*kinds)):
            break
        await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize("ending", ENDINGS)
async def test_nothing_is_left_of_a_connection(ending):
    async with running() as place:
        with without_collection():
            for _ in range(3):
                await place.ask(ENDINGS[ending])
            assert await settled(ScopeState, RequestResponseCycle, Connection) == []


async def test_nothing_is_left_of_a_client_that_went_away_at_work():
    async with running() as place:
        with without_collection():
            _, writer = await place.open()
            writer.write(get_of("/wait/x", "viewer"))
            while not place.running:
                await asyncio.sleep(0.01)
            writer.close()
            place.gate.set()
            assert await settled(ScopeState, RequestResponseCycle, Connection) == []


async def test_an_idle_connection_keeps_no_body():
    async with running() as place:
        with without_collection():
            reader, writer = await place.open()
            head = post_of("/closed", len(BODY), "viewer").replace(b"Connection: close\r\n", b"")
            writer.write(head + BODY)
            assert b"100000" in await reader.readuntil(b"100000")
            assert await settled(ScopeState) == []
            writer.close()
