"""What all roles of the database share has a bound for each: locks, files of sorts, large objects."""

import asyncio

import asyncpg
import pytest
import pytest_asyncio
from tests.support.engines import eventually, running_postgres

from aegisflux.adapters.engines import roles
from aegisflux.adapters.engines.postgres import SETTINGS
from aegisflux.adapters.store import grants
from aegisflux.adapters.store.facts import PostgresFacts
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain.audit import Entry
from aegisflux.domain.errors import Conflict

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
KEY = b"k" * 32
MAY_RUN = """
select oid::regprocedure::text as name from pg_proc
where proname ~ '^(pg_(try_)?advisory_(xact_)?lock|lo_|lowrite|loread)'
and has_function_privilege(oid, 'execute')
"""
FILLS = {
    "the table of locks": "select pg_advisory_lock(n) from generate_series(1, 100000) n",
    "the table of locks, if it is free": "select pg_try_advisory_lock(n, 1) from generate_series(1, 90000) n",
    "the table of locks, shared": "select pg_advisory_xact_lock_shared(n) from generate_series(1, 100000) n",
    "the disk with large objects": "select lo_from_bytea(0, 'x')",
    "the disk with an empty large object": "select lo_creat(-1)",
    "the disk with files of sorts": "set temp_file_limit = -1",
    "the disk with files of sorts, from now on": "alter role current_user set temp_file_limit = -1",
    "the disk with a temporary table": "create temporary table x as select n from generate_series(1, 10) n",
    "the disk with lines of the log": "set log_statement = 'all'",
    "the lock of who writes facts": "select facts_only_writer()",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory):
    async with running_postgres(tmp_path_factory.mktemp("shared"), KEY) as engine:
        yield engine


WRITES_FACTS = "enrich", "the lock of who writes facts"
TRIES = [(service, what) for service in grants.SERVICES for what in FILLS if (service, what) != WRITES_FACTS]


@pytest.mark.parametrize(("service", "what"), TRIES)
async def test_no_service_fills(engine, service, what):
    connection = await asyncpg.connect(engine.dsn_of(service))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(FILLS[what])
    finally:
        await connection.close()


@pytest.mark.parametrize("service", grants.SERVICES)
async def test_a_service_runs_no_function_that_takes_what_all_share(engine, service):
    connection = await asyncpg.connect(engine.dsn_of(service))
    try:
        assert await connection.fetch(MAY_RUN) == []
    finally:
        await connection.close()


@pytest.mark.parametrize("service", sorted(set(grants.SERVICES) - {"orchestrator"}))
async def test_all_that_a_service_can_lock_by_reading_leaves_locks_for_a_change(engine, service):
    """Each connection that its role may have reads all that it may read, in a transaction that stays open."""
    store, held = PostgresStore(engine.dsn_of("orchestrator"), KEY, owner=None), []
    await store.open()
    try:
        for _ in range(roles.CONNECTIONS[service]):
            held.append(one := await asyncpg.connect(engine.dsn_of(service)))
            names = await one.fetch(
                "select oid::regclass::text as name from pg_class"
                " where relkind in ('r', 'p', 'v', 'm') and has_table_privilege(oid, 'select')"
            )
            await one.execute("begin")
            for row in names:
                await one.execute(f"prepare x as select from {row['name']}; deallocate x")
        async with store.change() as db:
            await db.run("revoke_token", "x", 1)
            await db.audit(Entry("tester", "panic", "x"))
    finally:
        for one in held:
            one.terminate()
        await store.close()


async def test_a_sort_without_end_ends_at_its_bound(engine):
    assert SETTINGS["temp_file_limit"] == "2GB"
    connection = await asyncpg.connect(engine.dsn_of("segmenter"))
    try:
        assert await connection.fetchval("show temp_file_limit") == "2GB"
    finally:
        await connection.close()


async def test_one_writer_of_facts_keeps_another_one_out(engine):
    first, second = PostgresFacts(engine.dsn_of("enrich")), PostgresFacts(engine.dsn_of("enrich"))
    try:
        await first.open_writer()
        with pytest.raises(Conflict, match="writer already"):
            await second.open_writer()
    finally:
        await first.close()
        await second.close()


async def test_a_query_ends_with_its_client(engine):
    """Else a service that was killed in a long one finds its connections taken when it is back."""
    client, watch = [await asyncpg.connect(engine.dsn_of(role)) for role in ("segmenter", "orchestrator")]
    pid, asked = client.get_server_pid(), "select count(*) from pg_stat_activity where pid = $1"
    running = asyncio.create_task(client.execute("select count(*) from generate_series(1, 100000000000)"))
    try:
        await asyncio.sleep(0)
        assert await _is(watch, asked, pid, 1)
        client.terminate()
        await eventually(lambda: _is(watch, asked, pid, 0))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await watch.execute("select pg_terminate_backend($1)", pid)
        await watch.close()


async def _is(connection, asked, pid, count):
    return await connection.fetchval(asked, pid) == count
