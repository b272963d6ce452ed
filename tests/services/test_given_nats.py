"""What a NATS server that somebody else runs says of itself is compared with what we rely on."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from aegisflux.adapters.engines import given_nats

OURS = {
    "server_name": "n1", "max_payload": 1 << 20, "max_pending": 16 << 20, "write_deadline": 5_000_000_000,
    "ping_interval": 10_000_000_000, "ping_max": 2, "version": "2.15.1",
}  # fmt: skip
WITHOUT_DEADLINE = {name: value for name, value in OURS.items() if name != "write_deadline"}


def answer(data) -> bytes:
    return json.dumps({"server": {"name": "n1"}, "data": data}).encode()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"max_pending": 1 << 20, "write_deadline": 1, "ping_interval": 1, "max_payload": 8 << 20}, []),
        ({"max_pending": 64 << 20}, ["server n1: max_pending: expected at most 16777216, got 67108864"]),
        ({"write_deadline": 10**10}, ["server n1: write_deadline: expected at most 5 s, got 10 s"]),
        ({"ping_interval": 120 * 10**9}, ["ping_interval times (ping_max + 1): expected at most"]),
        ({"ping_max": 9}, ["ping_interval times (ping_max + 1): expected at most 30 s, got 100 s"]),
        ({"max_payload": 65_536}, ["server n1: max_payload: expected at least 1048576, got 65536"]),
        ({"max_pending": 1 << 30, "ping_max": 5}, ["max_pending", "ping_max"]),
        ({"server_name": "\x1b[m\u202e", "max_pending": 1 << 30}, [r'server "\x1b[m\u202e": max_pending']),
    ],
)  # fmt: skip
def test_what_lets_others_take_more_than_we_promise_is_said(changed, said):
    found = given_nats.remarks([answer(OURS | changed)])
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))
    assert all("docs/howto/use-a-nats-of-your-own.md" in text for text in found)


@pytest.mark.parametrize(
    "told",
    [
        b"", b"{}", b"null", b"[]", b"\xff", b"[" * 5000, answer({}), answer(None),
        answer({"max_pending": "much"}),
        answer(OURS | {"ping_max": -1}), answer(OURS | {"max_pending": 10**30}), answer(WITHOUT_DEADLINE),
    ],
)  # fmt: skip
def test_what_a_server_does_not_say_is_said_too(told):
    (text,) = given_nats.remarks([told])
    assert "does not say" in text


def test_each_server_of_a_cluster_is_looked_at_and_none_is_no_good_news():
    found = given_nats.remarks([answer(OURS), answer(OURS | {"server_name": "n2", "max_pending": 1 << 30})])
    assert [text.partition(":")[0] for text in found] == ["server n2"]
    assert "does not say" in given_nats.remarks([])[0]


@asynccontextmanager
async def greeting(info: bytes):
    """A server that says `info`, and nothing more."""

    async def serve(reader, writer) -> None:
        writer.write(info)
        try:
            await writer.drain()
            await reader.read()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (b'INFO {"tls_required": false}\r\n', "takes clients without TLS"),
        (b'INFO {"tls_required": true}\r\n', "cannot be found out"),
        (b"INFO {}\r\n", "takes clients without TLS"),
        (b"", "cannot be found out"), (b"HTTP/1.1 400\r\n", "cannot be found out"),
        (b"INFO [\r\n", "cannot be found out"),
        (b"INFO []\r\n", "cannot be found out"), (b"x" * 100_000, "cannot be found out"),
    ],
)  # fmt: skip
def test_what_does_not_greet_as_our_server_does(info, said):
    async def asked() -> list[str]:
        async with greeting(info) as url:
            return await given_nats.tls_remarks([url], seconds=0.5)

    found = asyncio.run(asked())
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize("url", ["nats://127.0.0.1:1", "wss://127.0.0.1:1", "nats://[::1", "nats://", "x"])
def test_a_server_that_cannot_be_reached_is_said_and_stops_nothing(url):
    (text,) = asyncio.run(given_nats.tls_remarks([url], seconds=0.5))
    assert "cannot be found out" in text
