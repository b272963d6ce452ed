"""The bus on NATS: one connection of one user, over TLS, that comes back for ever.

nats-py's own reconnecting is off: it ends for good when the server refuses it once, as a server does whose
accounts are not loaded yet. Here a lost connection is replaced by a new one, and subscriptions attach to it.
"""

import asyncio
import base64
import contextlib
import json
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from nacl.signing import SigningKey
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError, NoServersError

from aegisflux.adapters.bus import reading, streams
from aegisflux.adapters.bus.admission import Admission, host_in
from aegisflux.adapters.bus.consumer import Consumer
from aegisflux.adapters.bus.line import Line
from aegisflux.adapters.bus.serving import BUSY, REFUSED, UNAVAILABLE, Service, Told
from aegisflux.adapters.bus.subscribed import Watch, described, message_of
from aegisflux.domain.errors import Busy, Forbidden, Invalid, OverLimit, Refused, Unavailable, Unheard
from aegisflux.domain.windows import Asking
from aegisflux.ports.bus import (
    ASKING,
    PULL_BYTES,
    BatchHandler,
    Callback,
    Fair,
    Handler,
    Message,
    Responder,
    Serving,
    Subscription,
)
from aegisflux.runtime.ending import end
from aegisflux.runtime.over_share import LetterRoom, Refusals
from aegisflux.wire import subjects
from aegisflux.wire.natsjwt import Credentials

OLDEST_SERVER = (2, 12)
TRY_SECONDS, PUBLISH_SECONDS, CONNECT_SECONDS = 2.0, 10.0, 5
FIRST_PAUSE, LAST_PAUSE, CROWDED_PAUSE = 0.05, 2.0, 0.1
CONNECTS_AT_ONCE = 32
PENDING_BYTES = 32 << 20
PING_SECONDS = 5
FRAME_BYTES = 16  # of headers as a whole
CLOSE_SECONDS = LOOK_SECONDS = 1.0
READS_SECONDS = 15.0
TOO_LARGE = 10_054  # the store's number for a message beyond the bound of its stream
TOO_MANY = 10_167  # and for one more than may wait to be stored
PUBLISH_VIOLATION = re.compile(r'permissions violation for publish to "([^"]+)"', re.IGNORECASE)

Trouble = Callable[[str], None]


