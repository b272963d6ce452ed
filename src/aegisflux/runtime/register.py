"""Which rows of the store a service believes: see `domain.rights`.

The log is followed as it grows, a few lines at a time, and never read again from its beginning: how far it
was followed is a file beside the keys (`audit-mark`), which one service writes and all read. It is written at
once where a line takes a right away, and `KEEP_SECONDS` after any other line at the latest.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

import msgspec

from aegisflux.domain import audit, rights, seals
from aegisflux.domain.audit import Head, Line, line_of
from aegisflux.domain.errors import BROKEN, Unavailable
from aegisflux.domain.rights import FORMAT, Broken, Headless, Mark, Rights, Token
from aegisflux.domain.text import first_of
from aegisflux.ports.secrets import Secrets
from aegisflux.ports.store import Queries, Row
from aegisflux.runtime import logs

AUDIT, TOKEN, MARK = "audit-key", "token-key", "audit-mark"
PAGE: Final = 2000  # lines
KEEP_SECONDS: Final = 2.0
BELL_SECONDS: Final = 0.1  # between two writes for lines that take rights away
MOST_DOUBTS: Final = 256
MOST_NAMED: Final = 5
_MARK: Final = msgspec.json.Decoder(Mark)
T = TypeVar("T")
Texts = Mapping[str, str]
"""What the store has of objects, by their names in the audit log."""
Again = Callable[[], Awaitable[Texts]]
log = logs.get("register")


class Believer(Protocol):
    """Whoever says which rows of `tokens` are believed; `trouble`: why no newer line of the log is, in
    words."""

    trouble: str

    async def doubt(self, row: Row) -> str:
        """Why a row is not believed, in words; empty: it is."""
        ...

    async def doubt_of(self, texts: Texts, again: Again | None = None) -> str:
        """Why what the store has of decisions (`domain.decided`) is not believed; empty: it is. `again` reads
        it once more: what was changed meanwhile is not reported."""
        ...


class Register:
    """Follows the audit log of a store. `keeps`: writes the mark, as one service does.

    trouble: why the log is not followed any further, in words
    refuses_changes: nothing can be changed either, since the head of the log is not ours
    doubts: which objects of the store were not believed, and why
    """

    def __init__(self, store: Queries, secrets: Secrets, *, keeps: bool = False) -> None:
        self._store, self._secrets, self._keeps = store, secrets, keeps
        self._audit_key = audit_key(secrets)
        self._token_key = secrets.obtain(TOKEN, lambda: os.urandom(32))
        self._mark: Mark | None = None
        self._written: Mark | None = None
        self._due = False
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "register")
        self.trouble, self.refuses_changes = "", False
        self.doubts: dict[str, str] = {}

    @property
    def rights(self) -> Rights:
        """What the log says, as far as it was followed."""
        return self._mark.rights if self._mark else Rights()

    @property
    def floor(self) -> int:
        """Serials of new hosts begin above this one."""
        return self._mark.floor if self._mark else 0

    def mac(self, token: Token) -> bytes:
        """The MAC of a new row."""
        return rights.mac_of(self._token_key, token)

    def is_sealed(self, row: Row) -> bool:
        """Whether a row has its MAC."""
        return rights.is_sealed(self._token_key, token_of(row), row["mac"])

    def seal(self, kind: str, row: Row) -> bytes:
        """The MAC of a new row of a kind of `domain.seals`."""
        return seals.mac_of(self._token_key, kind, row)

    def holds(self, name: str, kind: str, row: Row) -> bool:
        """Whether a row has its MAC; one that has not is reported under this name."""
        good = seals.is_sealed(self._token_key, kind, row, row["mac"])
        self.report(name, "" if good else "its MAC was not made by this control plane")
        return good

    async def doubt_of(self, texts: Texts, again: Again | None = None) -> str:
        """See `Believer.doubt_of`. Raises Unavailable."""
        await self.follow()
        if again is not None and any(map(self.rights.doubt_of, texts, texts.values())):
            fresh = await again()
            await self.follow()
            if fresh != texts and not any(map(self.rights.doubt_of, fresh, fresh.values())):
                return "it was changed meanwhile: look again"
        found = []
        for name, text in texts.items():
            why = self.rights.doubt_of(name, text)
            self.report(name, why)
            found += [why] if why else []
        return f"{'; '.join(found)}: see aegisflux audit verify" if found else ""

    def said(self) -> str:
        """What of the store is not believed, in words; empty: nothing was found."""
        return f"not believed: {first_of(sorted(self.doubts), MOST_NAMED)}" if self.doubts else ""

    def report(self, name: str, why: str) -> None:
        """Say it once for each object, and no more once it is as it should be."""
        if not why:
            self.doubts.pop(name, None)
        elif self.doubts.get(name) != why:
            if len(self.doubts) >= MOST_DOUBTS:
                self.doubts.clear()
            self.doubts[name] = why
            log.error("a row of the store is not believed", object=name, why=why)

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
            await self._try()
            if self._due and not self.trouble:
                await self._write()

    async def keep(self, serial: int) -> None:
        """Follow, and write the mark if it is not as the file has it; `serial`: the newest one of a manifest.
        Raises Unavailable."""
        async with self._turn:
            await self._try()
            if self._mark is None or self.trouble:
                return
            self._mark.serial = max(self._mark.serial, serial)
            if self._mark != self._written:
                await self._write()

    async def _try(self) -> None:
        if self._mark is None or self.trouble:
            self._mark = self.read() or self._mark or Mark(format=FORMAT)
        found, self.refuses_changes = "", False
        try:
            await self._follow(self._mark)
        except Broken as error:
            found, self.refuses_changes = str(error), isinstance(error, Headless)
        if found and found != self.trouble:
            log.error("the audit log is not followed any further", why=found)
        self.trouble = found

    async def _follow(self, mark: Mark) -> None:
        head = await self._head()
        if head.seq < mark.seq:
            raise Broken(f"the audit log ends at line {head.seq}; line {mark.seq} was there before")
        if (head.seq, head.hash) == (mark.seq, mark.hash) and mark.format == FORMAT:
            return
        draft, urgent = _begun(mark), False
        if draft.seq < mark.seq:
            urgent = await self._read_on(draft, mark.seq)
        if draft.hash != mark.hash:
            raise Broken(f"line {mark.seq} of the audit log is not the one that was there before")
        urgent |= await self._read_on(draft, head.seq)
        if draft.hash != head.hash:
            raise Broken(f"line {head.seq} of the audit log has another hash than it had")
        if mark.format != FORMAT:
            draft.rights.keep_ended(mark.rights)
        self._mark = draft
        self._due |= urgent

    async def _head(self) -> Head:
        row = await self._store.row("audit_head")
        if row is None:
            raise Headless("the head of the audit log is gone")
        head = Head(row["seq"], row["hash"], row["mac"])
        if audit.mac_of(self._audit_key, head.seq, head.hash) != head.mac:
            raise Headless("the head of the audit log was not written by this control plane")
        return head

    async def _read_on(self, draft: Mark, until: int) -> bool:
        """Take the lines up to this one; whether the mark is to be written at once."""
        urgent = False
        while draft.seq < until:
            lines = await self._store.rows("audit_lines", draft.seq, min(PAGE, until - draft.seq))
            if not lines:
                raise Broken(f"line {draft.seq + 1} of the audit log is missing")
            urgent |= await self._followed(draft, lines)
        return urgent

    async def _followed(self, mark: Mark, rows: Sequence[Row]) -> bool:
        """Beside the event loop where there are many."""
        if len(rows) < 100:
            return mark.follow(map(line_of, rows))
        return await self._in_thread(lambda: mark.follow(map(line_of, rows)))

    async def _in_thread(self, function: Callable[..., T], *values: object) -> T:
        """In a thread of its own: to be believed, no token waits until other work has left one."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *values)

    def read(self) -> Mark | None:
        """The mark as the file has it; None where there is none. Raises Unavailable for a damaged one."""
        self._written = None
        raw = self._secrets.read(MARK)
        if raw is None:
            return None
        try:
            found = _MARK.decode(raw)
        except BROKEN as error:
            raise Unavailable(
                f"the secret {MARK} cannot be read ({error}); see aegisflux audit accept"
            ) from error
        self._written = found.copy()
        return found

    async def _write(self) -> None:
        """A full disk keeps nobody out: the mark is written with the next lines."""
        if not self._keeps or self._mark is None:
            return
        draft = self._mark.copy()
        try:
            await self._in_thread(self._secrets.write, MARK, msgspec.json.encode(draft))
            self._written, self._due = draft, False
        except (Unavailable, OSError) as error:
            log.warning("the mark of the audit log is not written", error=str(error))


def reaches(mark: Mark | None, head: Head, lines: Sequence[Line]) -> str:
    """Why a log is not the one that was followed before, in words; empty: it is. `mark` was read first, since
    a log that is in use grows, and the mark with it."""
    if mark is None or mark.seq == 0:
        return ""
    found = next((line.hash for line in lines if line.seq == mark.seq), b"")
    if head.seq < mark.seq or not found:
        return f"cut-off: the audit log ends at line {head.seq}; line {mark.seq} was there before"
    same = found == mark.hash
    return "" if same else f"edit: line {mark.seq} is not the one that was there before"


def _begun(mark: Mark) -> Mark:
    """Where to follow from: a mark of an older version left out what this one keeps, so all is read again."""
    if mark.format == FORMAT:
        return mark.copy()
    return Mark(serial=mark.serial, floor=mark.floor, format=FORMAT)


def audit_key(secrets: Secrets) -> bytes:
    """The key of the MACs of the audit log, made when there is none yet."""
    return secrets.obtain(AUDIT, lambda: os.urandom(32))


def token_of(row: Row) -> Token:
    """What a row of `tokens` means."""
    return Token(**{name: row[name] for name in Token.__struct_fields__})
