"""What stands before an application: who asks, how much of a body is read, and whose request is next.

Without a valid token nobody gets more than 64 KiB of a body read, on no route. Requests wait in lanes: tokens
that are not known yet and callers without one, viewers and sources, operators and above, and in each lane
whoever has waits least. What is urgent (panic) waits in none, for who may ask for it.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, cast

from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from aegisflux.domain.errors import AegisError, Busy
from aegisflux.domain.roles import Principal, Role, may
from aegisflux.runtime import asking, metrics
from aegisflux.runtime.access import FOUND, Found, hashed, may_change, token_in
from aegisflux.runtime.admission import Limits
from aegisflux.runtime.connections import CONNECTION, Connection
from aegisflux.runtime.known import Paths
from aegisflux.runtime.lanes import Lane

ANONYMOUS_BODY: Final = 64 << 10
MAX_BODY: Final = 16 << 20
SMALL_BODY: Final = 64 << 10  # is read without asking for room
UNIT: Final = 64 << 10  # of the room for bodies
REMEMBER_SECONDS: Final = 3600.0
MAX_REMEMBERED: Final = 4096
LIGHT: Final = frozenset({"/healthz", "/version"})  # touch nothing, and wait for nobody
Refuse = Callable[[Scope, Send, AegisError | HTTPException], Any]


class Bearers(Protocol):
    """Whose a token is."""

    async def principal(self, token: str, *, fresh: bool = True) -> Principal | None:
        """The bearer of a token, or None; `fresh`: by the store as it is now."""
        ...


class Front:
    """The application of `app` behind lanes. `bearers` None: nobody has a valid token. `paths` are the
    templates of its routes: without a token, what has none of them is
    refused at once; with one it takes its turn, which costs the others less."""

    def __init__(
        self,
        app: ASGIApp,
        bearers: Bearers | None,
        limits: Limits,
        urgent: Collection[str],
        refuse: Refuse,
        paths: Iterable[str],
    ) -> None:
        self._app, self._bearers, self._limits = app, bearers, limits
        self._urgent, self._refuse, self._paths = frozenset(urgent), refuse, Paths(paths)
        self._roles: OrderedDict[bytes, tuple[float, Role]] = OrderedDict()
        most, peer, tokens = limits.anonymous, limits.of_peer, limits.of_token
        self._probes = Lane("requests without a token", 8, 4, most, peer)
        self._writes = Lane("requests without a token", 6, 3, most, peer)
        self._strangers = Lane("tokens that are new here", 4, 2, most, peer)
        self._readers = Lane("requests of viewers and sources", 8, 4, limits.authenticated, tokens)
        self._operators = Lane("requests of operators", 12, 6, limits.authenticated, tokens)
        self._bodies = Lane("large bodies", 2048, 512, limits.authenticated, tokens)  # 128 MiB, 32 of a token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        connection = cast("Connection | None", scope.get("state", {}).get(CONNECTION))
        if connection is None or connection.private:
            await self._app(scope, receive, send)
            return
        if connection.lost:
            return
        try:
            await self._served(scope, receive, send, connection)
        except Busy as error:
            metrics.http_refused.labels("busy").inc()
            await self._refuse(scope, send, error)
        except HTTPException as error:
            await self._refuse(scope, send, error)
        except asyncio.CancelledError:
            if not connection.lost:
                raise
        finally:
            scope["state"].clear()  # has the body, and would keep it until the connection's next request

    async def _served(self, scope: Scope, receive: Receive, send: Send, connection: Connection) -> None:
        token = "" if scope["path"] in LIGHT else token_of(scope["headers"])
        if not token and scope["path"] not in self._paths:
            raise HTTPException("Not Found", status_code=404)
        digest = hashed(token) if token else b""
        role = self._role(digest)
        found = Found(None) if not token else None
        if token and role is None:
            found = await self._look_up(token, digest, connection, may_change(scope))
            role = found.principal.role if found.principal else None
        turn = _Turn(*self._lane(scope, role, digest, connection.peer), connection)
        body = Body(receive, scope, connection, turn, self._limits)
        if role is None and not await body.whole():
            return
        async with turn:
            if found is None:
                found = await self._found(token, may_change(scope))
                self._remember(digest, found)
            scope["state"][FOUND] = found
            if found.principal is not None:
                connection.prove(digest.hex())
                asking.begin(digest.hex())
                body.room = self._bodies, digest.hex()
            try:
                await self._app(scope, body.receive, body.closing(send))
            finally:
                body.close()

    async def _look_up(self, token: str, digest: bytes, connection: Connection, fresh: bool) -> "Found":
        """Whose a token is that nobody came with in the last hour. Few of one address are looked up at once:
        made-up tokens wait for each other. None is refused unseen, since it could be an operator's first."""
        async with _Turn(self._strangers, connection.peer, connection):
            found = await self._found(token, fresh)
        if found.principal is None and found.error is None:
            metrics.http_unauthorized.labels("unknown").inc()
        self._remember(digest, found)
        return found

    async def _found(self, token: str, fresh: bool) -> "Found":
        if self._bearers is None:
            return Found(None)
        try:
            return Found(await self._bearers.principal(token, fresh=fresh))
        except AegisError as error:
            return Found(None, error)

    def _role(self, digest: bytes) -> Role | None:
        until, role = self._roles.get(digest, (0.0, None))
        return role if until > time.monotonic() else None

    def _remember(self, digest: bytes, found: "Found") -> None:
        """Remember which lane a token has; whether it is valid is asked again each time."""
        if found.principal is not None:
            self._roles.pop(digest, None)
            self._roles[digest] = time.monotonic() + REMEMBER_SECONDS, found.principal.role
            if len(self._roles) > MAX_REMEMBERED:
                self._roles.popitem(last=False)
        elif found.error is None:
            self._roles.pop(digest, None)

    def _lane(self, scope: Scope, role: Role | None, digest: bytes, peer: str) -> tuple[Lane | None, str]:
        if scope["path"] in LIGHT:
            return None, peer
        if role is None:
            reads = scope.get("method") in ("GET", "HEAD")
            return (self._probes if reads else self._writes), peer
        if not may(role, "operator"):
            return self._readers, digest.hex()
        return (None if scope["path"] in self._urgent else self._operators), digest.hex()


