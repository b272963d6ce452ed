"""Messages with headers and reply subjects that no client of ours writes: consumers go on.

A host may publish any bytes on its own subjects, with any headers.
"""

import asyncio

import pytest
import pytest_asyncio
from tests.support.control import running_plane
from tests.support.engines import eventually

from aegisflux.adapters.bus.subscribed import message_of, nanoseconds
from aegisflux.wire import subjects

pytestmark = pytest.mark.engines


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("plane")) as plane:
        plane.bad = await plane.agent("bad")
        yield plane


HEADERS = {
    "a sequence that is no number": b"NATS/1.0\r\nNats-Sequence: x\r\n\r\n",
    "a sequence in other digits": "NATS/1.0\r\nNats-Sequence: ٣\r\n\r\n".encode(),
    "a long sequence": b"NATS/1.0\r\nNats-Sequence: " + b"9" * 5000 + b"\r\n\r\n",
    "a time that is none": b"NATS/1.0\r\nNats-Time-Stamp: 99999-\r\n\r\n",
    "a status of a server": b"NATS/1.0 404 No Messages\r\n\r\n",
    "a status that is no text": b"NATS/1.0 \xff\xfe\xfd\r\n\r\n",
    "a description that is no text": b"NATS/1.0 100 \xff\xff\r\n\r\n",
    "a name that is no text": b"NATS/1.0\r\n\xff\xfe: x\r\n\r\n",
    "a value that is no text": b"NATS/1.0\r\nAegisflux-Reason: \xff\x1b[31m\r\n\r\n",
    "no colon": b"NATS/1.0\r\nnothing\r\n\r\n",
    "nothing": b"NATS/1.0\r\n\r\n",
    "only a space": b"NATS/1.0 \r\n\r\n",
}


async def published(client, subject, header, payload):
    command = f"HPUB {subject} {len(header)} {len(header) + len(payload)}\r\n".encode()
    await client._send_command(command + header + payload + b"\r\n")
    await client._flush_pending()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("how", HEADERS)
async def test_a_consumer_goes_on_whatever_stands_in_the_headers(plane, how):
    client = await plane.bad.bus._client(asyncio.get_running_loop().time() + 10)
    before = len(await plane.bus.read(subjects.stream_of(subjects.dead("x")).name, 0, 1000))
    row = await plane.store.row("host", "bad")
    await published(client, subjects.heartbeat("bad"), HEADERS[how], b"no heartbeat")

    async def heard():
        return (await plane.store.row("host", "bad"))["seen_at"] > row["seen_at"]

    async def buried():
        found = await plane.bus.read(subjects.stream_of(subjects.dead("x")).name, 0, 1000)
        return len(found) > before

    await eventually(buried)  # the stream keeps one message of a subject: the next one only now
    await plane.bad.beat()
    await eventually(heard)


class Raw:
    """A message as the client library gives it."""

    subject, data = "x", b""

    def __init__(self, reply="", **headers):
        self.reply, self.headers = reply, headers


@pytest.mark.parametrize(
    "reply", ["$JS.ACK.", "$JS.ACK.a.b.c", "$JS.ACK.s.d.x.y.z.t.p", "$JS.ACK." + "." * 20]
)
def test_a_reply_subject_that_only_looks_like_one_of_the_server(reply):
    found = message_of(Raw(reply))
    assert (found.sequence, found.stored_ns) == (0, 0)


@pytest.mark.parametrize("stamp", ["", "x", "9999999999-01-01T00:00:00Z", "2026-01-01T00:00:00.xZ", "\udcff"])
def test_a_time_that_is_none(stamp):
    assert nanoseconds(stamp) == 0
