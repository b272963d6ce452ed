"""What one caller of HTTP can hold: each way to hold something ends, in time and with its reason counted."""

import asyncio
import re
import ssl
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from litestar import Litestar, Request, get, post
from litestar.exceptions import HTTPException
from tests.support.engines import eventually, free_port

from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.domain.roles import Principal
from aegisflux.runtime import access, http, metrics, serving
from aegisflux.runtime.access import needs
from aegisflux.runtime.admission import Limits
from aegisflux.runtime.listener import Bind

FAST = Limits(
    anonymous=32, of_peer=16, authenticated=8, of_token=2, header_seconds=0.6, body_seconds=1.2,
    idle_seconds=0.8,
)  # fmt: skip
HEAD = b"Host: x\r\n"
WAIT = 8.0  # for what has to happen, on a busy machine


class Tokens:
    """Bearers that know the names of roles, and how often they were asked; `away` is an error they raise."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away: AegisError | None = None
        self.busy: asyncio.Event | None = None

    async def principal(self, token: str, *, fresh: bool = True) -> Principal | None:
        self.asked.append(token)
        if self.busy and token.startswith("made-up"):
            await self.busy.wait()
        if self.away:
            raise self.away
        role = token.partition("-")[0]
        return Principal(token, role) if role in ("viewer", "operator", "admin") else None  # type: ignore[arg-type]


@get("/healthz", sync_to_thread=False)
def healthz() -> str:
    return "ok"


@post("/open", status_code=200)
async def taken(request: Request[Any, Any, Any]) -> int:
    return len(await request.body())


@post("/closed", status_code=200, guards=[needs("viewer")], request_max_body_size=http.MAX_BODY)
async def closed(request: Request[Any, Any, Any]) -> int:
    return len(await request.body())


@get("/large", sync_to_thread=False)
def large() -> bytes:
    return b"x" * (8 << 20)


class Place:
    """A running listener: `gate` holds back what asks for it."""

    def __init__(self, limits: Limits, tls: Any = None) -> None:
        self.tokens, self.gate, self.running = Tokens(), asyncio.Event(), 0

        @get("/wait/{name:str}", guards=[needs("viewer")])
        async def wait(name: str) -> str:
            self.running += 1
            await self.gate.wait()
            return name

        app = Litestar(
            [healthz, taken, closed, large, wait],
            exception_handlers={AegisError: http.refused, HTTPException: http.failed},
            request_max_body_size=http.USUAL_BODY,
        )
        app.state[access.STATE] = self.tokens
        app.state[serving.URGENT] = ("/wait/panic",)
        self.port = free_port()
        self.listener = serving.server(app, [Bind(address="127.0.0.1", port=self.port, tls=tls)], limits)

    async def open(self, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, **more)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and text of the answer to one request on a connection of its own."""
        reader, writer = await self.open()
        try:
            writer.write(request)
            text = await asyncio.wait_for(reader.read(), WAIT)
            return int(text.split()[1]) if text else 0, text
        except ConnectionError:
            return 0, b""
        finally:
            writer.close()

    async def healthy(self) -> None:
        assert (await self.ask(get_of("/healthz")))[0] == 200


def get_of(path: str, token: str = "", close: bool = True) -> bytes:
    more = f"Authorization: Bearer {token}\r\n" if token else ""
    more += "Connection: close\r\n" if close else ""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


def post_of(path: str, length: int, token: str = "") -> bytes:
    more = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return f"{head}{more}Content-Length: {length}\r\n\r\n".encode()


@asynccontextmanager
async def running(limits: Limits = FAST, tls: Any = None):
    place = Place(limits, tls)
    serving_task = asyncio.create_task(place.listener.serve())
    await asyncio.sleep(0)
    try:
        await place.healthy() if tls is None else None
        yield place
    finally:
        place.gate.set()
        place.listener.end()
        await asyncio.wait_for(serving_task, WAIT)


def refused(reason: str) -> float:
    return metrics.http_refused.labels(reason)._value.get()


HELD = {
    "no byte": (b"", "silent"),
    "half a head": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-", "slow_head"),
    "half a body": (post_of("/open", 100) + b"x" * 50, "slow_body"),
    "no body": (post_of("/open", 100), "slow_body"),
    "half a body in chunks": (
        b"POST /open HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", "slow_body"
    ),
    "half a body with a token": (post_of("/closed", 100, "viewer") + b"x" * 50, "slow_body"),
    "nothing after an answer": (get_of("/healthz", close=False), ""),
    "half a head after an answer": (get_of("/healthz", close=False) + b"GET /he", ""),
}  # fmt: skip


