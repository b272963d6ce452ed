"""What a fleet of many hosts costs the control plane: statements and transactions, counted at two sizes.

The engines are real; nothing is timed.
"""

import json

import asyncpg
import pytest
from tests.support.control import WHO, body, running_plane
from tests.support.counting import counting

from aegisflux.domain.manifest import MAX_SERVICES
from aegisflux.services.orchestrator import upkeep
from aegisflux.services.orchestrator.hosts import Hosts
from aegisflux.services.orchestrator.registry import Registry
from aegisflux.services.orchestrator.upkeep import Upkeep

SIZES = (3, 30)


@pytest.fixture
async def plane(tmp_path):
    async with running_plane(tmp_path, renew_every=3600.0) as running:
        yield running


@pytest.fixture
async def sql(plane):
    connection = await asyncpg.connect(plane.dsn)
    yield connection
    await connection.close()


async def hosts_of(sql, count, prefix="h", **labels):
    """Enrol hosts at once."""
    await sql.executemany(
        "insert into hosts (host_id, public_key, labels, enrolled_at, serial, dirty, built_serial)"
        " values ($1, $2, $3::jsonb, 0, 1, false, 1)",
        [(f"{prefix}{n}", f"{prefix}{n}".encode().ljust(32), json.dumps(labels)) for n in range(count)],
    )


async def reported(sql, service_id):
    await sql.execute(
        "insert into reports (host_id, service_id, cgroups) select host_id, $1, '{x}' from hosts", service_id
    )


async def assigned(sql, service_id):
    return await sql.fetchval("select count(*) from assignments where service_id = $1", service_id)


async def offered(plane, number):
    """A service that has a snapshot, which no host has yet."""
    await plane.orchestrator.registry.put(number, f"s{number}", [], {}, WHO)
    await plane.orchestrator.snapshots.post(body(number, 1), None, "", WHO)


async def put_that_joins(plane, sql, number):
    core, count = counting(plane.orchestrator.core)
    await Registry(core).put(number, f"s{number}", [], {"env": "prod"}, WHO)
    return count


async def put_again(plane, sql, number):
    await put_that_joins(plane, sql, number)
    core, count = counting(plane.orchestrator.core)
    await Registry(core).put(number, f"s{number}", ["unit:web"], {"env": "prod"}, WHO)
    return count


async def joins_by_report(plane, sql, number):
    await reported(sql, number)
    core, count = counting(plane.orchestrator.core)
    await Upkeep(core).join()
    return count


async def relabelled(plane, sql, number):
    """One more host begins to run what all the others run."""
    await put_that_joins(plane, sql, number)
    await hosts_of(sql, 1, f"new{number}-", env="none")
    core, count = counting(plane.orchestrator.core)
    await Hosts(core).relabel(f"new{number}-0", {"env": "prod"}, WHO)
    return count


@pytest.mark.parametrize("operation", [put_that_joins, put_again, joins_by_report, relabelled])
async def test_an_operation_costs_as_many_statements_for_many_hosts_as_for_few(plane, sql, operation):
    counts = []
    for number, (size, prefix) in enumerate(zip(SIZES, "ab", strict=True), 101):
        await offered(plane, number)
        await hosts_of(sql, size, prefix, env="prod")
        counts.append(await operation(plane, sql, number))
        total = await sql.fetchval("select count(*) from hosts where labels->>'env' = 'prod'")
        assert await assigned(sql, number) == total
        await sql.execute("delete from reports")
    few, many = counts
    assert many.statements == few.statements
    assert (few.changes, many.changes) == (1, 1)


async def test_one_host_that_begins_to_run_a_service_reads_no_other_host(plane, sql):
    rows = []
    for number, (size, prefix) in enumerate(zip(SIZES, "ab", strict=True), 101):
        await offered(plane, number)
        await hosts_of(sql, size, prefix, env="prod")
        count = await relabelled(plane, sql, number)
        rows.append(count.rows - 2 * (await sql.fetchval("select count(*) from services")))
        await sql.execute("delete from reports")
    assert rows[1] - rows[0] <= 2


async def test_leases_are_renewed_between_pages_of_hosts_that_join(plane, sql, monkeypatch):
    monkeypatch.setattr(upkeep, "JOINS_AT_ONCE", 10)
    await offered(plane, 101)
    await hosts_of(sql, 35)
    await reported(sql, 101)
    core, count = counting(plane.orchestrator.core)
    await Upkeep(core).join()
    assert await assigned(sql, 101) == 35
    assert count.changes == 4
    asked = [name for name in count.statements if name in ("joiners", "renewal_due")]
    assert asked == ["joiners", "renewal_due"] * 3 + ["joiners"]


SAME = (
    "select n, 1, 'd' || n, rules_digest, tables_digest, tables_format, entries, ttl_seconds, mode,"
    " on_expiry, established, 0, '', null, snapshot, payload, key_id, signature"
)
FILLED = (
    "insert into services (id, name, created_at, latest) select n, 'full' || n, 0, 1 from numbers",
    f"insert into contents {SAME} from contents, numbers where service_id = 9001",
    "insert into assignments select n, 'h1', 1, 1::bigint << 40, true, 0 from numbers",
)


async def test_a_host_without_room_for_one_more_service_keeps_no_other_from_it(plane, sql):
    await hosts_of(sql, 3)
    await offered(plane, 9001)
    await sql.execute(f"create temp view numbers as select n from generate_series(0, {MAX_SERVICES - 1}) n")
    for statement in FILLED:
        await sql.execute(statement)
    await reported(sql, 9001)
    core, count = counting(plane.orchestrator.core)
    for _ in range(2):
        await Upkeep(core).join()
    got = await sql.fetch("select host_id from assignments where service_id = 9001 order by host_id")
    assert [row["host_id"] for row in got] == ["h0", "h2"]
    assert count.changes == 1, "the second round has nothing to write"
