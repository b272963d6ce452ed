"""API tokens: made, listed, ended. Whose a token is says `runtime.access`."""

import secrets

from msgspec import Struct

from aegisflux.domain.errors import Invalid, NotFound
from aegisflux.domain.roles import ROLES, Principal, Role
from aegisflux.domain.text import is_printable
from aegisflux.runtime.access import Bearers, hashed, new_token
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.wire.subjects import host_token


class NewToken(Struct, frozen=True):
    """A new token, shown this once. `token` is a secret."""

    id: str
    name: str
    role: Role
    token: str
    expires_at: int | None
    host_id: str | None = None


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
    host_id: str | None = None


class Access:
    """Who a token belongs to."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.bearers = Bearers(core.store, core.clock)

    async def principal(self, token: str) -> Principal | None:
        """The bearer of a token; None for one that is unknown, expired or revoked."""
        return await self.bearers.principal(token)

    @again
    async def issue(
        self, name: str, role: Role, ttl_seconds: int | None, who: Who, host_id: str | None = None
    ) -> NewToken:
        """A new token; `ttl_seconds` None: until it is revoked. One of the role source is a host's."""
        if role not in ROLES:
            raise Invalid("role", " or ".join(ROLES), role)
        if (role == "source") != (host_id is not None):
            raise Invalid("host_id", "a host for the role source, and only for it", host_id)
        if host_id is not None:
            host_token(host_id)
        if not name or not is_printable(name):
            raise Invalid("name", "a name in which every character can be seen", name)
        token, now = new_token(), self._core.now()
        expires = now + ttl_seconds if ttl_seconds else None
        number = secrets.token_hex(6)
        async with self._core.store.change() as db:
            await db.run(
                "add_token", number, name, role, hashed(token), now, who.principal.name, expires, host_id
            )
            after = f"{name} {role} {host_id or ''}".rstrip()
            await db.audit(who.did("token.issue", f"token/{number}", after=after))
        return NewToken(number, name, role, token, expires, host_id)

    @again
    async def keep(self, name: str, role: Role, token: str) -> None:
        """Know a token that lies in a file of ours; one that was revoked stays so."""
        if await self._core.store.row("token", hashed(token)) is not None:
            return
        now = self._core.now()
        async with self._core.store.change() as db:
            number = secrets.token_hex(6)
            await db.run("add_token", number, name, role, hashed(token), now, "system", None, None)
            await db.audit(Who().did("token.issue", f"token/{number}", after=f"{name} {role}"))

    @again
    async def revoke(self, number: str, who: Who) -> None:
        """End a token at once; raises NotFound."""
        async with self._core.store.change() as db:
            if not number.isalnum() or await db.row("revoke_token", number, self._core.now()) is None:
                raise NotFound(f"token {number} does not exist or is revoked")
            await db.audit(who.did("token.revoke", f"token/{number}"))
        self.bearers.forget()

    async def all(self) -> tuple[TokenView, ...]:
        """All tokens, oldest first; never their text."""
        return tuple(TokenView(**dict(row)) for row in await self._core.store.rows("tokens"))
