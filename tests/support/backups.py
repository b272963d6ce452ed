"""A back-up of what the orchestrator keeps in its database, put back by the owner of its tables."""

import asyncpg

REFERENCES = """
select conrelid::regclass::text as child, confrelid::regclass::text as parent from pg_constraint
where contype = 'f' and conrelid <> confrelid
"""
SKIPPED = {"migrations"}


class Backup:
    """Of the tables that grow by changes; facts of telemetry are left where they are."""

    def __init__(self, owner: asyncpg.Connection, tables: list[str]) -> None:
        self._owner, self._tables = owner, tables

    @classmethod
    async def taken(cls, owner: asyncpg.Connection) -> "Backup":
        """Keep all tables that the grants of the orchestrator let it write."""
        from aegisflux.adapters.store.grants import SERVICES

        rights = SERVICES["orchestrator"]
        wanted = {name for name, said in rights.items() if said != "select"} | {"plans", "audit"}
        tables = await _ordered(owner, wanted - SKIPPED)
        await owner.execute("drop schema if exists saved cascade; create schema saved")
        async with owner.transaction(isolation="repeatable_read"):
            for table in tables:
                await owner.execute(f"create table saved.{table} as select * from public.{table}")
        return cls(owner, tables)

    async def restore(self) -> None:
        """Put all rows back as they were."""
        async with self._owner.transaction():
            for table in reversed(self._tables):
                await self._owner.execute(f"delete from public.{table}")
            for table in self._tables:
                text = f"insert into public.{table} overriding system value select * from saved.{table}"
                await self._owner.execute(text)


async def _ordered(owner: asyncpg.Connection, tables: set[str]) -> list[str]:
    """Parents first."""
    references = [(row["child"], row["parent"]) for row in await owner.fetch(REFERENCES)]
    found: list[str] = []
    while left := sorted(tables - set(found)):
        free = [t for t in left if not any(c == t and p in tables and p not in found for c, p in references)]
        assert free, left
        found += free
    return found
