"""Attacks on the HTTP of a service, most without a token, each for some seconds in a process of its own.

    python -m bench.lib.attacks_http NAME --port 8081 --seconds 10

Each prints one JSON object when it ends: what it held, and how often it was cut off.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import resource
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

CONNECTIONS = 8_400
HEAD = b"Host: x\r\n"
OPENING = 64  # at once


@dataclass
class Attack:
    """Where it goes and until when; `token`: that of the attacker. How many connections it made, and lost."""

    host: str
    port: int
    until: float
    token: str = ""
    made: int = 0
    cut: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    context: ssl.SSLContext | None = None

    @property
    def left(self) -> float:
        """Seconds until it ends."""
        return max(0.0, self.until - time.monotonic())

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection; raises OSError."""
        async with asyncio.timeout(5):
            found = await asyncio.open_connection(self.host, self.port, ssl=self.context)
        self.made += 1
        return found

    async def ask(self, request: bytes, count: int = 1) -> None:
        """Send requests on one connection, and count what is answered by its status."""
        try:
            reader, writer = await self.open()
        except (OSError, TimeoutError):
            self.cut += 1
            return
        try:
            for _ in range(count):
                writer.write(request)
                async with asyncio.timeout(10):
                    line = await reader.readline()
                status = line.split()[1].decode() if line else "none"
                self.answers[status] = self.answers.get(status, 0) + 1
                if not await _skip(reader):
                    break
        except (OSError, EOFError, TimeoutError, ValueError, IndexError):
            self.cut += 1
        finally:
            writer.close()

    async def hold(self, first: bytes, more: bytes = b"", every: float = 0.5, *, read: bool = True) -> None:
        """Open, send the beginning of something, go on slowly, and begin anew when cut off, until the end."""
        while self.left:
            try:
                reader, writer = await self.open()
                with suppress(asyncio.LimitOverrunError, ValueError):
                    await self._drip(reader, writer, first, more, every, read=read)
            except (OSError, TimeoutError):
                await asyncio.sleep(0.2)
            self.cut += 1

    async def _drip(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        first: bytes,
        more: bytes,
        every: float,
        *,
        read: bool,
    ) -> None:
        try:
            writer.write(first)
            while self.left:
                if read:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(every):
                            if not await reader.read(4096):
                                return
                else:
                    await asyncio.sleep(every)
                writer.write(more)
                await writer.drain()
        finally:
            writer.close()


Run = Callable[[Attack], Awaitable[None]]


async def _skip(reader: asyncio.StreamReader) -> bool:
    """Read an answer to its end; whether the connection goes on."""
    length, goes_on = 0, True
    async with asyncio.timeout(10):
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            goes_on = goes_on and not (name.lower() == b"connection" and b"close" in value)
        await reader.readexactly(length)
    return goes_on


async def _crowd(attack: Attack, count: int, one: Callable[[], Awaitable[None]]) -> None:
    """So many at once until the end, not all begun in one moment."""
    tasks = []
    for number in range(count):
        tasks.append(asyncio.ensure_future(one()))
        if number % OPENING == OPENING - 1:
            await asyncio.sleep(0)
    await asyncio.sleep(attack.left)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def silent(attack: Attack) -> None:
    """Connections that send no byte."""
    await _crowd(attack, CONNECTIONS, lambda: attack.hold(b"", every=1.0))


async def slow_heads(attack: Attack) -> None:
    """Heads of requests that never end, a header at a time."""
    await _crowd(attack, 1500, lambda: attack.hold(b"GET /healthz HTTP/1.1\r\n" + HEAD, b"X-A: b\r\n"))


async def half_requests(attack: Attack) -> None:
    """Requests whose body is said and does not come."""
    half = b"POST /api/v1/enroll HTTP/1.1\r\n" + HEAD + b"Content-Length: 60000\r\n\r\n" + b"x" * 30_000
    await _crowd(attack, 1000, lambda: attack.hold(half))


async def large_bodies(attack: Attack) -> None:
    """Bodies of 15 MB, of enrolments and of a route that needs a token, held open before their end."""
    await _crowd(attack, 120, lambda: _large(attack))


async def _large(attack: Attack) -> None:
    path = random.choice((b"/api/v1/enroll", b"/seg/maps", b"/api/v1/services"))
    head = b"POST " + path + b" HTTP/1.1\r\n" + HEAD
    chunked = random.random() < 0.5
    head += b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 15000000\r\n\r\n"
    piece = b"x" * 65_536
    await attack.hold(head, b"10000\r\n" + piece + b"\r\n" if chunked else piece, 0.02)


async def slow_bodies(attack: Attack) -> None:
    """Bodies a byte at a time, in chunks."""
    head = b"POST /api/v1/enroll HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    await _crowd(attack, 800, lambda: attack.hold(head, b"1\r\nx\r\n"))


async def slow_readers(attack: Attack) -> None:
    """Large answers that nobody takes."""
    asked = (b"GET /schema/openapi.json HTTP/1.1\r\n" + HEAD + b"\r\n") * 8
    await _crowd(attack, 600, lambda: attack.hold(asked, read=False))