@pytest.mark.parametrize("held", HELD)
async def test_whatever_is_held_back_ends_by_itself(held):
    begin, reason = HELD[held]
    async with running() as place:
        before = refused(reason) if reason else 0.0
        reader, writer = await place.open()
        writer.write(begin)
        text = await asyncio.wait_for(reader.read(), WAIT)
        writer.close()
        if reason:
            assert refused(reason) == before + 1
        if "body" in held or held == "half a head":
            assert b" 408 " in text
        await place.healthy()


async def test_a_client_that_sends_slowly_gets_no_more_time_for_it():
    async with running() as place:
        reader, writer = await place.open()
        ended = asyncio.ensure_future(reader.read())
        began = asyncio.get_running_loop().time()
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Header: " + b"y" * 200:
            writer.write(bytes([byte]))
            done, _ = await asyncio.wait([ended], timeout=0.05)
            if done:
                break
        assert b" 408 " in await ended
        assert asyncio.get_running_loop().time() - began < WAIT
        writer.close()


async def test_an_answer_that_nobody_takes_ends_its_connection(monkeypatch):
    monkeypatch.setattr("aegisflux.runtime.connections.STALL_SECONDS", 0.5)
    async with running() as place:
        before = refused("slow_reader")
        _, writer = await place.open(limit=1024)
        writer.write(get_of("/large", close=False))
        await eventually(lambda: refused("slow_reader") == before + 1)
        writer.close()


