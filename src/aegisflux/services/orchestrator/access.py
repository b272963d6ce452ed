"""Bearer tokens: stored hashed, with a role and an end. Checked against the store, remembered for a few
seconds.
"""

import secrets
from hashlib import sha256

from msgspec import Struct

from aegisflux.domain.errors import Invalid, NotFound
from aegisflux.domain.roles import ROLES, Principal, Role
from aegisflux.services.orchestrator.core import Core, Who

REMEMBER_SECONDS = 5.0
PREFIX = "afx_"
MAX_REMEMBERED = 4096


class NewToken(Struct, frozen=True):
    """A new token, shown this once. `token` is a secret."""

    id: str
    name: str
    role: Role
    token: str
    expires_at: int | None


class TokenView(Struct, frozen=True):
    """A token as people see it. Times are seconds since the epoch."""

    id: str
    name: str
    role: Role
    created_at: int
    created_by: str
    expires_at: int | None
    last_used: int | None
    revoked_at: int | None


class Access:
    """Who a token belongs to."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._known: dict[bytes, tuple[float, Principal]] = {}

    async def principal(self, token: str) -> Principal | None:
        """The bearer of a token; None for one that is unknown, expired or revoked."""
        digest, now = hashed(token), self._core.clock.now()
        known = self._known.get(digest)
        if known is not None and known[0] > now:
            return known[1]
        self._known.pop(digest, None)
        row = await self._core.store.row("token", digest)
        if row is None or row["revoked_at"] is not None:
            return None
        if row["expires_at"] is not None and row["expires_at"] <= now:
            return None
        await self._core.store.run("touch_token", row["id"], int(now))
        if len(self._known) > MAX_REMEMBERED:
            self._known.clear()
        found = Principal(row["name"], row["role"])
        self._known[digest] = now + REMEMBER_SECONDS, found
        return found

    async def issue(self, name: str, role: Role, ttl_seconds: int | None, who: Who) -> NewToken:
        """A new token; `ttl_seconds` None: until it is revoked."""
        if role not in ROLES:
            raise Invalid("role", " or ".join(ROLES), role)
        token, now = new_token(), self._core.now()
        expires = now + ttl_seconds if ttl_seconds else None
        number = secrets.token_hex(6)
        async with self._core.store.change() as db:
            await db.run("add_token", number, name, role, hashed(token), now, who.principal.name, expires)
            await db.audit(who.did("token.issue", f"token/{number}", after=f"{name} {role}"))
        return NewToken(number, name, role, token, expires)

    async def keep(self, name: str, role: Role, token: str) -> None:
        """Know a token that lies in a file of ours; one that was revoked stays so."""
        if await self._core.store.row("token", hashed(token)) is not None:
            return
        now = self._core.now()
        async with self._core.store.change() as db:
            number = secrets.token_hex(6)
            await db.run("add_token", number, name, role, hashed(token), now, "system", None)
            await db.audit(Who().did("token.issue", f"token/{number}", after=f"{name} {role}"))

    async def revoke(self, number: str, who: Who) -> None:
        """End a token at once; raises NotFound."""
        async with self._core.store.change() as db:
            if not number.isalnum() or await db.row("revoke_token", number, self._core.now()) is None:
                raise NotFound(f"token {number} does not exist or is revoked")
            await db.audit(who.did("token.revoke", f"token/{number}"))
        self._known.clear()

    async def all(self) -> tuple[TokenView, ...]:
        """All tokens, oldest first; never their text."""
        return tuple(TokenView(**dict(row)) for row in await self._core.store.rows("tokens"))


def new_token() -> str:
    """The text of a token: a secret of 256 bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(token: str) -> bytes:
    """What is stored of a token; its 256 random bits need no slow hash."""
    return sha256(token.encode()).digest()