def token_of(headers: Any) -> str:
    """The bearer token of a request, or nothing."""
    for name, value in headers:
        if name == b"authorization":
            return token_in(value.decode("latin-1"))
    return ""


class _Turn:
    """A place in a lane, or none where the lane is None; it can be left for a while. Who waits for one and
    loses the connection waits no more."""

    def __init__(self, lane: Lane | None, key: str, connection: Connection) -> None:
        self._lane, self._key, self._connection = lane, key, connection
        self._has = False

    async def __aenter__(self) -> "_Turn":
        await self.enter()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.leave()

    async def enter(self) -> None:
        """Wait for it."""
        if self._lane is None or self._has:
            return
        async with queued(self._connection):
            await self._lane.enter(self._key)
        self._has = True

    def leave(self) -> None:
        """Let others have it."""
        if self._lane is not None and self._has:
            self._has = False
            self._lane.leave(self._key)


@asynccontextmanager
async def queued(connection: Connection) -> AsyncIterator[None]:
    """What is done in here ends with the connection."""
    connection.queued = asyncio.current_task()
    try:
        yield
    finally:
        connection.queued = None


class Body:
    """A request's body: read as a whole when the application asks for it, within its bound and its time, and
    while nobody waits for this one's place in a lane. `room` None: of somebody without a valid token."""

    def __init__(
        self, receive: Receive, scope: Scope, connection: Connection, turn: _Turn, limits: Limits
    ) -> None:
        self._receive, self._connection, self._turn, self._limits = receive, connection, turn, limits
        self.room: tuple[Lane, str] | None = None
        self._length = _length(scope["headers"])
        self._taken = 0
        self._kept: bytes | None = None
        self._read = self._length == 0

    async def whole(self) -> bool:
        """Wait for a body of at most 64 KiB before anything else is done; False where its client left. One
        that is larger is not read: what is to be said of it says the application."""
        if self._read or (self._length or 0) > ANONYMOUS_BODY:
            return True
        self._kept = await self._in_time(ANONYMOUS_BODY, self._limits.header_seconds)
        return self._kept is not None

    async def receive(self) -> Any:
        """See ASGI: the whole body at once."""
        if self._kept is not None:
            whole: bytes | None = self._kept
            self._kept = None
        elif self._read:
            return await self._receive()
        else:
            self._turn.leave()
            most = ANONYMOUS_BODY if self.room is None else MAX_BODY
            seconds = self._limits.header_seconds if self.room is None else self._limits.body_seconds
            whole = await self._in_time(most, seconds)
            await self._turn.enter()
        if whole is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": whole, "more_body": False}

    def closing(self, send: Send) -> Send:
        """Sends an answer that ends the connection where the body was not read."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start" and not self._read:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return sent

    def close(self) -> None:
        """Let go of what it took."""
        if self.room is not None and self._taken:
            self.room[0].leave(self.room[1], self._taken)
            self._taken = 0

    async def _in_time(self, most: int, seconds: float) -> bytes | None:
        if self._length is not None and self._length > most:
            raise _too_large(most)
        self._connection.reads()
        try:
            async with asyncio.timeout(seconds):
                await self._reserve(most)
                found = await self._all(most)
        except TimeoutError:
            metrics.http_refused.labels("slow_body").inc()
            raise HTTPException(f"body: expected within {seconds:.0f} s", status_code=408) from None
        self._read = True
        self._connection.works()
        return found

    async def _reserve(self, most: int) -> None:
        length = most if self._length is None else self._length
        if self.room is None or length <= SMALL_BODY:
            return
        weight = -(-length // UNIT)
        async with queued(self._connection):
            await self.room[0].enter(self.room[1], weight)
        self._taken = weight

    async def _all(self, most: int) -> bytes | None:
        parts, size = list[bytes](), 0
        while True:
            message: Any = await self._receive()
            if message["type"] != "http.request":
                return None
            parts.append(message["body"])
            size += len(message["body"])
            if size > most:
                raise _too_large(most)
            if not message["more_body"]:
                return b"".join(parts)


def _too_large(most: int) -> HTTPException:
    metrics.http_refused.labels("large_body").inc()
    return HTTPException(f"body: at most {most} bytes for this caller", status_code=413)


def _length(headers: Any) -> int | None:
    """How long a body is said to be; None where it comes in chunks."""
    length: int | None = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value) if value.isdigit() and len(value) < 20 else MAX_BODY + 1
    return length
