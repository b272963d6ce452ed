"""Bearer tokens over HTTP: whose a token is, by the store, and what its bearer may do.

A token is 256 random bits, stored hashed, with a role and an end. A request that may change something asks
the store each time, so that a revocation holds at once in every service; one that reads (GET, HEAD) may be
answered by what the store said at most `REMEMBER_SECONDS` ago, never after the token's end. A row of the
store that is not believed (`runtime.register`) belongs to no principal, and is reported.
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler

from aegisflux.domain.audit import Entry
from aegisflux.domain.errors import AegisError, Forbidden
from aegisflux.domain.roles import SYSTEM, Principal, Role, may
from aegisflux.ports.clock import Clock
from aegisflux.ports.store import Queries
from aegisflux.runtime import http, logs, metrics
from aegisflux.runtime.register import Believer
from aegisflux.runtime.uses import Uses

REMEMBER_SECONDS = 5.0
READS = frozenset({"GET", "HEAD"})
PREFIX = "afx_"
MAX_REMEMBERED = 4096
MAX_DOUBTED = 256
JUDGE_SECONDS = 1.0
STATE = "bearers"
FOUND = "aegisflux.found"
log = logs.get("access")

Connection = ASGIConnection[Any, Any, Any, Any]
Guard = Callable[[Connection, BaseRouteHandler], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Who:
    """Who asks: for the audit log."""

    principal: Principal = SYSTEM
    source: str = ""
    request_id: str = ""

    def did(self, action: str, what: str, *, before: str = "", after: str = "", reason: str = "") -> Entry:
        """A line of the audit log."""
        return Entry(
            actor=self.principal.name,
            action=action,
            object=what,
            source=self.source,
            before=before,
            after=after,
            reason=reason,
            request_id=self.request_id,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of a request's token before its route was known: nobody, or why nothing could be."""

    principal: Principal | None
    error: AegisError | None = None


class _Remembered(NamedTuple):
    """Who the store said a token belongs to; `until` is in seconds since the epoch."""

    until: float
    principal: Principal


class Bearers:
    """Who a token belongs to."""

    def __init__(self, store: Queries, clock: Clock, believer: Believer) -> None:
        self._store, self._clock, self._believer = store, clock, believer
        self._known: dict[bytes, _Remembered] = {}
        self._uses = Uses(store)
        self.doubted: dict[str, str] = {}
        self._judged_at = float("-inf")

    async def principal(self, token: str, *, fresh: bool = True) -> Principal | None:
        """The bearer of a token; None for one that is unknown, expired or revoked. `fresh` False: the
        store may have said so up to `REMEMBER_SECONDS` ago."""
        digest, now = hashed(token), self._clock.now()
        known = self._known.get(digest)
        if known is not None and known.until <= now:
            known = None
        if known is not None and not fresh:
            return known.principal
        # Taken out while the store is asked: a read that comes meanwhile asks too.
        self._known.pop(digest, None)
        row = await self._store.row("token", digest)
        if row is None or row["revoked_at"] is not None:
            return None
        if row["expires_at"] is not None and row["expires_at"] <= now:
            return None
        why = await self._believer.doubt(row)
        if why:
            self._refused(row["id"], why)
            return None
        if known is None:  # else its last use was noted within these seconds
            self._uses.note(row["id"], int(now))
        found = Principal(row["name"], row["role"], row["host_id"], row["id"])
        self._remember(digest, found, known.until if known else now + REMEMBER_SECONDS, row["expires_at"])
        return found

    def _remember(self, digest: bytes, found: Principal, until: float, expires_at: int | None) -> None:
        if len(self._known) > MAX_REMEMBERED:
            self._known.clear()
        self._known[digest] = _Remembered(until if expires_at is None else min(until, expires_at), found)

    def _refused(self, number: str, why: str) -> None:
        """Count it, and say it once for each row."""
        metrics.tokens_doubted.inc()
        if self.doubted.get(number) != why:
            if len(self.doubted) >= MAX_DOUBTED:
                self.doubted.clear()
            self.doubted[number] = why
            log.error("a token is refused: its row in the store is not believed", token=number, why=why)

    async def said(self) -> str:
        """What `/readyz` tells of tokens, in words."""
        await self._judge_again()
        said = "none is doubted"
        if self.doubted:
            said = f"{len(self.doubted)} refused, their rows are not believed: see aegisflux audit verify"
        if self._believer.trouble:
            said += f"; newer ones are not believed: {self._believer.trouble}"
        return said

    async def _judge_again(self) -> None:
        """Forget the doubts about rows that are gone, or believed by now."""
        now = self._clock.now()
        if not self.doubted or abs(now - self._judged_at) < JUDGE_SECONDS:
            return
        self._judged_at = now
        still = {}
        for row in await self._store.rows("tokens"):
            if row["id"] in self.doubted and row["revoked_at"] is None and await self._believer.doubt(row):
                still[row["id"]] = self.doubted[row["id"]]
        self.doubted = still

    def forget(self) -> None:
        """Ask the store again from now on."""
        self._known.clear()


def new_token() -> str:
    """The text of a token: a secret of 256 bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(token: str) -> bytes:
    """What is stored of a token; its 256 random bits need no slow hash."""
    return sha256(token.encode()).digest()


def token_in(authorization: str) -> str:
    """The bearer token of such a header, or nothing."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def may_change(scope: Any) -> bool:
    """Whether a request may change something, by its method: then nothing remembered decides who asks."""
    return scope["method"] not in READS


async def bearer_of(connection: Connection) -> Principal:
    """Who asks, by the bearer token; 401 when nobody is known by it."""
    token = token_in(connection.headers.get("Authorization", ""))
    if not token:
        raise NotAuthorizedException(
            "a bearer token is needed: Authorization: Bearer <token>",
            headers={"WWW-Authenticate": "Bearer"},
        )
    known: Found | None = connection.scope["state"].get(FOUND)
    if known is not None and known.error is not None:
        raise known.error
    bearers: Bearers = connection.app.state[STATE]
    if known is not None:
        found = known.principal
    else:
        found = await bearers.principal(token, fresh=may_change(connection.scope))
    if found is None:
        raise NotAuthorizedException(
            "this token is unknown, expired or revoked",
            headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
        )
    return found


async def is_viewer(connection: Connection) -> bool:
    """Whether a valid token of a viewer or a higher role came with a request that needs none."""
    if connection.app.state[STATE] is None or "Authorization" not in connection.headers:
        return False
    try:
        return may((await bearer_of(connection)).role, "viewer")
    except (NotAuthorizedException, AegisError):
        return False


def needs(role: Role) -> Guard:
    """A guard: a bearer of this role or a higher one. The application's state holds `Bearers`."""

    async def guard(connection: Connection, _handler: BaseRouteHandler) -> None:
        found = connection.scope["user"] = await bearer_of(connection)
        if not may(found.role, role):
            raise Forbidden(f"this needs the role {role}; {found.name} is {found.role}")

    return guard


async def needs_source(connection: Connection, _handler: BaseRouteHandler) -> None:
    """A guard: a bearer who may post events, as one host."""
    found = connection.scope["user"] = await bearer_of(connection)
    if found.role != "source" or found.host_id is None:
        raise Forbidden(
            f"this needs a token of the role source, bound to a host; {found.name} is {found.role}"
        )


def who(request: Request[Any, Any, Any]) -> Who:
    """Who asks, for the audit log."""
    client = request.client
    return Who(request.scope["user"], client.host if client else "", http.request_id(request))
