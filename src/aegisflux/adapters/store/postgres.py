"""The store on PostgreSQL: named queries, numbered migrations, changes under the head of the audit log."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from hmac import compare_digest
from importlib.resources import files
from typing import Any, TypeVar

import asyncpg

from aegisflux.adapters.store import grants
from aegisflux.domain import audit
from aegisflux.domain.audit import Entry, Head, Line, line_of
from aegisflux.domain.errors import Contended, Refused, Unavailable
from aegisflux.ports.store import Row
from aegisflux.runtime.again import again

NAMED = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)
MIGRATION_LOCK = 0x4165676973
CONNECTIONS = 12
COMMAND_SECONDS = 60.0
AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # of a connection that was lost in the middle of a statement
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,  # somebody else held it for as long as a role may wait
    # Of a new connection of a pool, after somebody changed a password or a name: no message is at fault.
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
# What a database answers that is there and does not let us in: waiting does not help.
CLOSED = (
    asyncpg.InvalidAuthorizationSpecificationError,  # user, password, pg_hba.conf
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.exceptions.ClientConfigurationError,
    ValueError,  # of a URL
)
ANY = (asyncpg.PostgresError, asyncpg.InterfaceError)

NEVER = (asyncpg.DataError, asyncpg.ProgramLimitExceededError, UnicodeError, OverflowError)
UNHELD = (
    "the store cannot hold a value of the request: expected text of whole characters without NUL, and"
    " numbers of 64 bits"
)
CONTENDED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)

T = TypeVar("T")


def named_queries(file: str = "queries.sql") -> dict[str, str]:
    """The queries of a file by name."""
    text = files(__package__).joinpath("sql", file).read_text()
    return {name: body.strip() for name, body in NAMED.findall(text)}


def migrations() -> list[tuple[int, str]]:
    """The numbered migrations, lowest first."""
    folder = files(__package__).joinpath("sql", "migrations")
    found = [(int(f.name.split("_")[0]), f.read_text()) for f in folder.iterdir() if f.name.endswith(".sql")]
    return sorted(found)


class _Queries:
    """Named queries on something that runs SQL."""

    def __init__(self, queries: dict[str, str], runner: Any) -> None:
        self._queries, self._runner = queries, runner

    async def rows(self, query: str, *values: object) -> Sequence[Row]:
        """See `Queries.rows`."""
        return await _here(lambda: self._runner.fetch(self._queries[query], *values))

    async def row(self, query: str, *values: object) -> Row | None:
        """See `Queries.row`."""
        return await _here(lambda: self._runner.fetchrow(self._queries[query], *values))

    async def run(self, query: str, *values: object) -> None:
        """See `Queries.run`."""
        await _here(lambda: self._runner.execute(self._queries[query], *values))


class _Change(_Queries):
    """A transaction that holds the head; it raises the serials of hosts at its end."""

    def __init__(self, queries: dict[str, str], runner: Any, head: Head, key: bytes) -> None:
        super().__init__(queries, runner)
        self.head, self._key = head, key
        self._bumped: set[str] | None = set()

    def bump(self, hosts: Iterable[str] | None) -> None:
        """See `Change.bump`."""
        if hosts is None or self._bumped is None:
            self._bumped = None
        else:
            self._bumped.update(hosts)

    async def write_bumps(self) -> None:
        """Raise the serials of all that were named."""
        if self._bumped is None:
            await self.run("bump_all")
        elif self._bumped:
            await self.run("bump", sorted(self._bumped))

    async def audit(self, entry: Entry) -> None:
        """See `Change.audit`."""
        line, self.head = audit.following(self.head, self._key, int(time.time() * 1000), entry)
        await self.run(
            "add_audit",
            line.seq,
            line.at,
            entry.actor,
            entry.source,
            entry.action,
            entry.object,
            entry.before,
            entry.after,
            entry.reason,
            entry.request_id,
            line.hash,
            audit.gate_of(self._key, "line", line.seq, line.hash),
        )

    async def move_head(self) -> None:
        """Make the last line that was added the last one of the log."""
        seq, digest = self.head.seq, self.head.hash
        await self.run("move_head", seq, digest, self.head.mac, audit.gate_of(self._key, "head", seq, digest))


class PostgresStore(_Queries):
    """`Store` over a pool of connections; `key` makes the MAC of the audit log's head. A statement outside of
    changes that lost against another transaction is done again.

    owner: where to connect to change the schema; None: somebody else does, and this one waits for it; "": as
           everything else
    """

    def __init__(self, dsn: str, key: bytes, owner: str | None = "") -> None:
        super().__init__(named_queries(), None)
        self._dsn, self._key, self._owner = dsn, key, dsn if owner == "" else owner

    @again
    async def rows(self, query: str, *values: object) -> Sequence[Row]:
        """See `Queries.rows`."""
        return await super().rows(query, *values)

    @again
    async def row(self, query: str, *values: object) -> Row | None:
        """See `Queries.row`."""
        return await super().row(query, *values)

    @again
    async def run(self, query: str, *values: object) -> None:
        """See `Queries.run`."""
        await super().run(query, *values)

    async def open(self) -> None:
        """Connect and bring the schema up to date, or see that it is. Raises Unavailable; Refused where the
        database does not let us in."""
        if self._owner is not None:
            await _here(lambda: self._make(self._owner))
        pool = await _here(lambda: pool_of(self._dsn, 2, CONNECTIONS))
        try:
            async with _leased(pool) as connection:
                await _here(lambda: _check_current(connection))
        except BaseException:
            pool.terminate()
            raise
        self._runner = pool

    async def _make(self, owner: str | None) -> None:
        async with let_in():
            connection = await asyncpg.connect(owner, command_timeout=COMMAND_SECONDS, timeout=10)
        try:
            async with connection.transaction():
                await _migrate(connection)
                await grants.grant(connection)
                await connection.execute(self._queries["put_gate"], *audit.gate_pads(self._key))
                head = audit.first_head(self._key)
                await connection.execute(self._queries["first_head"], head.hash, head.mac)
        finally:
            await connection.close(timeout=5)

    async def close(self) -> None:
        """Let go of all connections, within two seconds."""
        if self._runner is None:
            return
        try:
            async with asyncio.timeout(2):
                await self._runner.close()
        except (TimeoutError, asyncpg.InterfaceError):
            self._runner.terminate()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[_Change]:
        """See `Store.change`."""
        async with _leased(self._runner) as connection:
            transaction = connection.transaction()
            await _here(transaction.start)
            try:
                head = await self._head(connection, "lock_head")
                change = _Change(self._queries, connection, head, self._key)
                before = change.head.seq
                yield change
                assert change.head.seq > before, "a change that nobody wrote into the audit log"
                await change.write_bumps()
                await change.move_head()
            except BaseException:
                await _rolled_back(transaction)
                raise
            await _here(transaction.commit)

    async def audit_log(self) -> tuple[Head, Sequence[Line]]:
        """See `Store.audit_log`."""
        read = {"isolation": "repeatable_read", "readonly": True}
        async with _leased(self._runner) as connection, connection.transaction(**read):
            found = await _here(lambda: connection.fetchrow("select seq, hash, mac from audit_head"))
            rows = await _here(lambda: connection.fetch(self._queries["audit_lines"], -1, None))
        head = Head(found["seq"], found["hash"], found["mac"]) if found else Head(0, b"", b"")
        return head, [line_of(row) for row in rows]

    async def set_head(self, seq: int, digest: bytes) -> None:
        """See `Store.set_head`."""
        gate = audit.gate_of(self._key, "head", seq, digest)
        await self.run("move_head", seq, digest, audit.mac_of(self._key, seq, digest), gate)

    async def check(self) -> str:
        """See `Store.check`."""
        return str(
            await _here(
                lambda: self._runner.fetchval("select 'PostgreSQL ' || current_setting('server_version')")
            )
        )

    async def _head(self, connection: Any, query: str) -> Head:
        row = await _here(lambda: connection.fetchrow(self._queries[query]))
        if row is None:
            raise Unavailable("the store: the head of the audit log is gone; run aegisflux audit verify")
        if not compare_digest(audit.mac_of(self._key, row["seq"], row["hash"]), row["mac"]):
            raise Unavailable(
                "the store: the head of the audit log was not written by this control plane, and nothing is "
                "changed on top of it; run aegisflux audit verify"
            )
        return Head(row["seq"], row["hash"], row["mac"])


@asynccontextmanager
async def let_in() -> AsyncIterator[None]:
    """Connect in here; raises Refused where the database is there and does not let us in."""
    try:
        yield
    except CLOSED as error:
        raise Refused(
            f"the store: {error}; expected a database, a user and a password that it takes, by database_url"
            " and database_passwords"
        ) from error


async def pool_of(dsn: str, least: int, most: int) -> Any:
    """A pool of connections; raises as `let_in`, and what the driver raises."""
    async with let_in():
        return await asyncpg.create_pool(
            dsn, min_size=least, max_size=most, init=_prepare, command_timeout=COMMAND_SECONDS, timeout=10
        )


def away(error: Exception) -> str:
    """What to say of an error of `AWAY`: the system's own words name a socket and not what is wrong."""
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return (
            f"PostgreSQL is not running there ({error}); `aegisflux up` starts its own again, whose log is "
            "log/postgres.log in the data folder"
        )
    return str(error) or type(error).__name__


