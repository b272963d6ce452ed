"""Which rows of the store a service believes: see `domain.rights`.

The log is followed as it grows, a few lines at a time, and never read again from its beginning: how far it
was followed is a file beside the keys (`audit-mark`), which one service writes and all read.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from aegisflux.domain import audit, rights
from aegisflux.domain.audit import Head, Line, line_of
from aegisflux.domain.errors import BROKEN, Unavailable
from aegisflux.domain.rights import Broken, Mark, Rights, Token
from aegisflux.ports.secrets import Secrets
from aegisflux.ports.store import Queries, Row, Store
from aegisflux.runtime import logs

AUDIT, TOKEN, MARK = "audit-key", "token-key", "audit-mark"
PAGE: Final = 2000  # lines
KEEP_EVERY: Final = 1000  # lines
_MARK: Final = msgspec.json.Decoder(Mark)
log = logs.get("register")


class Believer(Protocol):
    """Whoever says which rows of `tokens` are believed."""

    async def doubt(self, row: Row) -> str:
        """Why a row is not believed, in words; empty: it is."""
        ...


class Register:
    """Follows the audit log of a store. `keeps`: writes the mark, as one service does."""

    def __init__(self, store: Queries, secrets: Secrets, *, keeps: bool = False) -> None:
        self._store, self._secrets, self._keeps = store, secrets, keeps
        self._audit_key = audit_key(secrets)
        self._token_key = secrets.obtain(TOKEN, lambda: os.urandom(32))
        self._mark: Mark | None = None
        self._kept, self._due = 0, False
        self._turn = asyncio.Lock()
        self.trouble = ""

    @property
    def rights(self) -> Rights:
        """What the log says, as far as it was followed."""
        return self._mark.rights if self._mark else Rights()

    def mac(self, token: Token) -> bytes:
        """The MAC of a new row."""
        return rights.mac_of(self._token_key, token)

    def is_sealed(self, row: Row) -> bool:
        """Whether a row has its MAC."""
        return rights.is_sealed(self._token_key, token_of(row), row["mac"])

    async def doubt(self, row: Row) -> str:
        """See `Believer.doubt`. Raises Unavailable."""
        await self.follow()
        return self.judge(row)

    def judge(self, row: Row) -> str:
        """The same by what was followed so far."""
        if not self.is_sealed(row):
            return "its MAC was not made by this control plane"
        why = self.rights.doubt(token_of(row))
        return f"{why} ({self.trouble})" if why and self.trouble else why

    async def follow(self) -> None:
        """Take in the lines that were written since. What was followed so far holds on where the log is not
        the same any more; `trouble` says so. Raises Unavailable."""
        async with self._turn:
            if self._mark is None or self.trouble:
                self._mark = self._read() or self._mark or Mark()
            try:
                await self._follow(self._mark)
            except Broken as error:
                found = str(error)
            else:
                found = ""
            if found and found != self.trouble:
                log.error("the audit log is not followed any further", why=found)
            self.trouble = found

    async def _follow(self, mark: Mark) -> None:
        row = await self._store.row("audit_head")
        if row is None:
            raise Broken("the head of the audit log is gone")
        head = Head(row["seq"], row["hash"], row["mac"])
        if audit.mac_of(self._audit_key, head.seq, head.hash) != head.mac:
            raise Broken("the head of the audit log was not written by this control plane")
        if head.seq < mark.seq:
            raise Broken(f"the audit log ends at line {head.seq}; line {mark.seq} was there before")
        draft, told = mark.copy(), False
        while draft.seq < head.seq:
            lines = await self._store.rows("audit_lines", draft.seq, min(PAGE, head.seq - draft.seq))
            if not lines:
                raise Broken(f"line {draft.seq + 1} of the audit log is missing")
            told |= await _followed(draft, lines)
        if draft.hash != head.hash:
            raise Broken(f"line {head.seq} of the audit log has another hash than it had")
        self._mark = draft
        self._due |= told or draft.seq - self._kept >= KEEP_EVERY
        if self._keeps and self._due:
            await asyncio.to_thread(self._write, draft.copy())

    def reaches(self, head: Head, lines: Sequence[Line]) -> str:
        """Why a log is not the one that was followed before, in words; empty: it is."""
        mark = self._read()
        if mark is None or mark.seq == 0:
            return ""
        found = next((line.hash for line in lines if line.seq == mark.seq), b"")
        if head.seq < mark.seq or not found:
            return f"cut-off: the audit log ends at line {head.seq}; line {mark.seq} was there before"
        same = found == mark.hash
        return "" if same else f"edit: line {mark.seq} is not the one that was there before"

    def _read(self) -> Mark | None:
        raw = self._secrets.read(MARK)
        if raw is None:
            return None
        try:
            found = _MARK.decode(raw)
        except BROKEN as error:
            raise Unavailable(
                f"the secret {MARK} cannot be read ({error}); see aegisflux audit accept"
            ) from error
        self._kept = found.seq
        return found

    def _write(self, mark: Mark) -> None:
        """A full disk keeps nobody out: the mark is written with the next lines."""
        try:
            self._secrets.write(MARK, msgspec.json.encode(mark))
            self._kept, self._due = mark.seq, False
        except (Unavailable, OSError) as error:
            log.warning("the mark of the audit log is not written", error=str(error))


async def accepted(store: Store, secrets: Secrets) -> Mark:
    """Take the log as it stands from now on, whatever is wrong with it, and believe what it says of tokens:
    after a store was put back from a back-up, or repaired."""
    _, lines = await store.audit_log()
    mark = Mark()
    for line in lines:
        mark.rights.take(line.entry)
        mark.seq, mark.hash = line.seq, line.hash
    await store.set_head(mark.seq, mark.hash)
    secrets.write(MARK, msgspec.json.encode(mark))
    return mark


async def _followed(mark: Mark, rows: Sequence[Row]) -> bool:
    """Beside the event loop where there are many."""
    if len(rows) < 100:
        return mark.follow(map(line_of, rows))
    return await asyncio.to_thread(lambda: mark.follow(map(line_of, rows)))


def audit_key(secrets: Secrets) -> bytes:
    """The key of the MACs of the audit log, made when there is none yet."""
    return secrets.obtain(AUDIT, lambda: os.urandom(32))


def token_of(row: Row) -> Token:
    """What a row of `tokens` means."""
    return Token(**{name: row[name] for name in Token.__struct_fields__})
