"""Transactions beside each other: rows are locked in one order, and what lost is done again."""

import ast
import asyncio
import re
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from tests.contract.test_store import server, store  # noqa: F401 - fixtures
from tests.support.engines import eventually

import aegisflux
from aegisflux.adapters.store import postgres
from aegisflux.domain.audit import Entry
from aegisflux.domain.errors import Contended
from aegisflux.runtime import again as agains
from aegisflux.runtime.again import ATTEMPTS, again

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
HOSTS = ["h3", "h1", "h2"]
DONE = Entry("test", "test.contention", "hosts")


@pytest_asyncio.fixture(loop_scope="module")
async def sql(server, store):  # noqa: F811
    connection = await asyncpg.connect(server[0].dsn)
    await connection.execute("delete from reports")
    await connection.execute("delete from hosts")
    for host in HOSTS:  # they lie on the disk in another order than that of their names
        await connection.execute(
            "insert into hosts (host_id, enrolled_at, serial, public_key) values ($1, 0, 1, $2)",
            host,
            host.encode(),
        )
    await connection.execute(
        "insert into reports (host_id, service_id) select host_id, n from hosts, unnest(array[8, 6, 7]) n"
    )
    await connection.execute(
        "insert into services (id, name, created_at) select n, 's' || n, 0 from unnest(array[8, 6, 7]) n "
        "on conflict (id) do nothing"
    )
    yield connection
    await connection.close()


def of_each(value):
    return [value] * 3


HEARTBEATS = (HOSTS, of_each(5.0), of_each(b"b"), of_each(1), of_each("10.0.0.1"), 7.0, of_each(None))
TEXTS = (of_each("sha256:1"), of_each("sha256:2"), of_each(9))
REPORTS = (HOSTS, of_each(7), of_each("in_force"), of_each(1))
BY_HOST, BY_SERVICE = "service_id = 7", "host_id = 'h2'"
ORDERED = [
    ("hosts", "host_id", "true", "bump", (HOSTS,)),
    ("hosts", "host_id", "true", "bump_all", ()),
    ("hosts", "host_id", "true", "store_built", (HOSTS, of_each(1), of_each(b"m"), 7, *[of_each("")] * 2)),
    ("hosts", "host_id", "true", "published", (HOSTS, of_each(1))),
    ("hosts", "host_id", "true", "store_heartbeats", HEARTBEATS),
    (
        "reports", "host_id", BY_HOST, "store_acks",
        (*REPORTS, *TEXTS, of_each(1), of_each(2.0), 7.0, of_each(True)),
    ),
    (
        "reports", "host_id", BY_HOST, "store_nacks",
        (HOSTS, of_each(7), of_each(1), of_each(1), of_each("r"), of_each("d"), 7.0),
    ),
    (
        "reports", "host_id", BY_HOST, "store_reports",
        (*REPORTS, *TEXTS, of_each("c"), of_each(""), of_each(False), 7.0, of_each(None)),
    ),
    ("reports", "host_id", BY_HOST, "confirmed", (HOSTS, of_each(7), 7.0)),
    ("reports", "host_id", BY_HOST, "delete_service", (7,)),
    ("reports", "service_id", BY_SERVICE, "delete_reports", ("h2",)),
]  # fmt: skip


@asynccontextmanager
async def holding(sql, rows):
    """Another transaction that holds rows; it begins to wait later, and so looks later for a deadlock."""
    transaction = sql.transaction()
    await transaction.start()
    await sql.execute(f"select 1 from {rows} for update")
    try:
        yield
    finally:
        await transaction.rollback()


async def waits(sql, task):
    """Until the task waits for a lock; where it ended instead, with its own failure."""

    async def seen():
        if task.done():
            task.result()
            pytest.fail("it waited for no row")
        return await sql.fetchval("select count(*) from pg_locks where not granted")

    await eventually(seen)


