"""Whether the store is the one that was there before, and what holds when it is an older one.

A mark outside of the store follows it (`runtime.register`). What has ended by the mark has ended: a host that
was released is released again, and a key set of before a rotation signs nothing. The rest goes on as the
store says until root has looked at it, and runs `aegisflux audit accept` (ADR 43).
"""

import asyncio
from collections.abc import Sequence

from aegisflux.domain import rights
from aegisflux.domain.manifest import PublicKey
from aegisflux.domain.rights import KEYS, Mark, Rights
from aegisflux.ports.store import Change, Queries, Row
from aegisflux.runtime import logs
from aegisflux.runtime.again import again
from aegisflux.runtime.health import Degraded
from aegisflux.runtime.register import BELL_SECONDS, KEEP_SECONDS
from aegisflux.runtime.tasks import woken
from aegisflux.services.orchestrator.contents import Contents
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.sealing import seal_rows
from aegisflux.services.orchestrator.state import tell_withheld
from aegisflux.wire.token import b64

KEYS_JUMP = 1000  # more key sets than a fleet sees between two back-ups
HELP = "see docs/howto/back-up-and-restore.md"
BELL_IDLE_SECONDS = 60.0
log = logs.get("standing")


class Standing:
    """The loops that follow the store, and what `/readyz` says of it."""

    def __init__(self, core: Core, contents: Contents) -> None:
        self._core, self._contents = core, contents

    async def follow(self) -> None:
        """A round of the loop that writes the mark at once, for lines that take a right away."""
        await woken(self._core.mark_due, BELL_IDLE_SECONDS)
        await self._core.register.follow()
        await asyncio.sleep(BELL_SECONDS)

    async def look(self) -> None:
        """A round of the loop that writes it for all others, and sees that the store was exchanged."""
        await self.keep()
        await self._take_up()
        await asyncio.sleep(KEEP_SECONDS)

    async def keep(self) -> None:
        """Write the mark as the store is now; raises Unavailable."""
        row = await self._core.store.row("newest_serial")
        await self._core.register.keep(row["serial"] if row else 0)

    async def _take_up(self) -> None:
        """Use the keys of a log that was accepted, and end once more what an older store brought back."""
        core = self._core
        await seal_rows(core)
        if core.register.rights.keys > core.keys.version:
            held = core.keys.held
            await load_keys(core)
            if core.keys.held != held or not core.keys.held:
                self._contents.forget()
                core.host_keys.clear()
                core.digests.clear()
                core.wake()
        if core.register.trouble and not core.register.refuses_changes:
            await release_again(core)

    async def said(self) -> str:
        """The line of `/readyz`; raises Degraded where the store is not the one that was there before."""
        register = self._core.register
        if register.refuses_changes:
            raise Degraded(
                f"{register.trouble}: every change is refused; run aegisflux audit verify, and {HELP}"
            )
        if why := "; ".join(filter(None, (register.trouble, self._core.keys.held))):
            raise Degraded(f"{why}: nothing newer is believed until aegisflux audit accept; {HELP}")
        doubts = register.said()
        return f"it is the one that was followed; {doubts}" if doubts else "it is the one that was followed"


@again
async def load_keys(core: Core) -> None:
    """Use the newest key set of the store; the first start makes one."""
    await core.register.follow()
    row = await core.store.row("key_set")
    known = core.register.rights
    if row is None:
        now, version = core.now(), known.keys + KEYS_JUMP if known.keys else 1
        first: PublicKey = core.keys.made(f"s{now}", now)
        encoded = core.keys.signed_set(version, (first,))
        async with core.store.change() as db:
            row = await db.row("key_set")
            if row is None:
                await db.run("add_key_set", version, encoded, first.id, now)
            await db.audit(Who().did("keys.first", f"{KEYS}{version}", after=first.id))
        row = await core.store.row("key_set")
        assert row is not None
    core.keys.use(row["envelope"], row["signing"], held(row, known))
    for key in known.retired:
        core.keys.discard(key)


def held(row: Row, known: Rights) -> str:
    """Why a key set of the store may not sign, in words; empty: it may."""
    if row["version"] < known.keys:
        return f"the database has key set version {row['version']}; version {known.keys} was there before"
    if row["signing"] in known.retired:
        return f"the database has key {row['signing']} sign, which a rotation ended"
    return ""


async def unkept(store: Queries, mark: Mark) -> list[str]:
    """What a store has that ended by the mark, in words."""
    found, row = [], await store.row("key_set")
    if row is not None and (why := held(row, mark.rights)):
        found.append(f"keys/{row['version']}: {why}")
    newest = await store.row("newest_serial")
    if newest is not None and newest["serial"] < mark.serial:
        serials = f"the newest manifest has serial {newest['serial']}; {mark.serial} was there before"
        found.append(f"manifests: {serials}")
    hosts = await released_before(store, mark.rights)
    found += [
        f"host/{one['host_id']}: the store has it enrolled with a key that was released" for one in hosts
    ]
    living = [one for one in await store.rows("tokens") if one["revoked_at"] is None]
    ended = [one["id"] for one in living if mark.rights.is_revoked(one["hash"])]
    return found + [f"token/{number}: the store has it living; it was revoked" for number in ended]


async def released_before(store: Queries, known: Rights) -> Sequence[Row]:
    """The hosts of a store that are enrolled with a key that was released."""
    return [row for row in await store.rows("hosts") if known.released_host(b64(row["public_key"] or b""))]


@again
async def release_again(core: Core) -> None:
    """Release the hosts that an older store brought back."""
    found = await released_before(core.store, core.register.rights)
    if not found:
        return
    now = core.now()
    async with core.store.change() as db:
        for row in found:
            await release(db, row, now, Who(), "it was released before; the database is older than that")
    for row in found:
        log.error("a host that was released came back with an older store", host_id=row["host_id"])
        await core.accounts.revoke_agent(row["host_id"], row["public_key"], now)
        core.host_keys.pop(row["host_id"], None)
        core.digests.pop(row["host_id"], None)
    core.wake()


async def release(db: Change, host: Row, now: int, who: Who, reason: str = "") -> None:
    """What the store forgets of a host whose name is freed, and its line in the audit log."""
    name = host["host_id"]
    await db.run("unassign_host", name)
    withheld = await db.rows("withheld_of_host", name)
    await db.run("forget_had", name)
    for row in withheld:
        await tell_withheld(db, row["service_id"])
    await db.run("delete_reports", name)
    await db.run("end_candidates_of_host", name)
    await db.run("release_host", name, now)
    await db.audit(who.did(rights.RELEASE, f"host/{name}", before=b64(host["public_key"]), reason=reason))
