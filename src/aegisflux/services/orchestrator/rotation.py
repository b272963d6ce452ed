"""Rotation of the key that signs: add the new one, wait for the hosts, sign everything anew, wait, remove
the old one. `domain.rotation` says when a wait is over.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from aegisflux.domain.errors import Conflict, Invalid
from aegisflux.domain.rotation import (
    DEFAULT_WAIT,
    MAX_NAMED,
    MAX_WAIT,
    MIN_WAIT,
    HostSerial,
    Progress,
    progress,
    to_come,
)
from aegisflux.domain.text import first_of
from aegisflux.ports.store import Row
from aegisflux.runtime import logs
from aegisflux.runtime.again import again
from aegisflux.services.orchestrator.contents import Contents
from aegisflux.services.orchestrator.core import Core, Who
from aegisflux.services.orchestrator.hosts import is_silent

STEP_SECONDS = 0.5
MOST_NAMED = 5
log = logs.get("rotation")


MAX_WITHOUT = 1000


class RotateRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Begin a rotation; or, while one is under way, wait no more for the hosts `without`.

    wait_seconds: how long a phase waits for hosts that are online; then it goes on without them. It is given
                  at the begin, and refused while a rotation is under way
    """

    without: Annotated[list[Annotated[str, Meta(max_length=63)]], Meta(max_length=MAX_WITHOUT)] = []
    wait_seconds: Annotated[int, Meta(ge=MIN_WAIT, le=MAX_WAIT)] | None = None


class KeyState(Struct, frozen=True):
    """The key set in force, the key that signs, and how far a rotation is.

    waiting_for: the first hundred of the `waiting` hosts that are online and do not have the newest manifest;
                 of a dry run those that each phase would wait for at first
    waits_until: when the rotation goes on without them, in seconds since the epoch
    without:     hosts that it does not wait for
    held:        why nothing is signed, in words: the database has an older key set than was there before
    """

    version: int
    keys: tuple[str, ...]
    signing: str
    phase: str
    waiting_for: tuple[str, ...]
    waiting: int = 0
    waits_until: int | None = None
    without: tuple[str, ...] = ()
    dry_run: bool = False
    held: str = ""