async def giant_heads(attack: Attack) -> None:
    """Headers of a megabyte, one and many; and trailers without end."""
    one = b"GET /healthz HTTP/1.1\r\n" + HEAD + b"X-A: " + b"y" * 1_000_000
    many = b"GET /healthz HTTP/1.1\r\n" + HEAD + b"X-A: b\r\n" * 100_000
    trailers = b"POST /healthz HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    more = b"X-T: y\r\n" * 1000
    await _crowd(
        attack, 60, lambda: attack.hold(*random.choice(((one, b"y"), (many, b"X"), (trailers, more))))
    )


async def invented(attack: Attack) -> None:
    """Methods and paths that nothing has, each once."""

    async def one() -> None:
        while attack.left:
            name = f"{random.getrandbits(40):x}"
            verb = random.choice((f"M{name.upper()}", "GET", "PURGE", "PROPFIND", "DELETE"))
            await attack.ask(f"{verb} /{name}/{name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())

    await _crowd(attack, 32, one)


async def enrolments(attack: Attack) -> None:
    """Enrolments with made-up tokens."""

    async def one() -> None:
        while attack.left:
            body = _enrolment()
            head = f"POST /api/v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            await attack.ask(head.encode() + body)

    await _crowd(attack, 400, one)


def _enrolment() -> bytes:
    secret = base64.urlsafe_b64encode(os.urandom(36)).decode()
    token = {"url": "http://127.0.0.1", "ca_sha256": "0" * 64, "root_sha256": "0" * 64, "secret": secret}
    text = "aegis1." + base64.urlsafe_b64encode(json.dumps(token).encode()).decode().rstrip("=")
    fields = {
        "token": text,
        "host_id": f"h{random.getrandbits(40):x}",
        "agent_public_key": base64.b64encode(os.urandom(32)).decode(),
        "proof": base64.b64encode(os.urandom(64)).decode(),
    }
    return json.dumps(fields).encode()


async def bearers(attack: Attack) -> None:
    """Requests with made-up API tokens, and bodies for those who believe them."""

    async def one() -> None:
        while attack.left:
            token = f"afx_{random.getrandbits(256):x}"
            head = f"POST /seg/maps HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            await attack.ask(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())

    await _crowd(attack, 200, one)


async def tls_garbage(attack: Attack) -> None:
    """What is no handshake, beginnings of one, and handshakes without a request."""
    hello = bytes.fromhex("16030100c8010000c40303") + os.urandom(120)
    whole = Attack(attack.host, attack.port, attack.until, context=_any_server())
    await asyncio.gather(
        _crowd(attack, 900, lambda: attack.hold(random.choice((b"", hello, os.urandom(500))))),
        _crowd(whole, 100, lambda: whole.hold(b"", every=0.2)),
    )


def _any_server() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def h2(attack: Attack) -> None:
    """HTTP/2 without being asked, and as an upgrade that waits for what follows."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 1000
    upgrade = b"POST /api/v1/enroll HTTP/1.1\r\n" + HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    upgrade += b"Content-Length: 100\r\n\r\n"
    await _crowd(attack, 200, lambda: attack.hold(*random.choice(((preface, b"\x00" * 9), (upgrade, b"x")))))


async def pipelined(attack: Attack) -> None:
    """Thousands of requests in one breath."""
    asked = (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n") * 5000
    await _crowd(attack, 64, lambda: attack.hold(asked, asked, 0.05))


async def probes(attack: Attack) -> None:
    """/healthz and /readyz as fast as they are answered."""
    asked = [b"GET " + path + b" HTTP/1.1\r\n" + HEAD + b"\r\n" for path in (b"/healthz", b"/readyz")]

    async def one() -> None:
        while attack.left:
            await attack.ask(random.choice(asked), 50)

    await _crowd(attack, 128, one)


async def token_reads(attack: Attack) -> None:
    """With a token: the heaviest lists, many at once, some of which nobody takes."""
    paths = (b"/api/v1/hosts", b"/seg/maps", b"/metrics", b"/api/v1/rollouts", b"/api/v1/keys")
    head = HEAD + b"Authorization: Bearer " + attack.token.encode() + b"\r\n\r\n"

    async def one() -> None:
        while attack.left:
            await attack.ask(b"GET " + random.choice(paths) + b" HTTP/1.1\r\n" + head, 50)

    await _crowd(attack, 300, one)


async def token_bodies(attack: Attack) -> None:
    """With a token: bodies of 16 MB, slowly, on every connection."""
    head = b"POST /api/v1/events HTTP/1.1\r\n" + HEAD + b"Authorization: Bearer " + attack.token.encode()
    head += b"\r\nContent-Length: 16000000\r\n\r\n"
    await _crowd(attack, 300, lambda: attack.hold(head, b"x" * 262_144, 0.2))


ATTACKS: dict[str, Run] = {
    one.__name__: one
    for one in (
        silent, slow_heads, half_requests, large_bodies, slow_bodies, slow_readers, giant_heads, invented,
        enrolments, bearers, h2, pipelined, probes, tls_garbage, token_reads, token_bodies,
    )
}  # fmt: skip


def raise_files() -> None:
    """Open as many files as this process may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("name", choices=ATTACKS)
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--seconds", type=float, default=10.0)
    args = arguments.parse_args()
    raise_files()
    token = os.environ.get("ATTACK_TOKEN", "")
    attack = Attack(args.host, args.port, time.monotonic() + args.seconds, token)
    asyncio.run(ATTACKS[args.name](attack))
    print(json.dumps({"made": attack.made, "cut": attack.cut, "answers": attack.answers}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
