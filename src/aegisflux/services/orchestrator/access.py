"""API tokens: made, listed, ended. Whose a token is says `runtime.access`; which rows are believed,
`runtime.register`.
"""

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct

from aegisflux.domain import rights
from aegisflux.domain.errors import Conflict, Invalid, NotFound
from aegisflux.domain.names import looks
from aegisflux.domain.rights import Token
from aegisflux.domain.roles import ROLES, SYSTEM, Principal, Role
from aegisflux.domain.text import is_printable
from aegisflux.ports.clock import Clock
from aegisflux.ports.store import Change, Row, Store
from aegisflux.runtime import logs
from aegisflux.runtime.access import Bearers, hashed, new_token
from aegisflux.runtime.again import again
from aegisflux.runtime.register import Register, token_of
from aegisflux.services.orchestrator.agreed import adopt
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.effects import Effect, attempt
from aegisflux.wire.subjects import host_token

MAX_NAME: Final = 64
log = logs.get("access")


class NewToken(Struct, frozen=True):
    """A new token, shown this once. `token` is a secret."""

    id: str
    name: str
    role: Role
    token: str
    expires_at: int | None
    host_id: str | None = None


class TokenView(Struct, frozen=True):
    """A token as people see it. Times are seconds since the epoch. `troubles`: why it is refused, or what is
    odd about its name."""

    id: str
    name: str
    role: Role
    created_at: int
    created_by: str
    expires_at: int | None
    last_used: int | None
    revoked_at: int | None
    host_id: str | None = None
    troubles: tuple[str, ...] = ()


class Needed(Protocol):
    """What tokens need of `Core`."""

    @property
    def store(self) -> Store:
        """Where their rows are."""
        ...

    @property
    def clock(self) -> Clock:
        """When they end."""
        ...

    @property
    def register(self) -> Register:
        """Which of their rows are believed."""
        ...

    def now(self) -> int:
        """Whole seconds since the epoch."""
        ...