class Crowded(Unavailable):
    """More waits to be stored than the bus holds; a place is free in a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsOptions:
    """Who connects where. `trouble` hears in words what goes wrong apart from calls: refused permissions.
    `makes_streams`: False for a user who may not; another one makes them. `over_share` hears the name of the
    queue in which a host had no share left. `fresh`: for who makes their own credentials, the JWT to show at
    each connect; they end like those of others.
    """

    urls: Sequence[str]
    credentials: Credentials
    ca_pem: str
    trouble: Trouble
    makes_streams: bool = True
    over_share: Callable[[str, int], None] = lambda _queue, _count: None
    fresh: Callable[[], str] | None = None


class Attachable(Subscription, Protocol):
    """A subscription that can be put on a new connection."""

    async def attach(self, bus: "NatsBus", nc: Line) -> None:
        """Be heard on the connection."""
        ...


def _trusting(ca_pem: str) -> ssl.SSLContext:
    """A context that believes these certificates alone; raises Invalid where there are none."""
    try:
        if not ca_pem.strip():  # the library would believe every CA of the system
            raise ValueError("an empty file")
        return ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise Invalid("the CA of NATS", "certificates in PEM", str(error)) from None


def _is_news(record: logging.LogRecord) -> bool:
    """nats-py makes its TLS streams of a kind that lets asyncio warn of every one that ends, to no effect."""
    return "eof_received() has no effect" not in record.getMessage()


class NatsBus:
    """`Bus` on NATS. `open` connects in the background; `ready` waits for the first connection."""

    def __init__(self, options: NatsOptions) -> None:
        logging.getLogger("asyncio").addFilter(_is_news)
        self._options = options
        self._user_jwt = options.credentials.jwt
        self._signing = SigningKey(options.credentials.seed)
        self._name = options.credentials.name
        self._tls = _trusting(options.ca_pem)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._nc: Line | None = None
        self._up = asyncio.Event()
        self._lost: asyncio.Future[str] | None = None
        self._attached: list[Attachable] = []
        self._callbacks: list[Callback] = []
        self._denials: dict[str, asyncio.Future[str]] = {}
        self._closing = False
        self._last_error = "not connected yet"
        self._task: asyncio.Task[None] | None = None
        self._again: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to connect."""
        assert self._task is None
        self._task = asyncio.create_task(self._run(), name=f"bus of {self._name}")

    async def ready(self, timeout: float = 30.0) -> None:
        """Until connected; raises Unavailable with the last error after `timeout` seconds."""
        await self._client(time.monotonic() + timeout)

    @property
    def connected(self) -> bool:
        """See `Bus.connected`."""
        return self._up.is_set()

    def use(self, user_jwt: str) -> None:
        """Show another JWT of the same key from the next connect on; the server cuts a connection whose JWT
        ends."""
        self._user_jwt = user_jwt

    @property
    def last_error(self) -> str:
        """Why the last connection failed or ended, in words."""
        return self._last_error

    async def publish(
        self, subject: str, payload: bytes, *, msg_id: str = "", headers: Mapping[str, str] | None = None
    ) -> int:
        """See `Bus.publish`; gives up after 10 s."""
        deadline = time.monotonic() + PUBLISH_SECONDS
        tagged, pause = streams.tagged(subject, msg_id, headers), FIRST_PAUSE
        while True:
            try:
                answer = await self._ask(subject, payload, TRY_SECONDS, deadline, tagged)
                return _stored(subject, answer, len(payload))
            except Unavailable as error:
                if isinstance(error, Crowded):  # a place is free in a moment: whoever waits long gets none
                    pause = min(pause, CROWDED_PAUSE)
                rest = pause * (1 + random.random())
                if time.monotonic() + rest > deadline:
                    raise  # why it is not stored, and not that the time is over
                await asyncio.sleep(rest)
                pause = min(pause * 2, LAST_PAUSE)

    async def last(self, subject: str) -> Message | None:
        """See `Bus.last`."""
        where = subjects.direct_get(subjects.stream_of(subject).name, subject)
        answer = await self._ask(where, b"", TRY_SECONDS, time.monotonic() + PUBLISH_SECONDS)
        status = (answer.headers or {}).get("Status")
        if status == "404":
            return None
        if status is not None:
            raise Unavailable(
                f"{subject}: the bus answered {status} {(answer.headers or {}).get('Description', '')}"
            )
        return message_of(answer, subject)

    async def request(self, subject: str, payload: bytes, timeout: float = 5.0) -> bytes:
        """See `Bus.request`."""
        answer = await self._ask(subject, payload, timeout, time.monotonic() + timeout)
        headers = answer.headers or {}
        if REFUSED in headers:
            raise Refused(headers[REFUSED])
        if BUSY in headers:
            raise Busy(headers[BUSY])
        if UNAVAILABLE in headers:
            raise Unavailable(headers[UNAVAILABLE])
        return bytes(answer.data)

    async def call(self, subject: str, payload: bytes, timeout: float = 5.0) -> bytes:
        """A request on any subject, also those of the server itself."""
        answer = await self._ask(subject, payload, timeout, time.monotonic() + timeout)
        return bytes(answer.data)

    async def call_all(self, subject: str) -> list[bytes]:
        """What each server says on one of its own subjects; those that say nothing within a second are left
        out, and so are all where this user may not ask."""
        nc = await self._client(time.monotonic() + TRY_SECONDS)
        try:
            return await reading.answers(nc, subject)
        except NatsError as error:
            raise Unavailable(f"{subject}: {described(error)}") from error

    async def send(self, subject: str, payload: bytes) -> None:
        """Publish without waiting: answers to consumers."""
        nc = await self._client(time.monotonic() + TRY_SECONDS)
        try:
            await nc.publish(subject, payload)
        except NatsError as error:
            raise Unavailable(f"{subject}: {error}") from error

    async def watch(self, subject: str, handler: Handler) -> Subscription:
        """See `Bus.watch`."""
        return await self._attach(Watch(subject, handler, self._options.trouble))

    async def serve(
        self, subject: str, responder: Responder, hosts: Iterable[str] = (), asking: Asking = ASKING
    ) -> Serving:
        """See `Bus.serve`."""
        trouble, count = self._options.trouble, self._options.over_share
        large = Refusals(f"{subject} too large", trouble, count, f"larger than {asking.most_bytes} bytes")
        made = Service(subject, responder, asking, Told(Refusals(subject, trouble, count), large, trouble))
        await made.only(hosts if subject.endswith("*") else [host_in(subject)])
        await self._attach(made)
        return made

    async def consume(
        self,
        stream: str,
        durable: str,
        handler: BatchHandler,
        *,
        batch: int = 256,
        linger: float = 0,
        max_bytes: int = PULL_BYTES,
        fair: Fair | None = None,
    ) -> Subscription:
        """See `Bus.consume`."""
        trouble, over = self._options.trouble, self._options.over_share
        admission = Admission(fair, stream, trouble, over)
        letters = LetterRoom(subjects.dead(stream), trouble, over)
        bounds = {"batch": batch, "linger": linger, "max_bytes": max_bytes}
        return await self._attach(
            Consumer(self, stream, durable, handler, admission, letters, trouble, **bounds)  # type: ignore[arg-type]
        )

    async def read(self, stream: str, after: int, limit: int, subject: str = ">") -> Sequence[Message]:
        """See `Bus.read`."""
        nc = await self._client(time.monotonic() + PUBLISH_SECONDS)
        try:
            return await reading.read(nc, stream, after, limit, subject)
        except NatsError as error:
            raise Unavailable(f"{stream}: {described(error)}") from error

    async def lag(self, stream: str, durable: str) -> int:
        """See `Bus.lag`."""
        where = f"$JS.API.CONSUMER.INFO.{stream}.{durable}"
        return reading.lag_of(await self.call(where, b"", TRY_SECONDS))

    async def ensure_streams(self) -> tuple[str, ...]:
        """See `Bus.ensure_streams`."""
        if not self._options.makes_streams:
            return ()
        nc = await self._client(time.monotonic() + PUBLISH_SECONDS)
        try:
            return await streams.ensure(nc.jetstream(timeout=CONNECT_SECONDS))
        except (NatsError, TimeoutError) as error:
            raise Unavailable(f"streams: {error}") from error

    def on_connect(self, callback: Callback) -> None:
        """See `Bus.on_connect`."""
        self._callbacks.append(callback)

    def detach(self, attached: Attachable) -> None:
        """Forget a subscription that was closed."""
        if attached in self._attached:
            self._attached.remove(attached)

    async def close(self) -> None:
        """See `Bus.close`."""
        self._closing = True
        for attached in list(self._attached):
            await attached.close()
        for task in (self._task, self._again):
            if task is not None:
                await end(task)
        self._up.clear()
        await self._discard()

    async def _attach(self, attached: Attachable) -> Subscription:
        self._attached.append(attached)
        if self._nc is not None and self._up.is_set():
            await attached.attach(self, self._nc)
        return attached

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with _room():
                    nc = await self._connect()
                await self._attach_all(nc)
            except (OSError, NatsError, TimeoutError, Unavailable) as error:
                if not isinstance(error, NoServersError):  # then the reason was heard before
                    self._fail(f"cannot connect: {described(error)}")
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, LAST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self._up.set()
            self._again = asyncio.create_task(self._call_back())
            await self._until_lost(nc)
            self._up.clear()
            self._again.cancel()

    async def _until_lost(self, nc: Line) -> None:
        """Two tasks of nats-py that see the end at once may cancel each other before its callback: look."""
        lost = self._lost
        assert lost is not None
        reader: asyncio.Task[None] | None = getattr(nc, "_reading_task", None)
        while not lost.done():
            reads = reader is not None and not reader.done()  # then there is nothing to see
            waiting: set[asyncio.Future[Any]] = {lost, reader} if reads and reader is not None else {lost}
            pause = READS_SECONDS if reads else LOOK_SECONDS
            await asyncio.wait(waiting, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            if nc.is_closed and not lost.done():
                lost.set_result("the connection ended")

    async def _attach_all(self, nc: Line) -> None:
        """Put every subscription on the connection, those too that come while this is under way."""
        done: list[Attachable] = []
        while missing := [attached for attached in self._attached if attached not in done]:
            await missing[0].attach(self, nc)
            done.append(missing[0])

    async def _connect(self) -> Line:
        await self._discard()
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lost = lost
        nc = self._nc = Line()

        async def closed() -> None:
            if self._up.is_set() and not self._closing:
                self._fail(f"connection ended: {nc.last_error or 'the server went away'}")
            if not lost.done():
                lost.set_result("the connection ended")

        await nc.connect(
            servers=list(self._options.urls),
            name=self._name,
            inbox_prefix=subjects.inbox(self._name).encode(),
            tls=self._tls,
            user_jwt_cb=self._jwt,
            signature_cb=self._sign,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=CONNECT_SECONDS,
            ping_interval=PING_SECONDS,
            error_cb=self._on_error,
            closed_cb=closed,
            pending_size=PENDING_BYTES,
        )
        version = nc.connected_server_version
        if (version.major, version.minor) < OLDEST_SERVER:
            await nc.close()
            raise Unavailable(
                f"the bus: expected NATS server 2.12 or newer, got {version.major}.{version.minor}"
            )
        return nc

    async def _discard(self) -> None:
        """Close an earlier connection; one whose TLS failed half-way never says that it is closed."""
        nc, self._nc = self._nc, None
        if nc is not None:
            with contextlib.suppress(TimeoutError, OSError, NatsError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await nc.close()

    async def _call_back(self) -> None:
        for callback in self._callbacks:
            try:
                await callback()
            except (Refused, Unavailable) as error:
                self._fail(f"after the connect: {error}")

    def _jwt(self) -> bytes:
        return (self._options.fresh() if self._options.fresh else self._user_jwt).encode()

    def _sign(self, nonce: str) -> bytes:
        return base64.b64encode(self._signing.sign(nonce.encode()).signature)

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        found = PUBLISH_VIOLATION.search(text)
        denial = self._denials.get(found[1].lower()) if found else None
        if denial is not None and not denial.done():
            denial.set_result(text)
        self._fail(f"{', '.join(self._options.urls)}: {described(error)}")

    def _fail(self, text: str) -> None:
        if text == self._last_error and not self._up.is_set():
            return
        self._last_error = text
        self._options.trouble(text)

    async def _client(self, deadline: float) -> Line:
        while True:
            if self._closing:
                raise Unavailable("the bus is closed")
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._up.wait()
            except TimeoutError:
                raise Unavailable(f"the bus is not connected: {self._last_error}") from None
            # Between the event and our turn the connection may have been lost again.
            if self._nc is not None and self._up.is_set():
                return self._nc

    async def _ask(
        self,
        subject: str,
        payload: bytes,
        timeout: float,
        deadline: float,
        headers: dict[str, str] | None = None,
    ) -> Msg:
        nc = await self._client(deadline)
        size = len(payload) + sum(len(name) + len(value) + 4 for name, value in (headers or {}).items())
        if size + FRAME_BYTES > nc.max_payload:
            raise OverLimit("message", nc.max_payload, size, subject)
        loop = asyncio.get_running_loop()
        denial = self._denials.setdefault(subject.lower(), loop.create_future())
        asked = asyncio.ensure_future(nc.request(subject, payload, timeout=timeout, headers=headers))
        try:
            return await self._first(subject, asked, denial)
        except NoRespondersError:
            raise Unheard(f"{subject}: nobody answers there") from None
        except (NatsError, TimeoutError) as error:
            raise Unavailable(f"{subject}: no answer within {timeout:g} s ({described(error)})") from error
        finally:
            asked.cancel()
            self._denials.pop(subject.lower(), None)

    async def _first(self, subject: str, asked: asyncio.Future[Msg], denial: asyncio.Future[str]) -> Msg:
        """The answer; Forbidden or Unavailable as soon as the server refuses or goes away."""
        lost = self._lost
        assert lost is not None
        waiting: set[asyncio.Future[Any]] = {asked, denial, lost}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        if denial.done():
            raise Forbidden(f"{subject}: {denial.result()}")
        raise Unavailable(f"{subject}: {lost.result()}")


_ROOMS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def _room() -> asyncio.Semaphore:
    """A process with hundreds of connections makes few at once: all together, none would be ready in time."""
    return _ROOMS.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(CONNECTS_AT_ONCE))


def _stored(subject: str, answer: Msg, size: int) -> int:
    try:
        body: dict[str, Any] = json.loads(answer.data)
    except ValueError:
        raise Unavailable(f"{subject}: expected an acknowledgement of the store, got other bytes") from None
    if body.get("error", {}).get("err_code") == TOO_LARGE:  # it never will be
        raise OverLimit("message", subjects.stream_of(subject).max_message, size, subject)
    if body.get("error", {}).get("err_code") == TOO_MANY:
        raise Crowded(f"{subject}: not stored: more waits to be stored than the bus holds")
    if "error" in body:
        raise Unavailable(f"{subject}: not stored: {body['error'].get('description')}")
    return int(body["seq"])
