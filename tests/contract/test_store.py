"""The store on a real PostgreSQL: changes are whole or not at all, and the audit log covers them."""

import asyncio
import os
import signal
from collections import Counter

import pytest
import pytest_asyncio
from tests.support.engines import eventually

from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.store import postgres
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain import audit
from aegisflux.domain.audit import Entry
from aegisflux.domain.errors import Unavailable
from aegisflux.runtime.supervise import Process

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
KEY = b"k" * 32


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    engine = PostgresEngine(folder / "postgres", log=folder / "postgres.log")
    process = Process(engine.child(), folder / "run")
    (folder / "run").mkdir(exist_ok=True)
    await process.start()
    try:
        yield engine, process
    finally:
        await process.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def store(server):
    store = PostgresStore(server[0].dsn, KEY)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def register(store, number: int, fail: bool = False) -> None:
    async with store.change() as db:
        await db.run("put_service", number, f"service-{number}", [], {"role": "x"}, 1)
        await db.audit(Entry("test", "service.put", f"service/{number}"))
        if fail:
            raise RuntimeError("half-way")


async def test_every_query_has_one_name():
    names = postgres.NAMED.findall((postgres.files(postgres.__package__) / "sql" / "queries.sql").read_text())
    assert len(names) == len(dict(names)) > 60


async def test_every_query_is_understood_by_the_server(store):
    async with store._runner.acquire() as connection:
        for name, text in postgres.named_queries().items():
            try:
                await connection.prepare(text)
            except Exception as error:
                pytest.fail(f"{name}: {error}")


async def test_migrations_are_applied_once_and_their_texts_are_kept(server, store, monkeypatch):
    again = PostgresStore(server[0].dsn, KEY)
    await again.open()
    await again.close()
    (first, *_) = postgres.migrations()
    monkeypatch.setattr(postgres, "migrations", lambda: [(first[0], first[1] + "-- another")])
    with pytest.raises(Unavailable, match="another text"):
        await PostgresStore(server[0].dsn, KEY).open()
    monkeypatch.setattr(postgres, "migrations", list)
    with pytest.raises(Unavailable, match="newer version"):
        await PostgresStore(server[0].dsn, KEY).open()


async def test_a_change_that_fails_leaves_nothing(store):
    before, _ = await store.audit_log()
    with pytest.raises(RuntimeError):
        await register(store, 500, fail=True)
    assert await store.row("service", 500) is None
    assert (await store.audit_log())[0] == before


async def test_a_change_without_an_audit_line_is_a_mistake_of_ours(store):
    with pytest.raises(AssertionError):
        async with store.change() as db:
            await db.run("put_service", 501, "silent", [], {}, 1)
    assert await store.row("service", 501) is None


async def test_changes_at_once_come_in_one_order(store):
    await asyncio.gather(*(register(store, 600 + number) for number in range(20)))
    head, lines = await store.audit_log()
    assert list(audit.problems(lines, head, KEY)) == []
    assert len(await store.rows("services")) >= 20


TAMPERING = {
    "an edit": "update audit set object = 'x' where seq = 3",
    "a gap": "delete from audit where seq = 4",
    "a cut-off tail": "delete from audit where seq > 10",
    "a cut-off tail and head": "with t as (delete from audit where seq > 10)"
    " update audit_head set seq = 10, hash = (select hash from audit where seq = 10)",
    "a log emptied": "delete from audit",
}


@pytest.mark.parametrize("how", TAMPERING)
async def test_tampering_is_found(store, how):
    async with store._runner.acquire() as connection:
        await connection.execute(
            "create table kept as table audit; create table kept_head as table audit_head"
        )
        await connection.execute(TAMPERING[how])
    try:
        head, lines = await store.audit_log()
        assert list(audit.problems(lines, head, KEY))
    finally:
        async with store._runner.acquire() as connection:
            await connection.execute(
                "delete from audit; insert into audit select * from kept; drop table kept;"
                "delete from audit_head; insert into audit_head select * from kept_head; drop table kept_head"
            )
    head, lines = await store.audit_log()
    assert list(audit.problems(lines, head, KEY)) == []


async def test_a_server_that_is_away_is_unavailable_and_comes_back(server, store):
    _, process = server
    await process.stop()
    with pytest.raises(Unavailable):
        await store.row("service", 600)
    with pytest.raises(Unavailable):
        await register(store, 700)
    await process.start()
    assert (await store.row("service", 600))["id"] == 600
    await register(store, 700)


async def test_a_server_that_is_killed_under_load_is_unavailable_and_nothing_else(server, store, scale):
    """Whatever the driver says of a lost connection, in whatever call it hears of it."""
    _, process = server
    counted, done = Counter(), asyncio.Event()

    async def hammer(number):
        while not done.is_set():
            for act, *values in ((store.row, "service", 1), (store.check,), (register, store, number)):
                try:
                    await act(*values)
                    counted["fine"] += 1
                except Unavailable:
                    counted["away"] += 1
                    await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(hammer(800 + number)) for number in range(12)]
    for _ in range(scale("kills", 4)):
        before = counted["fine"]
        await eventually(lambda before=before: counted["fine"] > before + 50)
        os.kill(process.pid, signal.SIGKILL)
        await eventually(lambda: process.pid is None)
        await process.start()
    done.set()
    await asyncio.gather(*tasks)
    assert counted["away"] > 0


async def test_a_store_that_was_never_opened_is_unavailable():
    with pytest.raises(Unavailable):
        await PostgresStore("postgresql://nowhere", KEY).row("service", 1)
