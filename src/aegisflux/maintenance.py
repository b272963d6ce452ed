"""What commands do to the store of this machine's control plane by themselves, whether or not it runs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aegisflux.adapters.store.postgres import ANY as DRIVER_ERRORS
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.bootstrap import ADMIN, VIEWER, Place, existing
from aegisflux.domain import audit
from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.runtime.access import hashed, new_token
from aegisflux.runtime.clock import WallClock
from aegisflux.runtime.register import Register, audit_key, reaches
from aegisflux.services.orchestrator.acceptance import Acceptance, Accepted
from aegisflux.services.orchestrator.access import Access
from aegisflux.services.orchestrator.agreed import disagreements
from aegisflux.services.orchestrator.effects import Effect
from aegisflux.services.orchestrator.standing import unkept
from aegisflux.settings import Settings

ASK_SECONDS = 2.0


async def audit_problems(settings: Settings) -> tuple[int, list[str]]:
    """How many lines the audit log has; what is wrong with it, and where the store does not agree with it."""
    async with _audited(settings) as (place, store):
        register = Register(store, place.secrets)
        mark = register.read()
        head, lines, differences = await disagreements(store, register)
        kept = await unkept(store, mark) if mark else []
    found = list(audit.problems(lines, head, audit_key(place.secrets)))
    found += filter(None, [reaches(mark, head, lines)])
    found += differences
    named = {text.partition(": ")[0] for text in found}
    found += [text for text in kept if text.partition(": ")[0] not in named]
    return len(lines), found


async def accept_audit(settings: Settings, dry_run: bool) -> Accepted:
    """Take the audit log as it stands, or say what that would mean."""
    async with _audited(settings) as (place, store):
        acceptance = Acceptance(store, place.secrets, place.accounts.revoke)
        return await acceptance.accept(int(time.time()), dry_run)


async def replace_token(
    settings: Settings, role: Literal["admin", "viewer"], dry_run: bool
) -> tuple[Effect, Path]:
    """A new token in our own file, in place of the one before; what that does, and the file. Raises Conflict
    while the log is not the one that was followed."""
    async with _audited(settings) as (place, store):
        name, text = {"admin": ADMIN, "viewer": VIEWER}[role], new_token()
        parts = _TokenParts(store, WallClock(), Register(store, place.secrets))
        effect = await Access(parts).replace(role, role, place.token(name), text, dry_run)
        if not dry_run:
            place.secrets.write(name, text.encode())
        return effect, place.secrets.path(name)


async def viewer_ended(settings: Settings) -> bool:
    """Whether the token that `aegisflux env` exports was revoked; not where the store cannot be asked."""
    place = existing(settings)
    store = PostgresStore(place.dsn_of("orchestrator"), audit_key(place.secrets), None)
    try:
        async with asyncio.timeout(ASK_SECONDS):
            await store.open()
            row = await store.row("token", hashed(place.token(VIEWER)))
            return row is not None and row["revoked_at"] is not None
    except (AegisError, TimeoutError):
        return False
    finally:
        await store.close()


@dataclass(frozen=True, slots=True)
class _TokenParts:
    """What tokens need of a control plane that may not run."""

    store: PostgresStore
    clock: WallClock
    register: Register

    def now(self) -> int:
        """Whole seconds since the epoch."""
        return int(self.clock.now())


@asynccontextmanager
async def _audited(settings: Settings) -> AsyncIterator[tuple[Place, PostgresStore]]:
    place = existing(settings)
    store = place.store("orchestrator")
    try:
        await store.open()
        yield place, store
    except DRIVER_ERRORS as error:  # a table or a right is missing: that is no finding about the log
        raise Unavailable(f"the store: the audit log cannot be read: {error}") from error
    finally:
        await store.close()