class Access:
    """Who a token belongs to."""

    def __init__(self, core: Needed) -> None:
        self._core = core
        self.register = core.register
        self.bearers = Bearers(core.store, core.clock, self.register)

    async def principal(self, token: str, *, fresh: bool = True) -> Principal | None:
        """See `Bearers.principal`."""
        return await self.bearers.principal(token, fresh=fresh)

    @again
    async def issue(
        self, name: str, role: Role, ttl_seconds: int | None, who: Who, host_id: str | None = None
    ) -> NewToken:
        """A new token; `ttl_seconds` None: until it is revoked. One of the role source is a host's. Raises
        Invalid, or Conflict for a name that a living token has."""
        if role not in ROLES:
            raise Invalid("role", " or ".join(ROLES), role)
        if (role == "source") != (host_id is not None):
            raise Invalid("host_id", "a host for the role source, and only for it", host_id)
        if host_id is not None:
            host_token(host_id)
        _check_name(name)
        text, now = new_token(), self._core.now()
        token = Token(
            id=secrets.token_hex(6), name=name, role=role, hash=hashed(text), created_at=now, host_id=host_id,
            created_by=who.principal.name, expires_at=now + ttl_seconds if ttl_seconds else None,
        )  # fmt: skip
        async with self._core.store.change() as db:
            for row in await db.rows("tokens"):
                if _lives(row, now) and looks(row["name"]) == looks(name):
                    raise Conflict(
                        f"the name {name} belongs to token {row['id']}: choose another, or revoke that one"
                    )
            await self._add(db, "add_token", token, who)
        await self.register.follow()
        return NewToken(token.id, name, role, text, token.expires_at, host_id)

    @again
    async def replace(self, name: str, role: Role, old: str, text: str, dry_run: bool = False) -> Effect:
        """Know this token in place of the one that was in our file, which ends with it. Raises Conflict while
        nothing new is believed."""
        await self.register.follow()
        if self.register.trouble:
            raise Conflict(f"{self.register.trouble}: no new token is believed; see aegisflux audit accept")
        token, did = self._own(name, role, text), []
        async with attempt(self._core.store, dry_run) as db:
            row = await db.row("token", hashed(old))
            if row is not None and row["revoked_at"] is None:
                await db.row("revoke_token", row["id"], self._core.now())
                before = row["hash"].hex()
                await db.audit(Who().did(rights.REVOKE, f"{rights.OBJECT}{row['id']}", before=before))
                did.append(f"ends token {row['id']} ({row['name']}, role {row['role']})")
            await self._add(db, "add_token", token, Who())
        did.append(f"makes a new token of the role {role}")
        what = f"{rights.OBJECT}{token.id}"
        return Effect(action=rights.ISSUE, object=what, did=tuple(did), dry_run=dry_run)

    def _own(self, name: str, role: Role, text: str) -> Token:
        return Token(
            id=secrets.token_hex(6), name=name, role=role, hash=hashed(text), created_at=self._core.now(),
            created_by=SYSTEM.name, expires_at=None, host_id=None,
        )  # fmt: skip

    @again
    async def keep(self, name: str, role: Role, text: str) -> None:
        """Know a token that lies in a file of ours; one that was revoked stays so, whatever the store has."""
        await self.register.follow()
        row = await self._core.store.row("token", hashed(text))
        if self.register.rights.is_revoked(hashed(text)):
            return
        if row is not None and (row["revoked_at"] is not None or not await self.register.doubt(row)):
            return
        async with self._core.store.change() as db:
            await self._add(db, "keep_token", self._own(name, role, text), Who())

    async def _add(self, db: Change, query: str, token: Token, who: Who) -> None:
        values = [getattr(token, name) for name in Token.__struct_fields__]
        await db.run(query, *values, self.register.mac(token))
        await db.audit(who.did(rights.ISSUE, f"{rights.OBJECT}{token.id}", after=rights.said(token)))

    @again
    async def seal(self) -> None:
        """Once: give a MAC to each row of before there were any, as far as the audit log has it, and have the
        log say what older lines left out.
        """
        await self.register.follow()
        if self.register.rights.sealed or self.register.trouble:
            return
        await adopt(self._core.store, self.register)
        async with self._core.store.change() as db:
            count = 0
            for row in await db.rows("tokens"):
                token = token_of(row)
                if row["mac"] is None and row["revoked_at"] is None and self.register.rights.adopts(token):
                    count += 1
                    await db.run("seal_token", token.id, self.register.mac(token))
                    what = f"{rights.OBJECT}{token.id}"
                    await db.audit(Who().did(rights.SEAL, what, after=rights.said(token)))
            await db.audit(Who().did(rights.SEAL, rights.ALL, after=f"{count} tokens"))
        await self.register.follow()

    @again
    async def revoke(self, number: str, who: Who, force: bool = False, dry_run: bool = False) -> Effect:
        """End a token; raises NotFound, and Conflict for the last one of an admin without `force`. See
        `runtime.access` for when that holds elsewhere."""
        await self.register.follow()
        what = f"{rights.OBJECT}{number}"
        async with attempt(self._core.store, dry_run) as db:
            rows = await db.rows("tokens")
            if not force:
                self._check_not_last(rows, number)
            row = await db.row("revoke_token", number, self._core.now()) if number.isalnum() else None
            if row is None:
                raise NotFound(f"token {number} does not exist or is revoked; see aegisflux token list")
            await db.audit(who.did(rights.REVOKE, what, before=row["hash"].hex()))
        if not dry_run:
            self.bearers.forget()
            await self.register.follow()
        (name, role), own = self._said(rows, number), who.principal.id == number
        did = (f"ends token {number} ({name}, role {role})", *(("ends the token of this request",) * own))
        return Effect(action=rights.REVOKE, object=what, did=did, dry_run=dry_run)

    @staticmethod
    def _said(rows: Sequence[Row], number: str) -> tuple[str, str]:
        return next((row["name"], row["role"]) for row in rows if row["id"] == number)

    def _check_not_last(self, rows: Sequence[Row], number: str) -> None:
        """One whose row is not believed, or that has ended, is no admin's."""
        now = self._core.now()
        admins = [row for row in rows if row["role"] == "admin" and _lives(row, now)]
        if [row["id"] for row in admins if not self.register.judge(row)] == [number]:
            raise Conflict(
                f"token {number} is the last one of an admin: make another one first, or ask with force=true;"
                " `aegisflux token replace admin`, as root on the control plane, makes one when there is none"
            )

    async def all(self) -> tuple[TokenView, ...]:
        """All tokens, oldest first; never their text."""
        rows, now = await self._core.store.rows("tokens"), self._core.now()
        await self.register.follow()
        named = Counter(looks(row["name"]) for row in rows if _lives(row, now))
        found = []
        for row in rows:
            troubles = []
            if _lives(row, now) and (why := self.register.judge(row)):
                troubles.append(f"refused: {why}")
            if _lives(row, now) and named[looks(row["name"])] > 1:
                troubles.append("another living token has this name: revoke one of them")
            if not is_printable(row["name"]):
                troubles.append("its name has characters that cannot be seen")
            shown = {name: row[name] for name in TokenView.__struct_fields__ if name != "troubles"}
            found.append(TokenView(**shown, troubles=tuple(troubles)))
        return tuple(found)

    async def report(self) -> None:
        """Say in the log what is odd about tokens that live."""
        for view in await self.all():
            if view.troubles:
                log.warning("a token is odd", token=view.id, name=view.name, troubles=list(view.troubles))


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME or name != name.strip() or not is_printable(name):
        words = f"a name of 1 to {MAX_NAME} characters, each of which can be seen, without space around it"
        raise Invalid("name", words, name)
    if looks(name) == SYSTEM.name:
        raise Invalid("name", f"another name: {SYSTEM.name} is who the control plane itself is", name)


def _lives(row: Row, now: int) -> bool:
    ends = row["expires_at"]
    return row["revoked_at"] is None and (ends is None or ends > now)
