"""Clients of NATS that follow no rule of ours: nats-py itself with a user's credentials, and bare sockets."""

import asyncio
import base64
import json
import ssl
import time

from nacl.signing import SigningKey
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout

from aegisflux.wire import natsjwt, subjects


class Raw:
    """A hostile client: nats-py itself with a user's credentials."""

    def __init__(self, lab, credentials, host: str = "web1") -> None:
        self.lab, self.credentials, self.errors, self.host = lab, credentials, [], host
        self.nc = Client()

    async def __aenter__(self):
        key = natsjwt.seed_nkey("user", self.credentials.seed)

        async def heard(error):
            self.errors.append(str(error).lower())

        await self.nc.connect(
            self.lab.engine.url,
            user_jwt_cb=self.credentials.jwt.encode,
            signature_cb=lambda nonce: signature(key, nonce),
            tls=ssl.create_default_context(cadata=self.lab.pki.ca_pem),
            inbox_prefix=b"_INBOX." + self.credentials.name.encode(),
            allow_reconnect=False,
            error_cb=heard,
            skip_subject_validation=True,
        )
        return self

    async def __aexit__(self, *_):
        await self.nc.close()

    async def publish_refused(self, subject: str, payload: bytes = b"", reply: str = "") -> bool:
        """Whether the server refuses the publish, and says so."""
        self.errors.clear()
        await self.nc.publish(subject, payload, reply=reply)
        return await self._heard(f'violation for publish to "{subject.lower()}"')

    async def subscribe_refused(self, subject: str) -> bool:
        """Whether the server refuses the subscription, and says so."""
        self.errors.clear()
        sub = await self.nc.subscribe(subject)
        refused = await self._heard(f'violation for subscription to "{subject.lower()}"')
        await sub.unsubscribe()
        return refused

    async def answers(self, subject: str, payload: bytes = b"") -> list[Msg]:
        """All that comes back to an inbox of ours, until nothing has come for a while."""
        box = await self.nc.subscribe(f"_INBOX.{self.credentials.name}.answers")
        await self.nc.publish(subject, payload, reply=box.subject)
        found = []
        try:
            while True:
                found.append(await box.next_msg(timeout=0.3))
        except NatsTimeout:
            return found
        finally:
            await box.unsubscribe()

    async def inject(self, reply: str) -> None:
        """Ask the server for something in a way that its answers go to `reply`."""
        host = self.host
        await self.nc.publish(subjects.heartbeat(host), b"x", reply=reply)
        await self.nc.publish(subjects.acks(host), b"x", reply=reply)
        await self.nc.publish(subjects.direct_get("DESIRED", subjects.desired(host)), reply=reply)
        await self.nc.flush()

    async def _heard(self, text: str) -> bool:
        await self.nc.flush()
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            if any(text in error for error in self.errors):
                return True
            await asyncio.sleep(0.005)
        return False


def signature(key: str, nonce: str) -> bytes:
    return base64.b64encode(SigningKey(natsjwt.raw_seed(key)).sign(nonce.encode()).signature)


class Socket:
    """A connection that says what it is told to, and reads nothing once it is in."""

    def __init__(self, lab, credentials) -> None:
        self.lab, self.credentials, self.error = lab, credentials, ""

    async def open(self, context: ssl.SSLContext) -> bool:
        """Whether the server lets it in; `error` is what it says otherwise."""
        engine = self.lab.engine
        try:
            self.reader, self.writer = await asyncio.open_connection(engine.host, engine.port, limit=1 << 16)
            info = json.loads((await self.reader.readline())[5:])
            await self.writer.start_tls(context)
            key = natsjwt.seed_nkey("user", self.credentials.seed)
            said = base64.b64decode(signature(key, info["nonce"]))
            hello = {
                "jwt": self.credentials.jwt, "sig": base64.urlsafe_b64encode(said).decode().rstrip("="),
                "verbose": False, "pedantic": False, "headers": True, "lang": "raw", "version": "0",
                "protocol": 1,
            }  # fmt: skip
            self.writer.write(b"CONNECT " + json.dumps(hello).encode() + b"\r\nPING\r\n")
            await self.writer.drain()
            while (line := await self.reader.readline()) != b"PONG\r\n":
                if not line or line.startswith(b"-ERR"):
                    self.error = line.decode() or "closed"
                    return False
        except (OSError, ValueError) as error:
            self.error = str(error) or type(error).__name__
            return False
        return True

    def say(self, commands: bytes) -> None:
        """Write without reading what comes back."""
        self.writer.transport.pause_reading()
        self.writer.write(commands)

    def close(self) -> None:
        if hasattr(self, "writer"):
            self.writer.transport.abort()
