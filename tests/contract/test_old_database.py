"""A data folder of before each service had a role: its superuser `aegisflux` owned everything and connected
with a password. It is carried over at the next start, whole."""

import secrets

import asyncpg
import pytest

from aegisflux.adapters.engines import postgres
from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.store import postgres as store_postgres
from aegisflux.adapters.store.postgres import PostgresStore, migrations
from aegisflux.domain import audit
from aegisflux.domain.audit import Entry
from aegisflux.runtime.supervise import Process

pytestmark = pytest.mark.engines
KEY = b"k" * 32
LAST_OLD = 9
NUMBERED = ", ".join(f"${number}" for number in range(1, 12))


class Old(PostgresEngine):
    """As it was: initdb's own pg_hba.conf, one user, its password beside the cluster."""

    @property
    def dsn(self):
        password = (self.data_dir / "password").read_text()
        return f"postgresql://aegisflux:{password}@/aegisflux?host={self.socket_dir}&port=5432"

    def _initialise(self, launch):
        draft = self.data_dir / "cluster.new"
        draft.mkdir(mode=0o700)
        postgres.os.chown(draft, launch.uid, -1)
        password, handed = secrets.token_hex(24), self.socket_dir / "password"
        postgres._write_secret(handed, password, launch.uid)
        launch.run(draft, "initdb", *postgres._initdb_options(handed))
        handed.unlink()
        create = "CREATE DATABASE aegisflux;\n"
        launch.run(draft, "postgres", "--single", "-D", postgres.HERE, "postgres", stdin=create)
        postgres._write_secret(self.data_dir / "password", password, postgres.os.geteuid())
        draft.rename(self._cluster)

    def _make_roles(self, launch):
        pass


async def filled(dsn, monkeypatch):
    """Rows in each kind of table: plain, partitioned by a day of its own, with a column that counts."""
    with monkeypatch.context() as then:
        then.setattr(
            store_postgres, "migrations", lambda: [one for one in migrations() if one[0] <= LAST_OLD]
        )
        connection = await asyncpg.connect(dsn)
        await store_postgres._migrate(connection)
    entry = Entry("admin", "service.put", "service/7", after="web ['unit:web'] {'role': 'web'}")
    line, head = audit.following(audit.first_head(KEY), KEY, 1, entry)
    values = (
        line.seq,
        line.at,
        entry.actor,
        "",
        entry.action,
        entry.object,
        "",
        entry.after,
        "",
        "",
        line.hash,
    )
    await connection.execute(f"insert into audit values ({NUMBERED})", *values)
    head_values = head.seq, head.hash, head.mac
    await connection.execute("insert into audit_head (seq, hash, mac) values ($1, $2, $3)", *head_values)
    await connection.execute(
        "insert into services (id, name, selectors, host_labels, created_at) "
        """values (7, 'web', '{unit:web}', '{"role": "web"}', 1)"""
    )
    await connection.execute(
        "insert into sources (host_id, boot_id) values ('h', 'b');"
        "create table flows_20260101 partition of flows for values from ('2026-01-01') to ('2026-01-02');"
        "insert into events values ('2026-01-01', 1, 1, 'exec', null, null, '', '', null, '{}');"
        "insert into proposals (created_at, created_by, asked, flows, flows_digest, body) "
        "values (1, 'x', '{}', 0, '', '{}')"
    )
    await connection.close()


OWNERS = """
select c.relname::text as name, pg_get_userbyid(c.relowner)::text as owner from pg_class c
where c.relnamespace = 'public'::regnamespace
union all select proname::text, pg_get_userbyid(proowner)::text from pg_proc
where pronamespace = 'public'::regnamespace
union all select datname::text, pg_get_userbyid(datdba)::text from pg_database where datname = 'aegisflux'
"""


@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_a_folder_of_before_is_carried_over_without_loss(tmp_path, monkeypatch, end):
    old = Old(tmp_path / "postgres", log=tmp_path / "postgres.log")
    (tmp_path / "run").mkdir()
    process = Process(old.child(), tmp_path / "run")
    await process.start()
    await filled(old.dsn, monkeypatch)
    former = old.dsn
    if end == "killed":
        postgres.os.kill(process.pid, postgres.signal.SIGKILL)
    await process.stop()

    engine = PostgresEngine(old.data_dir, log=old.log)
    process = Process(engine.child(), tmp_path / "run")
    await process.start()
    try:
        assert not (engine.data_dir / "password").exists()
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(former, timeout=5)
        store = PostgresStore(engine.dsn_of("orchestrator"), KEY, owner=engine.dsn)
        await store.open()
        try:
            assert (await store.row("service", 7))["selectors"] == ["unit:web"]
            assert (await store.audit_log())[0].seq == 1
            async with store.change() as db:
                await db.audit(Entry("admin", "service.put", "service/7"))
        finally:
            await store.close()
        owner = await asyncpg.connect(engine.dsn)
        try:
            rows = await owner.fetch(OWNERS)
            assert {row["owner"] for row in rows} == {"aegisflux_owner"}, rows
            assert {"flows_20260101", "flows_view", "bounded", "tell_known", "aegisflux"} <= {
                r["name"] for r in rows
            }
            assert await owner.fetchval("select count(*) from events") == 1
            added = (
                "insert into proposals (created_at, created_by, asked, flows, flows_digest, body) "
                "values (2, 'x', '{}', 0, '', '{}') returning id"
            )
            assert await owner.fetchval(added) >= 2
            supers = "select rolname::text, rolcanlogin from pg_roles where rolsuper"
            assert [tuple(row) for row in await owner.fetch(supers)] == [("aegisflux", False)]
        finally:
            await owner.close()
    finally:
        await process.stop()


async def test_roles_are_made_once_and_again_where_a_password_is_missing(tmp_path):
    engine = PostgresEngine(tmp_path / "postgres", log=tmp_path / "postgres.log")
    (tmp_path / "run").mkdir()
    process = Process(engine.child(), tmp_path / "run")
    await process.start()
    first = engine.dsn_of("enrich")
    await process.stop()
    ran = []
    run = postgres.Launch.run

    def counted(launch, folder, program, *arguments, **options):
        ran.append(arguments)
        return run(launch, folder, program, *arguments, **options)

    postgres.Launch.run = counted
    try:
        await process.start()
        await process.stop()
        assert not ran
        (engine.data_dir / "passwords" / "enrich").unlink()
        await process.start()
    finally:
        postgres.Launch.run = run
    try:
        assert len(ran) == 1
        assert engine.dsn_of("enrich") != first
        await (await asyncpg.connect(engine.dsn_of("enrich"))).close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(first)
    finally:
        await process.stop()