class Rotation:
    """The steps of a rotation; each is one transaction, so a restart goes on where it stopped."""

    def __init__(self, core: Core, contents: Contents) -> None:
        self._core, self._contents = core, contents

    async def state(self) -> KeyState:
        """Where a rotation stands; phase `none` when none is under way."""
        row = await self._core.store.row("rotation")
        keys = self._core.keys
        names = tuple(key.id for key in keys.set.keys)
        if row is None:
            return KeyState(keys.version, names, keys.signing, "none", (), held=keys.held)
        without = frozenset(row["without"])
        missing = [host for host in (await self._progress(row)).missing if host not in without]
        return KeyState(
            keys.version,
            names,
            keys.signing,
            row["phase"],
            tuple(missing[:MAX_NAMED]),
            len(missing),
            row["waits_until"],
            tuple(row["without"]),
            held=keys.held,
        )

    async def rotate(self, asked: RotateRequest, who: Who, dry_run: bool = False) -> KeyState:
        """Begin; or go on without some hosts. Raises Conflict while a rotation is under way, where no hosts
        are named or the time to wait is; Invalid for hosts that are not enrolled. `dry_run`: the state with
        the hosts that would be waited for, and nothing is changed."""
        if self._core.keys.held:
            raise Conflict(f"{self._core.keys.held}: run aegisflux audit accept, which gives a new key")
        without = sorted(set(asked.without))
        known = {row["host_id"] for row in await self._core.store.rows("host_labels")}
        if unknown := [host for host in without if host not in known]:
            raise Invalid("without", "hosts that are enrolled", first_of(unknown, MOST_NAMED))
        under_way = await self._core.store.row("rotation") is not None
        if under_way and not without:
            raise Conflict("a rotation of keys is under way; name hosts to wait for no more by `without`")
        if under_way and asked.wait_seconds is not None:
            raise Conflict(
                "a rotation of keys is under way, whose wait_seconds stand since its begin: leave it out, and"
                " name hosts to wait for no more by `without`"
            )
        if dry_run:
            return await self._tried(without, asked.wait_seconds or DEFAULT_WAIT)
        if under_way:
            return await self._without(without, who)
        return await self.begin(who, without, asked.wait_seconds or DEFAULT_WAIT)

    async def _tried(self, without: Sequence[str], wait: int) -> KeyState:
        row, state, now = await self._core.store.row("rotation"), await self.state(), self._core.now()
        named = tuple(sorted({*state.without, *without}))
        hosts = await self._hosts() if row is not None else to_come(await self._hosts())
        missing = [host for host in progress(hosts, (), now, now).missing if host not in named]
        return replace(
            state,
            waiting_for=tuple(missing[:MAX_NAMED]),
            waiting=len(missing),
            waits_until=row["waits_until"] if row is not None else now + wait,
            without=named,
            dry_run=True,
        )

    @again
    async def _without(self, hosts: Sequence[str], who: Who) -> KeyState:
        async with self._core.store.change() as db:
            row = await db.row("rotation")
            if row is None:
                raise Conflict("no rotation of keys is under way any more")
            named = sorted({*row["without"], *hosts})
            if len(named) > MAX_WITHOUT:
                raise Invalid("without", f"at most {MAX_WITHOUT} hosts in all", len(named))
            await db.run("rotate_without", named)
            said = f"without {first_of(list(hosts), MAX_NAMED)}"
            await db.audit(who.did("keys.without", f"keys/{self._core.keys.version}", after=said))
        return await self.state()

    @again
    async def begin(self, who: Who, without: Sequence[str] = (), wait: int = DEFAULT_WAIT) -> KeyState:
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
            await db.run("put_rotation", "added", fresh.id, old, now, wait, list(without))
            db.bump(None)
            said = f"without {first_of(list(without), MAX_NAMED)}" if without else ""
            await db.audit(
                who.did("keys.add", f"keys/{keys.version + 1}", before=old, after=fresh.id, reason=said)
            )
        keys.use(encoded, old)
        await core.register.follow()
        core.wake()
        return await self.state()

    async def step(self) -> None:
        """Go on when every host that is online has the newest manifest, or the wait is over."""
        await asyncio.sleep(STEP_SECONDS)
        row = None if self._core.keys.held else await self._core.store.row("rotation")
        if row is None or not (found := await self._progress(row)).over:
            return
        left = f"without {first_of(found.missing, MAX_NAMED)}" if found.missing else ""
        if left:
            log.warning("the rotation of keys goes on", phase=row["phase"], detail=left)
        if row["phase"] == "added":
            await self._switch(row, left)
        else:
            await self._remove(row["new_key"], row["old_key"], left)

    async def _progress(self, row: Row) -> Progress:
        hosts = await self._hosts()
        return progress(hosts, frozenset(row["without"]), row["waits_until"], self._core.now())

    async def _hosts(self) -> list[HostSerial]:
        core = self._core
        return [
            HostSerial(one["host_id"], one["heartbeat_serial"], one["serial"], is_silent(core, one))
            for one in await core.store.rows("hosts")
        ]

    @again
    async def _switch(self, row: Row, left: str) -> None:
        new, old = row["new_key"], row["old_key"]
        core, now = self._core, self._core.now()
        keys = core.keys
        encoded = keys.signed_set(keys.version + 1, keys.set.keys)
        keys.use(encoded, new)
        async with core.store.change() as db:
            await db.run("add_key_set", keys.version, encoded, new, now)
            await db.run("put_rotation", "switched", new, old, now, row["wait_seconds"], row["without"])
            db.bump(None)
            await db.audit(
                Who().did("keys.switch", f"keys/{keys.version}", before=old, after=new, reason=left)
            )
        self._contents.forget()
        core.wake()

    @again
    async def _remove(self, new: str, old: str, left: str) -> None:
        core, now = self._core, self._core.now()
        keys = core.keys
        kept = tuple(key for key in keys.set.keys if key.id != old)
        encoded = keys.signed_set(keys.version + 1, kept)
        async with core.store.change() as db:
            await db.run("add_key_set", keys.version + 1, encoded, new, now)
            await db.run("end_rotation")
            db.bump(None)
            await db.audit(
                Who().did("keys.remove", f"keys/{keys.version + 1}", before=old, after=new, reason=left)
            )
        keys.use(encoded, new)
        await core.register.follow()  # the mark knows that it ended before its file goes
        keys.discard(old)
        core.wake()
