"""The store's large tables with TimescaleDB and without it, as found on this machine; and our side of the
first where it is not: its functions are stand-ins that record their calls, and make ordinary tables. The
extension itself: test_timescale_extension.py."""

import re

import pytest
import pytest_asyncio
from tests.support.facts import NOON, SECOND, enriched, execed, flow

from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.store import timescale
from aegisflux.adapters.store.facts import PostgresFacts
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain.errors import Unavailable
from aegisflux.runtime.supervise import Process

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
DAY = 86_400
KEEP = {"flows": 14 * DAY, "events": 30 * DAY, "flow_minutes": 400 * DAY, "sources": 400 * DAY}
STANDINS = """
create table calls (number integer generated always as identity, words text);
create function create_hypertable(relation regclass, time_column_name name, chunk_time_interval interval,
                                  migrate_data boolean default false) returns void language sql as
$$ insert into calls (words) values (format('hypertable %s, %s', relation, chunk_time_interval)) $$;
create function add_compression_policy(hypertable regclass, compress_after interval, if_not_exists boolean)
returns void language sql as
$$ insert into calls (words) values (format('compress %s after %s', hypertable, compress_after)) $$;
create function remove_retention_policy(relation regclass, if_exists boolean) returns void
language sql as $$ select $$;
create function add_retention_policy(relation regclass, drop_after interval) returns void language sql as
$$ insert into calls (words) values (format('keep %s for %s', relation, drop_after)) $$;
create function add_continuous_aggregate_policy(relation regclass, start_offset interval,
    end_offset interval, schedule_interval interval, if_not_exists boolean) returns void language sql as
$$ insert into calls (words) values (format('refresh %s', relation)) $$;
create function time_bucket(width interval, at timestamptz) returns timestamptz immutable language sql as
$$ select date_trunc('hour', at) $$;
create schema timescaledb_information;
create view timescaledb_information.continuous_aggregates as
    select relname as view_name from pg_class where relkind = 'm';
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dsn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timescale")
    engine = PostgresEngine(folder / "postgres", log=folder / "postgres.log")
    process = Process(engine.child(), folder / "run")
    (folder / "run").mkdir(exist_ok=True)
    await process.start()
    store = PostgresStore(engine.dsn, b"k" * 32)
    await store.open()
    await store.close()
    try:
        yield engine.dsn
    finally:
        await process.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def facts(dsn):
    found = PostgresFacts(dsn)
    await found.open_writer()
    try:
        yield found
    finally:
        await found.close()


class Plain:
    """A connection without what only the extension's grammar knows."""

    def __init__(self, connection):
        self._connection = connection
        self.fetch, self.fetchval = connection.fetch, connection.fetchval
        self.transaction = connection.transaction

    async def execute(self, text, *values, **more):
        text = re.sub(r"alter table \w+ set \(timescaledb[^;]*;", "", text)
        text = re.sub(r" with \(timescaledb[^)]*\)", "", text)
        return await self._connection.execute(text, *values, **more)


async def test_what_this_machine_has_is_said_and_used(facts):
    said = await facts.shape("auto", KEEP)
    print(said)
    rows = await facts._writer.fetch(facts._timescale["timescale_available"])
    assert said.startswith("TimescaleDB") if rows else said == "native partitions"
    assert await facts.shape("off", KEEP) == "native partitions"
    if not rows:
        with pytest.raises(Unavailable, match="require"):
            await facts.shape("require", KEEP)


class NotPreloaded:
    """A connection whose server has the extension's files only: creating it there is fatal to the session."""

    def __init__(self, connection):
        self._connection, self.fetch = connection, connection.fetch

    async def execute(self, text):
        assert text == "create extension timescaledb"
        await self._connection.execute("select pg_terminate_backend(pg_backend_pid())")


async def test_an_extension_that_is_not_preloaded_costs_a_connection_only(facts):
    queries = {**facts._timescale, "timescale_available": "select null as installed_version"}
    assert await timescale.version(NotPreloaded(facts._writer), queries, "auto") is None
    assert facts._writer.is_closed()
    assert await facts.shape("off", KEEP) == "native partitions"
    with pytest.raises(Unavailable, match="terminating connection"):
        await timescale.version(NotPreloaded(facts._writer), queries, "require")


async def test_rows_views_and_writing_go_on_over_the_change(facts):
    """Natively partitioned tables with rows become others of the same names; nothing of it happens twice."""
    connection = facts._writer
    await facts.upkeep(NOON / SECOND, KEEP)
    await facts.commit([enriched(flow(1), execed(2))])
    await connection.execute(STANDINS)
    plain = Plain(connection)
    done = await timescale.adopt(plain, facts._timescale, KEEP)
    hours = "flow_hours is a continuous aggregate"
    assert done == ["flows is a hypertable", "events is a hypertable", hours]
    await facts.commit([enriched(flow(3), execed(4))])
    assert [row["seq"] for row in await connection.fetch("select seq from flows_view order by seq")] == [1, 3]
    assert [row["seq"] for row in await connection.fetch("select seq from events_view order by seq")] == [
        2,
        4,
    ]
    assert not await facts.upkeep(NOON / SECOND + 3600, KEEP), "partitions are the extension's now"
    calls = [row["words"] for row in await connection.fetch("select words from calls order by number")]
    assert {
        "hypertable flows_hyper, 1 day",
        "hypertable events_hyper, 1 day",
        "compress flows after 2 days",
        "compress events after 2 days",
        "refresh flow_hours",
    } <= set(calls)
    assert len([words for words in calls if words.startswith("keep ")]) == 3
    await connection.execute("refresh materialized view flow_hours")
    assert await connection.fetchval("select sum(flows) from flow_hours") == 2
    await connection.execute("truncate calls")
    assert await timescale.adopt(plain, facts._timescale, KEEP) == []
    again = [row["words"] for row in await connection.fetch("select words from calls")]
    assert all(words.startswith("keep ") for words in again), "only the retention is set anew"