TOO_LARGE = {
    "headers": (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"X-A: b\r\n" * 200 + b"\r\n", 431),
    "a header": (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"X-A: " + b"y" * 60_000 + b"\r\n\r\n", 431),
    "a header without an end": (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"X-A: " + b"y" * 60_000, 431),
    "a path": (b"GET /" + b"y" * 60_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", 431),
    "a body": (post_of("/open", 65_537), 413),
    "a body of a petabyte": (post_of("/open", 10**15), 413),
    "a body of more digits than a number has": (post_of("/open", 10**18), 413),
    "a body of a made-up token": (post_of("/open", 65_537, "nobody"), 413),
    "a body in chunks": (
        b"POST /open HTTP/1.1\r\n" + HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"400\r\n" + b"x" * 1024 + b"\r\n") * 65 + b"0\r\n\r\n", 413,
    ),
    "a body where a token is needed": (post_of("/closed", 15_000_000), 401),
    "a body where a known token is needed": (post_of("/closed", 15_000_000, "nobody"), 401),
    "a body for nobody": (post_of("/nowhere", 15_000_000), 404),
    "trailers": (
        b"POST /open HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
        + b"X-T: y\r\n" * 5000, 431,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TOO_LARGE)
async def test_what_is_too_large_is_refused_before_it_is_read(what):
    request, status = TOO_LARGE[what]
    async with running() as place:
        found, text = await place.ask(request)
        assert found == status, text[:300]
        assert re.search(rb"(?i)\r\nconnection: close\r\n", text), "more of it would be read"
        assert msgspec.json.decode(text.partition(b"\r\n\r\n")[2])["status"] == status
        await place.healthy()


@pytest.mark.parametrize("length", [0, 1, 65_536])
async def test_a_body_of_64_kib_needs_no_token(length):
    async with running() as place:
        status, text = await place.ask(post_of("/open", length) + b"x" * length)
        assert (status, text.split(b"\r\n\r\n")[1]) == (200, str(length).encode())


async def test_a_token_has_large_bodies_read_and_each_after_its_route_said_so():
    async with running() as place:
        body = b"x" * (15 << 20)
        status, text = await place.ask(post_of("/closed", len(body), "viewer") + body)
        assert (status, text.split(b"\r\n\r\n")[1]) == (200, str(len(body)).encode())
        assert (await place.ask(post_of("/open", 300_000, "viewer")))[0] == 413


async def test_a_crowd_that_sends_nothing_takes_no_place_from_who_asks():
    async with running() as place:
        crowd = [await place.open() for _ in range(100)]
        for _ in range(3):
            await place.healthy()
        assert len(place.listener.anonymous) <= FAST.of_peer
        for _, writer in crowd:
            writer.close()


async def test_a_token_has_its_own_places_and_others_have_theirs():
    """Connections that a crowd with one token leaves open end, oldest first; those of others do not."""
    async with running(Limits(of_token=2)) as place:
        place.gate.set()
        other, keep = await place.open()
        keep.write(get_of("/wait/x", "operator", close=False))
        assert b" 200 " in await asyncio.wait_for(other.readline(), WAIT)
        before, crowd = refused("token_limit"), []
        for _ in range(6):
            reader, writer = await place.open()
            writer.write(get_of("/wait/x", "viewer", close=False))
            assert b" 200 " in await asyncio.wait_for(reader.readline(), WAIT)
            crowd.append((reader, writer))
        await eventually(lambda: refused("token_limit") == before + 4)
        assert len(place.listener.authenticated) == 3
        keep.write(get_of("/wait/x", "operator"))
        assert (await asyncio.wait_for(other.read(), WAIT)).count(b" 200 ") == 1
        for _, writer in (*crowd, (other, keep)):
            writer.close()


async def test_a_crowd_whose_requests_wait_takes_no_place_from_who_comes():
    async with running() as place:
        place.tokens.busy, crowd = asyncio.Event(), []
        for number in range(40):
            _, writer = await place.open()
            writer.write(get_of(f"/wait/{number}", "made-up"))
            crowd.append(writer)
        for _ in range(5):
            await place.healthy()
        place.tokens.busy.set()
        for writer in crowd:
            writer.close()


async def test_panic_waits_behind_nobody():
    """A hundred requests of viewers and operators wait; an operator's urgent one begins at once."""
    async with running(Limits()) as place:
        crowd = []
        for number in range(100):
            reader, writer = await place.open()
            writer.write(get_of(f"/wait/{number}", ("viewer-1", "operator-1")[number % 2]))
            crowd.append((reader, writer))
        await eventually(lambda: place.running == 10)
        status = asyncio.ensure_future(place.ask(get_of("/wait/panic", "operator-2")))
        await eventually(lambda: place.running == 11)
        viewer = asyncio.ensure_future(place.ask(get_of("/wait/panic", "viewer-1")))
        other = asyncio.ensure_future(place.ask(get_of("/wait/x", "viewer-2")))
        await eventually(lambda: place.running == 12)
        assert not viewer.done(), "a viewer's is not urgent"
        place.gate.set()
        assert [(await one)[0] for one in (status, viewer, other)] == [200, 200, 200]
        assert all([b" 200 " in await asyncio.wait_for(r.readline(), WAIT) for r, _ in crowd])
        for _, writer in crowd:
            writer.close()


async def test_made_up_tokens_are_looked_up_few_at_once_and_known_ones_beside_them():
    async with running(Limits()) as place:
        place.gate.set()
        assert (await place.ask(get_of("/wait/x", "operator")))[0] == 200
        place.tokens.busy = asyncio.Event()
        place.tokens.asked.clear()
        crowd = [asyncio.create_task(place.ask(get_of("/wait/x", f"made-up-{n}"))) for n in range(100)]
        await eventually(lambda: place.listener.state.tasks and len(place.listener.state.tasks) == 100)
        assert len(place.tokens.asked) == 2, "of one address"
        assert (await place.ask(get_of("/wait/x", "operator")))[0] == 200
        await place.healthy()
        place.tokens.busy.set()
        assert {(await one)[0] for one in crowd} == {401}
        assert (await place.ask(get_of("/wait/x", "viewer-new")))[0] == 200, "nobody is locked out by others"


async def test_a_store_that_is_away_is_said_as_such_and_counts_for_nobody():
    async with running() as place:
        place.tokens.away = Unavailable("the store is away")
        assert {(await place.ask(get_of("/wait/x", f"viewer-{n}")))[0] for n in range(10)} == {503}
        place.tokens.away = None
        place.gate.set()
        assert (await place.ask(get_of("/wait/x", "viewer-0")))[0] == 200


async def test_who_leaves_the_queue_is_served_no_more():
    async with running(Limits()) as place:
        crowd = []
        for number in range(12):
            reader, writer = await place.open()
            writer.write(get_of(f"/wait/{number}", "viewer-1"))
            crowd.append((reader, writer))
        await eventually(lambda: place.running == 4)
        for _, writer in crowd:
            writer.close()
        await eventually(lambda: not place.listener.anonymous and not place.listener.authenticated)
        place.gate.set()
        await place.healthy()
        assert place.running == 4


async def test_thousands_of_honest_callers_of_one_address_are_all_answered():
    """5,000 hosts that enrol behind one NAT: more than an address may hold at once, but each asks at once."""
    async with running(Limits()) as place:
        body = b"x" * 900
        request = post_of("/open", len(body)) + body

        async def one() -> int:
            return (await place.ask(request))[0]

        found = await asyncio.gather(*(one() for _ in range(400)))
        assert set(found) == {200}
        for _ in range(9):
            found = await asyncio.gather(*(one() for _ in range(400)))
            assert set(found) == {200}


async def test_pipelined_requests_are_answered_in_order_and_a_flood_of_them_is_not():
    async with running() as place:
        reader, writer = await place.open()
        writer.write(get_of("/healthz", close=False) * 5 + get_of("/healthz"))
        assert (await asyncio.wait_for(reader.read(), WAIT)).count(b"200 OK") == 6
        writer.close()
        before = refused("pipelined")
        await place.ask(get_of("/healthz", close=False) * 5000)
        assert refused("pipelined") == before + 1


NOISE = {
    "an upgrade with a body": (
        b"POST /open HTTP/1.1\r\n" + HEAD + b"Content-Length: 9\r\nConnection: Upgrade\r\n"
        b"Upgrade: h2c\r\n\r\n"
    ),
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + b"\xff" * 200,
    "nothing that is HTTP": b"\x00\xff" * 100 + b"\r\n\r\n",
    "two lengths": b"POST /open HTTP/1.1\r\n" + HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "a length and chunks": (
        b"POST /open HTTP/1.1\r\n" + HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n"
    ),
    "a negative length": b"POST /open HTTP/1.1\r\n" + HEAD + b"Content-Length: -1\r\n\r\n",
    "an unknown coding": b"POST /open HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    "a broken chunk": b"POST /open HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a bare line feed": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "a space before a colon": b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
    "a folded header": b"GET /healthz HTTP/1.1\r\nHost: x\r\n folded\r\nConnection: close\r\n\r\n",
    "nul in a header": b"GET /healthz HTTP/1.1\r\nHost: x\x00y\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("noise", NOISE)
async def test_what_is_no_http_is_refused_and_ends_there(noise):
    async with running() as place:
        status, text = await place.ask(NOISE[noise])
        assert status in (400, 408) or (noise == "a folded header" and status == 200), text
        assert text.count(b"HTTP/1.1 ") == 1, "one request, one answer"
        await place.healthy()


async def test_an_offer_of_another_protocol_is_not_taken():
    async with running() as place:
        offer = b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        status, text = await place.ask(offer + get_of("/healthz"))
        assert (status, text.count(b"HTTP/1.1 ")) == (200, 1)


async def test_handshakes_that_do_not_end_are_ended(tmp_path, monkeypatch):
    from aegisflux.adapters.secrets.file import FileSecrets
    from aegisflux.adapters.secrets.pki import Pki

    monkeypatch.setattr("aegisflux.runtime.listener.HANDSHAKE_SECONDS", 0.5)
    files = Pki(FileSecrets(tmp_path), 1_790_000_000).server("test", ["127.0.0.1"], 1_790_000_000)
    async with running(tls=(files.certificate, files.key)) as place:
        before = refused("handshake") + refused("silent")
        for begin in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + b"x" * 99,
        ):
            reader, writer = await place.open()
            writer.write(begin)
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), WAIT)
            writer.close()
        await eventually(lambda: refused("handshake") + refused("silent") >= before + 3)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        reader, writer = await place.open(ssl=context)
        found = writer.get_extra_info("ssl_object")
        assert (found.version(), found.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
        writer.write(get_of("/healthz"))
        assert b" 200 " in await asyncio.wait_for(reader.readline(), WAIT)
        writer.close()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):  # SSLError, or a reset
            await place.open(ssl=context)


