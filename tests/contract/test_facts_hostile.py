"""What a hostile host may say within the schema: the store takes it, and goes on."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from tests.contract.test_facts import facts, server
from tests.support.facts import NOON, SECOND, enriched, execed, flow, listen

from aegisflux.adapters.store.postgres import PostgresStore, named_queries
from aegisflux.domain import rollup
from aegisflux.domain.enriched import Context
from aegisflux.domain.errors import Refused
from aegisflux.domain.event import VerdictSeen
from aegisflux.domain.marks import Seen

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
__all__ = ["facts", "server"]
MOST = (1 << 63) - 1
REFUSAL = VerdictSeen(
    seq=1, time_ns=NOON, service_id=1, direction="egress", proto=6, peer="\0", verdict="blocked", reason="\0"
)


@pytest.mark.parametrize(
    "events",
    [
        (execed(MOST - 1, pid=1),),
        (flow(1, bytes_out=MOST), flow(2, bytes_out=MOST, packets_in=MOST, connections=MOST)),
        (flow(1, reason="a\0b"),),
        (listen(1, address="a\0b"),),
        (flow(1, reason="a\0b"), flow(2, reason="a\\0b")),
        (listen(3, address="a\0b"), listen(4, address="a\\0b")),
        (listen(1, path="/a\0b", cgroup="/\0"), listen(2, address="\0", closed=True)),
        (execed(1, at=0), flow(2, at=SECOND), execed(3, at=MOST), flow(4, at=MOST)),
        (REFUSAL,),
        (execed(1, uid=MOST, start_ns=MOST, pid=1 << 31, args=("\0" * 4096,) * 20),),
        (flow(1, reason="\U0010ffff" * 256),),
    ],
)  # fmt: skip
async def test_whatever_the_schema_lets_through_is_a_row(facts, events):
    assert (await facts.commit([enriched(*events)])).new == len(events)
    assert (await facts.commit([enriched(*events)])).known == len(events)


async def test_sums_stay_at_the_most_that_the_store_can_hold(facts):
    for seq in (1, 2):
        await facts.commit([enriched(flow(seq, bytes_out=MOST))])
    assert await facts._writer.fetchval("select bytes_out from flow_minutes") == rollup.MOST


async def test_names_of_losses_may_be_anything(facts):
    assert (await facts.commit([enriched(flow(1), lost={"a\0b": 1, "\x1b[31m": MOST})])).new == 1


async def test_questions_take_sums_beyond_the_columns(facts):
    await facts.commit([enriched(flow(1, bytes_out=MOST, bytes_in=MOST), flow(2, bytes_out=MOST, port=1))])
    at = datetime.fromtimestamp(NOON / 1e9, UTC)
    rows = await facts.rows("flow_summary", at - timedelta(hours=1), at + timedelta(hours=1), 10)
    assert len(rows) == 2
    rows = await facts.rows("flow_summary_hours", at - timedelta(hours=1), at + timedelta(hours=1), 10)
    assert len(rows) == 2
    await facts.rows("graph_flows", at + timedelta(hours=1))


async def test_what_a_rollout_reads_of_flows_takes_sums_beyond_the_columns(facts, server):
    """Else one host that lies about its calls takes back whatever rollout another one is in."""
    peers = Context(service_id=101, peer_service_id=102, peer_class="private", peer_host="db-1")
    told = [flow(n + 1, port=n, connections=MOST) for n in range(2000)]  # 2,000 rows of flow_minutes
    for start in range(0, len(told), 500):
        await facts.commit([enriched(*told[start : start + 500], context=peers)])
    store, began = PostgresStore(server[0].dsn, b"k" * 32), NOON / 1e9 - 120
    await store.open()
    try:
        for since in (began, NOON / 1e9 - 1):  # by whole minutes, and by rows
            row = await store.row("exposure", [101], ["web-1"], since)
            assert row["flows"] == rollup.MOST
        rows = await store.rows("unheard", [102], ["db-1"], began, 100, NOON / 1e9 + 60)
        assert [(row["host_id"], row["others"]) for row in rows] == [("db-1", rollup.MOST)]
    finally:
        await store.close()


@pytest.mark.parametrize("file", ["queries.sql", "facts.sql"])
async def test_no_sum_over_what_hosts_say_can_fail(file):
    cast = re.compile(r"sum\((?:[^()]|\([^()]*\))*\)[^()]*\)?::(bigint|int)")
    told = {name: text for name, text in named_queries(file).items() if "flow" in text}
    assert [name for name, text in told.items() if cast.search(text)] == []
    assert cast.search("coalesce(sum(n), 0)::bigint")


async def test_no_flows_are_none_and_not_the_most_there_is(facts, server):
    """`least` passes over a null: a sum of no rows is null."""
    assert await facts._writer.fetchval("select bounded(null)") is None
    assert await facts._writer.fetchval("select bounded(7)") == 7
    store = PostgresStore(server[0].dsn, b"k" * 32)
    await store.open()
    try:
        row = await store.row("exposure", [101], ["web-1"], NOON / 1e9)
        assert row["flows"] == 0
    finally:
        await store.close()


async def test_names_of_losses_are_bounded(facts):
    for seq in range(1, 9):
        await facts.commit([enriched(flow(seq), lost={f"{seq}-{n}": n for n in range(60)})])
    assert len((await facts._writer.fetchrow("select lost from sources"))["lost"]) <= 64


async def test_a_host_that_leaves_gaps_for_ever_keeps_a_bounded_mark(facts, monkeypatch):
    monkeypatch.setattr(Seen.close, "__defaults__", (100,))
    for start in range(1, 2001, 200):
        await facts.commit([enriched(*(execed(n) for n in range(start, start + 200, 2)))])
    assert (await facts._writer.fetchval("select seen::text from sources")).count("[") <= 101
    assert (await facts.commit([enriched(*(execed(n) for n in range(1, 2001, 2)))])).new == 0
    assert await facts._writer.fetchval("select count(*) from events") == 1000


@pytest.mark.parametrize("event", [flow(1, connections=1 << 70), execed(1, at=1 << 80)])
async def test_what_can_be_no_row_is_refused_and_the_next_one_is_taken(facts, event):
    with pytest.raises(Refused):
        await facts.commit([enriched(execed(2), event)])
    assert (await facts.commit([enriched(execed(2))])).new == 1


async def test_a_host_that_the_store_cannot_name_is_refused(facts):
    with pytest.raises(Refused):
        await facts.commit([enriched(execed(1), host="a\0")])
