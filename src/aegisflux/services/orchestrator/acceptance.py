"""Taking the audit log as it stands: after a store was put back from a back-up, or repaired.

What the log says is believed from then on, but for what the mark outside of the store knows to have ended:
tokens that were revoked and hosts that were released end once more. Hosts may have newer manifests and key
sets than the store, and take none that is not newer still: all numbers go on above those that were there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from aegisflux.domain import audit
from aegisflux.domain.audit import Head, Line
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.rights import FORMAT, KEYS, OBJECT, REPLACE_KEYS, REVOKE, Mark
from aegisflux.ports.secrets import Secrets
from aegisflux.ports.store import Change, Row, Store
from aegisflux.runtime.again import again
from aegisflux.runtime.register import MARK, Register, audit_key, token_of
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.keys import Keys
from aegisflux.services.orchestrator.standing import KEYS_JUMP, release, released_before

ACCEPT: Final = "audit.accept"
SERIAL_JUMP: Final = 1 << 20  # more manifests of a host than between two back-ups
MOST_AHEAD: Final = 1 << 32
"""A host that reports more than this above all others is believed no further, so that none can use up what
63 bits hold."""
WHY: Final = "it was revoked before; the database is older than that"
Revoke = Callable[[str, bytes, int], object]


class Accepted(Struct, frozen=True):
    """What accepting a log means, in words, a line each; `line`: the last one of the log.

    believed: what is believed that was not before
    ended:    what the log has and has ended all the same
    numbers:  the key set and the serials that go on above those that were there
    """

    line: int
    believed: tuple[str, ...]
    ended: tuple[str, ...]
    numbers: tuple[str, ...]


class Acceptance:
    """Of a store; `revoke` refuses the key of a host on the bus (host, public key, time)."""

    def __init__(self, store: Store, secrets: Secrets, revoke: Revoke) -> None:
        self._store, self._secrets, self._revoke = store, secrets, revoke
        self._register = Register(store, secrets)
        self._mark, self._damaged = Mark(), ""
        try:
            self._mark = self._register.read() or Mark()
        except Unavailable as error:
            self._damaged = f"nothing of what {MARK} knew to have ended: {error}"

    @again
    async def accept(self, now: int, dry_run: bool = False) -> Accepted:
        """Take the log as it stands; `dry_run`: only say what that means."""
        head, lines = await self._store.audit_log()
        said = self._followed(lines)
        last = lines[-1] if lines else None
        before, tokens = self._mark.rights, await self._store.rows("tokens")
        living = [row for row in tokens if row["revoked_at"] is None and not _over(row, now)]
        ended = [row for row in living if said.rights.has_ended(token_of(row))]
        anew = [
            row
            for row in living
            if self._register.is_sealed(row)
            and before.doubt(token_of(row))
            and not said.rights.doubt(token_of(row))
        ]
        hosts = await released_before(self._store, before)
        keys = await self._store.row("key_set")
        newest = await self._store.row("newest_serial")
        version = max(said.rights.keys, keys["version"] if keys else 0) + KEYS_JUMP
        serial = max(self._mark.serial, self._mark.floor, newest["serial"] if newest else 0)
        found = Accepted(
            last.seq if last else 0,
            (*_tokens(anew), *_decided(before.decided, said.rights.decided), *filter(None, [self._damaged])),
            (*_tokens(ended), *(f"host/{row['host_id']}: released" for row in hosts)),
            (
                f"key set: version {keys['version'] if keys else 0} becomes {version}, with a new key",
                f"manifests: serials go on above {serial + SERIAL_JUMP}",
            ),
        )
        if dry_run:
            return found
        if (head.seq, head.hash) != (said.seq, said.hash) or not self._is_ours(head):
            # Else it is left alone: a control plane that runs may have gone on from it meanwhile.
            await self._store.set_head(said.seq, said.hash)
        async with self._store.change() as db:
            await self._end(db, ended, hosts, now)
            if keys is not None:
                await self._new_keys(db, version, now)
            await db.run("raise_serials", serial, SERIAL_JUMP, serial + MOST_AHEAD)
            await db.audit(Who().did(ACCEPT, "audit", before=f"line {head.seq}", after=f"line {said.seq}"))
        for row in hosts:
            self._revoke(row["host_id"], row["public_key"], now)
        return msgspec.structs.replace(found, line=await self._written(serial + SERIAL_JUMP))

    def _is_ours(self, head: Head) -> bool:
        return audit.mac_of(audit_key(self._secrets), head.seq, head.hash) == head.mac

    async def _written(self, floor: int) -> int:
        _, lines = await self._store.audit_log()
        newest = await self._store.row("newest_serial")
        mark = self._followed(lines)
        mark.serial, mark.floor = newest["serial"] if newest else 0, floor
        self._secrets.write(MARK, msgspec.json.encode(mark))
        return mark.seq

    def _followed(self, lines: Sequence[Line]) -> Mark:
        """What all lines say, without what has ended. An enrolment token that the mark does not have may have
        been used: it is believed no more."""
        mark, before = Mark(format=FORMAT), self._mark.rights
        for line in lines:
            mark.rights.take(line.entry)
            mark.seq, mark.hash = line.seq, line.hash
        mark.rights.keep_ended(before)
        unused = mark.rights.enrolments.items() & before.enrolments.items()
        mark.rights.enrolments = dict(unused)
        return mark

    async def _end(self, db: Change, tokens: Sequence[Row], hosts: Sequence[Row], now: int) -> None:
        for row in tokens:
            await db.row("revoke_token", row["id"], now)
            what, digest = f"{OBJECT}{row['id']}", row["hash"].hex()
            await db.audit(Who().did(REVOKE, what, before=digest, reason=WHY))
        for row in hosts:
            await release(db, row, now, Who(), WHY)

    async def _new_keys(self, db: Change, version: int, now: int) -> None:
        """One new key in place of all: the store may name none that hosts still know."""
        keys = Keys(self._secrets)
        fresh = keys.made(f"s{now}-{version}", now)
        old = {row["signing"] for row in await db.rows("all_key_sets")} | self._mark.rights.keyring.keys()
        if (rotation := await db.row("rotation")) is not None:
            old |= {rotation["new_key"], rotation["old_key"]}
        gone = sorted(old - self._mark.rights.retired.keys())
        await db.run("add_key_set", version, keys.signed_set(version, (fresh,)), fresh.id, now)
        await db.run("end_rotation")
        line = Who().did(REPLACE_KEYS, f"{KEYS}{version}", before=" ".join(gone), after=fresh.id)
        await db.audit(line)


def _over(row: Row, now: int) -> bool:
    return row["expires_at"] is not None and row["expires_at"] <= now


def _tokens(rows: Sequence[Row]) -> list[str]:
    return [f"token/{row['id']}: {row['name']}, {row['role']}" for row in rows]


def _decided(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [f"{name}: {text}" for name, text in after.items() if before.get(name) != text]
