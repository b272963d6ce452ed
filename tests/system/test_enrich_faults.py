"""Faults between the bus and the store: what comes again, and a store that is away or full."""

import time
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from msgspec import Raw
from tests.support.believing import Trusting
from tests.support.engines import eventually, opened, running_nats
from tests.support.facts import NOON, execed, flow

from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.graph.ladybug import LadybugGraph
from aegisflux.adapters.store.facts import PostgresFacts
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain.event import EventBatch
from aegisflux.runtime.clock import WallClock
from aegisflux.runtime.supervise import Process
from aegisflux.services.enrich.app import DURABLE, EVENTS_RAW, Enrich, Parts
from aegisflux.wire import events, subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
KEEP = {"flows": 86_400, "events": 86_400, "flow_minutes": 86_400, "sources": 86_400}
FULL = """
create sequence tries;
create function is_full() returns trigger language plpgsql as $$
begin
    perform nextval('tries');
    raise exception 'No space left on device' using errcode = '53100';
end $$;
create trigger is_full before insert on events execute function is_full();
"""


class Lab:
    """A running enrich over its own bus and store."""

    def __init__(self, bus, dsn, store):
        self.bus, self.dsn, self.store = bus, dsn, store
        self.sent = 0

    async def send(self, *given, boot="b"):
        """As ingest does; each message has an id of its own, so that the bus knows nothing of repeats."""
        batch = EventBatch(host_id="h", boot_id=boot, sent_ns=NOON, events=given)
        self.sent += 1
        sealed = events.Sealed(NOON, 0, Raw(events.encode_batch(batch)))
        await self.bus.publish(subjects.RAW, events.encode_taken([sealed]), msg_id=f"m{self.sent}")

    async def sql(self, text):
        """Run as the store's owner."""
        connection = await asyncpg.connect(self.dsn)
        try:
            if text.startswith("select"):
                return await connection.fetch(text)
            return await connection.execute(text)
        finally:
            await connection.close()

    async def rows(self, boot):
        """Sequences stored of a boot, in order, doubles included."""
        found = await self.sql(
            "select e.seq from (select source, seq from events union all select source, seq from flows) e"
            f" join sources s on s.id = e.source where s.boot_id = '{boot}' order by 1"
        )
        return [row["seq"] for row in found]

    async def handled(self):
        async def nothing_waits():
            return await self.bus.lag(EVENTS_RAW, DURABLE) == 0

        await eventually(nothing_waits, 20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("faults")
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(folder))
        engine = PostgresEngine(folder / "postgres", log=folder / "postgres.log")
        process = Process(engine.child(), folder / "run")
        await process.start()
        stack.push_async_callback(process.stop)
        store = PostgresStore(engine.dsn, b"k" * 32)
        await store.open()
        stack.push_async_callback(store.close)
        bus = await stack.enter_async_context(opened(nats.bus(nats.accounts.control_creds(int(time.time())))))
        facts = PostgresFacts(engine.dsn)
        stack.push_async_callback(facts.close)
        graph = LadybugGraph(folder / "graph")
        parts = Parts(
            bus=bus,
            facts=facts,
            graph=graph,
            store=store,
            clock=WallClock(),
            believer=Trusting(),
            keep_seconds=KEEP,
        )
        enrich = Enrich(parts)
        await enrich.start()
        stack.push_async_callback(enrich.close)
        yield Lab(bus, engine.dsn, process)


async def test_a_batch_that_comes_again_whenever_adds_nothing(lab):
    """Ten minutes are nothing: the store itself knows the sequences, and the bus is asked nothing."""
    given = (execed(1), flow(2), execed(3))
    await lab.send(*given, boot="again")
    await lab.handled()
    for part in (given, given[:1], (execed(3), execed(4)), given):
        await lab.send(*part, boot="again")
    await lab.handled()
    assert await lab.rows("again") == [1, 2, 3, 4]


async def test_a_store_that_is_away_is_waited_for(lab):
    await lab.store.stop()
    for n in range(1, 41):
        await lab.send(execed(2 * n - 1), flow(2 * n), boot="away")
    assert await lab.bus.lag(EVENTS_RAW, DURABLE) == 40
    await lab.store.start()
    await lab.handled()
    assert await lab.rows("away") == list(range(1, 81))


async def test_a_store_that_is_full_is_waited_for(lab):
    """PostgreSQL says disk_full to whoever inserts; nothing of a batch is stored, nothing is lost."""
    await lab.sql(FULL.strip())
    try:
        for n in range(1, 21):
            await lab.send(flow(2 * n - 1), execed(2 * n), boot="full")

        async def tried():
            (row,) = await lab.sql("select last_value from tries")
            return row["last_value"] > 3

        assert await eventually(tried, 10)
        assert await lab.bus.lag(EVENTS_RAW, DURABLE) == 20
        assert await lab.rows("full") == []
    finally:
        await lab.sql("drop function is_full cascade; drop sequence tries")
    await lab.handled()
    assert await lab.rows("full") == list(range(1, 41))
    dead = await lab.bus.read("DEAD", 0, 10)
    assert not dead, "waiting is no reason for a dead letter"
