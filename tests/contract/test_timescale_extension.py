"""TimescaleDB itself, in WebAssembly (tests/support/timescale): what was stored natively is answered alike
by hypertables, also when days of them are compressed, come late or are dropped. The tests build on each
other in their order, and run the policies by hand: no scheduler runs there."""

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from tests.support.facts import SECOND, enriched, execed, flow

from aegisflux.adapters.store import timescale
from aegisflux.adapters.store.facts import PostgresFacts
from aegisflux.adapters.store.postgres import PostgresStore, migrations
from aegisflux.domain.errors import Unavailable

pytestmark = [pytest.mark.timescale, pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
SERVER = Path(__file__).parents[1] / "support" / "timescale" / "server.mjs"
DAY = 86_400
KEEP = {"flows": 14 * DAY, "events": 30 * DAY, "flow_minutes": 400 * DAY, "sources": 400 * DAY}
NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
NATIVE_HOURS = dict(migrations())[3].partition(" as\n")[2]


def ago(days):
    return int(NOW.timestamp() - days * DAY) * SECOND


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def facts():
    process = await asyncio.create_subprocess_exec(
        shutil.which("node"), SERVER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    port = int(await asyncio.wait_for(process.stdout.readline(), 60))
    dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    store, found = PostgresStore(dsn, b"k" * 32), PostgresFacts(dsn)
    try:
        await store.open()
        await store.close()
        await found.open_writer()
        yield found
    finally:
        await found.close()
        process.stdin.close()
        await process.wait()


async def answers(facts):
    """What the console and the graph ask of flows, events and their sums."""
    span = (NOW - timedelta(days=500), NOW + timedelta(days=1))
    page = (*span, None, None, None, False)
    filters = (None, [])
    found = {
        "flows": await facts.rows("flows", *page, *filters * 12, 1000),
        "events": await facts.rows("events", *page, *filters * 7, 1000),
        "flow_summary": await facts.rows("flow_summary", *span, 1000),
        "flow_summary_hours": await facts.rows("flow_summary_hours", *span, 1000),
        "graph_flows": sorted(await facts.rows("graph_flows", span[1]), key=repr),
        "graph_programs": sorted(await facts.rows("graph_programs", span[1]), key=repr),
    }
    assert all(found.values())
    return {query: [tuple(row) for row in rows] for query, rows in found.items()}


async def run_jobs(facts, kind):
    """What the scheduler would do: every job of a kind, once."""
    jobs = await facts._writer.fetch(
        "select job_id from timescaledb_information.jobs where proc_name = $1 and job_id >= 1000", kind
    )
    for job in jobs:
        await facts._writer.execute(f"call run_job({job['job_id']})")
    return len(jobs)


async def chunks(facts, table):
    rows = await facts._writer.fetch(
        "select is_compressed from timescaledb_information.chunks where hypertable_name = $1"
        " order by range_start",
        table,
    )
    return [row["is_compressed"] for row in rows]


async def hours_are_those_of_the_minutes(facts):
    found = await facts._writer.fetch("select * from flow_hours")
    expected = await facts._writer.fetch(NATIVE_HOURS)
    assert expected
    return sorted(map(tuple, found)) == sorted(map(tuple, expected))


BATCHES = [
    enriched(
        *(flow(n + 1, ago(n / 2), port=443 + n % 3, bytes_out=n) for n in range(10)),
        *(execed(100 + n, ago(n)) for n in range(5)),
        host=host,
    )
    for host in ("web-1", "web-2")
]


async def test_a_change_that_fails_leaves_everything_as_it_was(facts):
    await facts.upkeep(NOW.timestamp(), KEEP)
    assert (await facts.commit(BATCHES)).new == 30
    before = await answers(facts)
    assert await timescale.version(facts._writer, facts._timescale, "require") is not None
    for step in ("hyper_flows", "hyper_hours"):
        broken = {**facts._timescale, step: f"{facts._timescale[step]}; select 1 / 0"}
        with pytest.raises(asyncpg.DivisionByZeroError):
            await timescale.adopt(facts._writer, broken, KEEP)
        assert await answers(facts) == before


async def test_hypertables_answer_as_partitions_did(facts):
    before = await answers(facts)
    said = await facts.shape("require", KEEP)
    print(said)
    assert said.endswith("flow_hours is a continuous aggregate")
    assert await answers(facts) == before
    assert await hours_are_those_of_the_minutes(facts)
    assert ";" not in await facts.shape("auto", KEEP), "nothing is done twice"
    assert not await facts.upkeep(NOW.timestamp(), KEEP), "partitions are the extension's now"
    assert len(await chunks(facts, "flows")) in (5, 6)


async def test_a_batch_that_comes_again_adds_nothing_to_a_hypertable(facts):
    before = await answers(facts)
    assert (await facts.commit(BATCHES)).known == 30
    facts._sources.clear()
    assert (await facts.commit(BATCHES)).known == 30
    assert await answers(facts) == before


async def test_compressed_days_are_read_and_written(facts):
    before = await answers(facts)
    assert await run_jobs(facts, "policy_compression") == 2
    for table in ("flows", "events"):
        days = await chunks(facts, table)
        assert days == sorted(days, reverse=True)
        assert any(days), "old days are compressed"
        assert not all(days), "new ones are not"
    assert await answers(facts) == before
    assert (await facts.commit([enriched(flow(50, ago(4)), execed(150, ago(4)))])).new == 2
    after = await answers(facts)
    assert [len(after[query]) - len(before[query]) for query in ("flows", "events")] == [1, 1]
    assert (await facts.commit([enriched(flow(50, ago(4)), execed(150, ago(4)))])).known == 2
    await run_jobs(facts, "policy_compression")
    assert await facts._writer.fetchval("select count(*) from flows_view where seq = 50") == 1


async def test_hours_follow_their_minutes_however_late_they_come(facts):
    assert await run_jobs(facts, "policy_refresh_continuous_aggregate") == 1
    assert await hours_are_those_of_the_minutes(facts)
    await facts.commit([enriched(flow(60, ago(0)), flow(61, ago(2)), flow(62, ago(9)), flow(63, ago(40)))])
    await run_jobs(facts, "policy_refresh_continuous_aggregate")
    assert await hours_are_those_of_the_minutes(facts)


async def test_what_is_too_old_is_dropped_everywhere(facts):
    keep = {**KEEP, "flows": 2 * DAY, "events": 3 * DAY, "flow_minutes": 20 * DAY}
    await facts.shape("require", keep)
    assert await run_jobs(facts, "policy_retention") == 3
    ages = [
        (NOW - await facts._writer.fetchval(f"select min({column}) from {table}")).days
        for table, column in (("flows", "time"), ("events", "time"), ("flow_minutes", "minute"))
    ]
    assert all(age <= days for age, days in zip(ages, (3, 4, 27), strict=True)), ages
    await facts.upkeep(NOW.timestamp(), {**keep, "flow_minutes": 2 * DAY})
    await run_jobs(facts, "policy_refresh_continuous_aggregate")
    assert await hours_are_those_of_the_minutes(facts)
    assert (NOW - await facts._writer.fetchval("select min(hour) from flow_hours")).days <= 2


async def test_an_edition_without_compression_is_no_timescaledb(facts):
    apache = {**facts._timescale, "timescale_license": "select 'apache'"}
    assert await timescale.version(facts._writer, apache, "auto") is None
    with pytest.raises(Unavailable, match="apache"):
        await timescale.version(facts._writer, apache, "require")
