"""Rotation of the key that signs: add the new one, wait for the hosts, sign everything anew, wait, remove
the old one.
"""

import asyncio

from msgspec import Struct

from aegisflux.domain.errors import Conflict
from aegisflux.runtime import logs
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator.contents import Contents
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.hosts import is_silent

STEP_SECONDS = 0.5
log = logs.get("rotation")


class KeyState(Struct, frozen=True):
    """The key set in force, the key that signs, and how far a rotation is; `waiting_for` counts hosts."""

    version: int
    keys: tuple[str, ...]
    signing: str
    phase: str
    waiting_for: tuple[str, ...]


class Rotation:
    """The steps of a rotation; each is one transaction, so a restart goes on where it stopped."""

    def __init__(self, core: Core, contents: Contents) -> None:
        self._core, self._contents = core, contents

    async def state(self) -> KeyState:
        """Where a rotation stands; phase `none` when none is under way."""
        row = await self._core.store.row("rotation")
        keys = self._core.keys
        waiting = await self._waiting() if row else ()
        names = tuple(key.id for key in keys.set.keys)
        return KeyState(keys.version, names, keys.signing, row["phase"] if row else "none", waiting)

    @again
    async def begin(self, who: Who) -> KeyState:
        """Add a key to the set; the hosts learn it with their next manifest. Raises Conflict while one is
        under way.
        """
        core, now = self._core, self._core.now()
        async with core.store.change() as db:
            if await db.row("rotation") is not None:
                raise Conflict("a rotation of keys is under way")
            keys = core.keys
            fresh = keys.made(f"s{now}-{keys.version + 1}", now)
            encoded = keys.signed_set(keys.version + 1, (*keys.set.keys, fresh))
            old = keys.signing
            await db.run("add_key_set", keys.version + 1, encoded, old, now)
            await db.run("put_rotation", "added", fresh.id, old, now, 0)
            db.bump(None)
            await db.audit(who.did("keys.add", f"keys/{keys.version + 1}", before=old, after=fresh.id))
        keys.use(encoded, old)
        core.wake()
        return await self.state()

    async def step(self) -> None:
        """Go on when every host that is heard has the newest manifest."""
        await asyncio.sleep(STEP_SECONDS)
        row = await self._core.store.row("rotation")
        if row is None or await self._waiting():
            return
        if row["phase"] == "added":
            await self._switch(row["new_key"], row["old_key"])
        else:
            await self._remove(row["new_key"], row["old_key"])

    async def _waiting(self) -> tuple[str, ...]:
        rows = await self._core.store.rows("hosts")
        return tuple(
            row["host_id"]
            for row in rows
            if row["heartbeat_serial"] < row["serial"] and not is_silent(self._core, row)
        )

    @again
    async def _switch(self, new: str, old: str) -> None:
        core, now = self._core, self._core.now()
        keys = core.keys
        encoded = keys.signed_set(keys.version + 1, keys.set.keys)
        keys.use(encoded, new)
        async with core.store.change() as db:
            await db.run("add_key_set", keys.version, encoded, new, now)
            await db.run("put_rotation", "switched", new, old, now, 0)
            db.bump(None)
            await db.audit(Who().did("keys.switch", f"keys/{keys.version}", before=old, after=new))
        self._contents.forget()
        core.wake()

    @again
    async def _remove(self, new: str, old: str) -> None:
        core, now = self._core, self._core.now()
        keys = core.keys
        kept = tuple(key for key in keys.set.keys if key.id != old)
        encoded = keys.signed_set(keys.version + 1, kept)
        async with core.store.change() as db:
            await db.run("add_key_set", keys.version + 1, encoded, new, now)
            await db.run("end_rotation")
            db.bump(None)
            await db.audit(Who().did("keys.remove", f"keys/{keys.version + 1}", before=old, after=new))
        keys.use(encoded, new)
        core.wake()