@pytest.mark.parametrize(
    ("table", "key", "which", "query", "values"), ORDERED, ids=[one[3] for one in ORDERED]
)
async def test_a_statement_locks_rows_in_the_order_of_their_keys(
    server, store, sql, table, key, which, query, values  # noqa: F811
):  # fmt: skip
    """While the second row is held by another, the first one is locked and the third one is not."""
    other = await asyncpg.connect(server[0].dsn)
    middle = "h2" if key == "host_id" else 7
    where = f"{table} where {which} and {key} = {middle!r}"
    try:
        async with holding(sql, where):
            task = asyncio.create_task(store.run(query, *values))
            await waits(sql, task)
            asked = f"select {key} from {table} where {which} order by {key} for no key update skip locked"
            free = [row[0] for row in await other.fetch(asked)]
        await task
    finally:
        await other.close()
    assert free == ["h3" if key == "host_id" else 8]


async def test_a_change_raises_serials_once_and_last(sql, store):  # noqa: F811
    async with store.change() as db:
        db.bump(["h3"])
        db.bump(["h1", "h3"])
        assert await db.row("built_of", ["h3"]) is None
        found = await db.rows("hosts")
        assert {row["serial"] for row in found} == {1}, "no row of hosts is locked before the end"
        await db.audit(DONE)
    rows = await store.rows("hosts")
    assert {row["host_id"]: row["serial"] for row in rows} == {"h1": 2, "h2": 1, "h3": 2}
    async with store.change() as db:
        db.bump(["h1"])
        db.bump(None)
        db.bump(["h2"])
        await db.audit(DONE)
    assert {row["host_id"]: row["serial"] for row in await store.rows("hosts")} == {"h1": 3, "h2": 2, "h3": 3}


async def change(store):  # noqa: F811
    @again
    async def changed():
        async with store.change() as db:
            await db.audit(DONE)
            db.bump(["h2", "h1"])

    await changed()


async def heartbeats(store):  # noqa: F811
    await store.run("store_heartbeats", *HEARTBEATS)


@pytest.mark.parametrize("write", [change, heartbeats])
async def test_what_lost_a_deadlock_is_done_again(sql, store, write):  # noqa: F811
    """The other one locks in the wrong order, as nothing of ours does; the server ends ours."""
    before = (await store.audit_log())[0].seq
    async with holding(sql, "hosts where host_id = 'h2'"):
        task = asyncio.create_task(write(store))
        await waits(sql, task)
        await sql.execute("select 1 from hosts where host_id = 'h1' for update")
    await task
    (row,) = [row for row in await store.rows("hosts") if row["host_id"] == "h1"]
    lines = (await store.audit_log())[0].seq - before
    assert (row["serial"], lines) == ((2, 1) if write is change else (1, 0))
    assert row["seen_at"] == (0 if write is change else 7.0)


@pytest.mark.parametrize("error", [asyncpg.DeadlockDetectedError, asyncpg.SerializationError])
async def test_what_lost_against_another_transaction_is_contended(error):
    async def lost():
        raise error("x")

    with pytest.raises(Contended, match="nothing is written"):
        await postgres._here(lost)


@pytest.mark.parametrize(
    ("losses", "calls"), [(0, 1), (2, 3), (ATTEMPTS - 1, ATTEMPTS), (ATTEMPTS, ATTEMPTS)]
)
async def test_a_function_is_called_again_as_often_as_that(monkeypatch, losses, calls):
    monkeypatch.setattr(agains, "FIRST_PAUSE", 0.0)
    called = []

    @again
    async def lost(value, *, more):
        called.append((value, more))
        if len(called) <= losses:
            raise Contended("x")
        return "done"

    if losses < ATTEMPTS:
        assert await lost(1, more=2) == "done"
    else:
        with pytest.raises(Contended):
            await lost(1, more=2)
    assert called == [(1, 2)] * calls


CHANGE = re.compile(r"\.change\(\) as|\battempt\(.*\) as")


def changing():
    """Each function that makes a change of the store, with whether it is done again. `attempt` is one of its
    callers, which are found themselves.
    """
    root = Path(aegisflux.__file__).parent
    for path in sorted((root / "services").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef) and CHANGE.search(ast.unparse(node)):
                if node.name == "attempt":
                    continue
                decorated = any(ast.unparse(one) == "again" for one in node.decorator_list)
                yield f"{path.relative_to(root)}:{node.name}", decorated


async def test_every_change_is_done_again_when_it_lost():
    found = dict(changing())
    assert len(found) > 25
    assert [name for name, decorated in found.items() if not decorated] == []
