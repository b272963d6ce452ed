"""A host that speaks the protocol of NATS over a bare socket: faster than a client, and with no manners."""

import asyncio
import base64
import contextlib
import json
import math
import ssl
import time
from collections.abc import Callable
from typing import Final

from nacl.signing import SigningKey
from tests.support.neighbours import Site

CONNECT: Final = {
    "verbose": False,
    "pedantic": False,
    "headers": True,
    "no_responders": True,
    "lang": "x",
    "version": "0",
    "protocol": 1,
}


class Bare:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, site: Site) -> "Bare":
        """Connected as the host; raises OSError when the server does not want it."""
        host, port = site.nats_urls[0].split("//")[1].rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 22)
        nonce = json.loads((await reader.readline())[5:])["nonce"].encode()
        await writer.start_tls(ssl.create_default_context(cadata=site.ca_pem), server_hostname=host)
        signature = base64.urlsafe_b64encode(SigningKey(site.seed).sign(nonce).signature).decode()
        said = json.dumps(CONNECT | {"jwt": site.user_jwt, "sig": signature.rstrip("=")})
        writer.write(b"CONNECT " + said.encode() + b"\r\nPING\r\n")
        while (line := await reader.readline()) != b"PONG\r\n":
            if not line or line.startswith(b"-ERR"):
                raise OSError(line)
        return cls(reader, writer)

    async def write(self, data: bytes) -> None:
        """Send this as soon as there is room for it."""
        self._writer.write(data)
        await self._writer.drain()

    async def read(self) -> None:
        """Read all that comes, and keep nothing."""
        with contextlib.suppress(OSError):
            while await self._reader.read(1 << 20):
                pass

    def close(self) -> None:
        """Without a word."""
        self._writer.close()


def published(subject: str, reply: str, payload: bytes, headers: bytes = b"") -> bytes:
    """A message as the protocol writes it."""
    if headers:
        sizes = f"{len(headers)} {len(headers) + len(payload)}"
        return f"HPUB {subject} {reply} {sizes}\r\n".encode() + headers + payload + b"\r\n"
    return f"PUB {subject} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n"


async def flood(
    site: Site,
    until: float,
    data: Callable[[], bytes],
    each: int = 1,
    lines: int = 2,
    rate: float = math.inf,
) -> int:
    """Write `data`, which are `each` messages, again and again over so many connections, each at most `rate`
    times a second; comes back when it is cut off. Gives the number of messages."""

    async def one() -> int:
        sent, began = 0, time.monotonic()
        while time.monotonic() < until:
            try:
                line = await Bare.open(site)
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.05)
                continue
            reading = asyncio.ensure_future(line.read())
            with contextlib.suppress(OSError):
                while time.monotonic() < until:
                    await line.write(data())
                    sent += each
                    await asyncio.sleep(max(0.0, sent / each / rate - (time.monotonic() - began)))
            line.close()
            reading.cancel()
        return sent

    return sum(await asyncio.gather(*(one() for _ in range(lines))))