async def _here(call: Callable[[], Awaitable[T]]) -> T:
    try:
        return await call()
    except AWAY as error:
        raise Unavailable(f"the store: {away(error)}") from error
    except CONTENDED as error:
        raise Contended(
            f"the store: another transaction was in the way, and nothing is written: {error}"
        ) from error
    except NEVER as error:  # NUL, half characters, numbers and texts that are too large
        raise Refused(UNHELD) from error  # in our words: the driver's are of its own inside
    except AttributeError:
        raise Unavailable("the store: not connected yet") from None


@asynccontextmanager
async def _leased(pool: Any) -> AsyncIterator[Any]:
    if pool is None:
        raise Unavailable("the store: not connected yet")
    connection = await _here(lambda: pool.acquire(timeout=10))
    try:
        yield connection
    finally:
        await _here(lambda: pool.release(connection))


async def _rolled_back(transaction: Any) -> None:
    try:
        await transaction.rollback()
    except (asyncpg.InterfaceError, asyncpg.PostgresError, OSError):
        return


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def _check_current(connection: Any) -> None:
    """Raise Unavailable while the owner of the schema has not brought it up to date, or may not be heard."""
    try:
        rows = await connection.fetch("select number from migrations")
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError) as error:
        raise Unavailable(f"the store: the orchestrator has not prepared it yet: {error}") from error
    missing = {number for number, _ in migrations()} - {row["number"] for row in rows}
    if missing:
        raise Unavailable(f"the store: the orchestrator has not applied migration {min(missing)} yet")


async def _migrate(connection: Any) -> None:
    await connection.execute("select pg_advisory_xact_lock($1)", MIGRATION_LOCK)
    await connection.execute(
        "create table if not exists migrations (number integer primary key, sha256 text not null)"
    )
    done = {
        row["number"]: row["sha256"]
        for row in await connection.fetch("select number, sha256 from migrations")
    }
    for number, text in migrations():
        digest = sha256(text.encode()).hexdigest()
        if number not in done:
            await connection.execute(text)
            await connection.execute("insert into migrations values ($1, $2)", number, digest)
        elif done[number] != digest:
            raise Unavailable(
                f"the store: migration {number} was applied with another text; restore its file"
            )
    newer = [number for number in done if number not in dict(migrations())]
    if newer:
        raise Unavailable(f"the store: it was written by a newer version (migration {max(newer)})")