HOSTS = {
    "one": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", 200),
    "an empty one": (b"GET /healthz HTTP/1.1\r\nHost:\r\n", 200),
    "none": (b"GET /healthz HTTP/1.1\r\n", 400),
    "two": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n", 400),
    "the same twice": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nhOST: x\r\n", 400),
    "none, with a body": (b"POST /open HTTP/1.1\r\nContent-Length: 0\r\n", 400),
    "none of HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n", 200),
    "two of HTTP/1.0": (b"GET /healthz HTTP/1.0\r\nHost: x\r\nHost: y\r\n", 400),
}


@pytest.mark.parametrize("hosts", HOSTS)
async def test_a_request_has_one_host(hosts):
    head, status = HOSTS[hosts]
    async with running() as place:
        got, text = await place.ask(head + b"Connection: close\r\n\r\n")
        assert got == status, text
        assert status == 200 or b"expected one Host header" in text
        await place.healthy()


ANSWERS = {"/healthz": 200, "/large": 200, "/open": 405, "/nowhere": 404, "/wait/a": 401}


@pytest.mark.parametrize("path", ANSWERS)
async def test_head_is_a_get_without_its_body(path):
    status = ANSWERS[path]
    async with running() as place:
        request = get_of(path).replace(b"GET", b"HEAD", 1)
        got, text = await place.ask(request)
        assert got == status, text
        assert text.endswith(b"\r\n\r\n"), "nothing behind the head"
        length = int(re.search(rb"content-length: (\d+)", text.lower())[1])
        assert length > 0, "that of the body of a GET"
