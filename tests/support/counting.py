"""A store that counts what is asked of it: the same operation costs the same however many hosts there are."""

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace


@dataclass
class Count:
    """The statements by name in their order, the rows that they gave, and the transactions."""

    statements: list = field(default_factory=list)
    rows: int = 0
    changes: int = 0


class _Counted:
    def __init__(self, asked, count):
        self._asked, self.count = asked, count

    async def rows(self, query, *values):
        found = await self._asked.rows(query, *values)
        self._note(query, len(found))
        return found

    async def row(self, query, *values):
        found = await self._asked.row(query, *values)
        self._note(query, found is not None)
        return found

    async def run(self, query, *values):
        self._note(query, 0)
        await self._asked.run(query, *values)

    async def audit(self, entry):
        self._note("audit", 0)
        await self._asked.audit(entry)

    def bump(self, hosts):
        self._asked.bump(hosts)

    def _note(self, query, rows):
        self.count.statements.append(query)
        self.count.rows += rows


class CountingStore(_Counted):
    """Over a store."""

    @asynccontextmanager
    async def change(self):
        self.count.changes += 1
        async with self._asked.change() as db:
            yield _Counted(db, self.count)


def counting(core):
    """The core with a store that counts, and the count; the orchestrator's loops keep their own."""
    count = Count()
    return replace(core, store=CountingStore(core.store, count)), count
