"""HTTP under callers that mean no good."""

import asyncio
import socket
import time
from contextlib import ExitStack

import pytest
from litestar import Litestar, get

from aegisflux.runtime import serving

SLOW = 1500


@get("/healthz", sync_to_thread=False)
def healthz() -> str:
    """Up."""
    return "ok"


async def _status(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return await asyncio.wait_for(reader.readline(), 3)
    finally:
        writer.close()


@pytest.mark.asyncio
async def test_callers_that_never_finish_their_request_do_not_shut_out_others():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = serving.single(Litestar([healthz]), "127.0.0.1", port)
    task = asyncio.create_task(server.serve())
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                assert b"200" in await _status(port)
                break
            except OSError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        with ExitStack() as stack:
            for _ in range(SLOW):
                slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=3))
                slow.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-")
            assert b"200" in await _status(port)
    finally:
        server.end()
        await asyncio.wait([task], timeout=5)
