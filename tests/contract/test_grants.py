"""Each service's role may do what the service's queries need, and nothing else, on a real PostgreSQL."""

import asyncio
import re

import asyncpg
import pytest
import pytest_asyncio
from tests.support.engines import running_postgres
from tests.support.queries import queries_of

from aegisflux.adapters.engines import roles
from aegisflux.adapters.engines.postgres import SETTINGS
from aegisflux.adapters.store import grants
from aegisflux.adapters.store.blockers import Blockers
from aegisflux.adapters.store.facts import PostgresFacts
from aegisflux.adapters.store.postgres import CONNECTIONS as CONNECTIONS_OF_POOL
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain import audit
from aegisflux.domain.audit import Entry
from aegisflux.domain.errors import Unavailable

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
KEY = b"k" * 32
DAY = 86_400
KEEP = {"flows": 14 * DAY, "events": 30 * DAY, "flow_minutes": 400 * DAY, "sources": 400 * DAY}
# What the stores run without naming a query.
UNNAMED = {
    "orchestrator": {"migrations": "select number from migrations"},
    "ingest": {"migrations": "select number from migrations"},
    "segmenter": {"migrations": "select number from migrations"},
    "enrich": {
        "migrations": "select number from migrations",
        "copy flows": "insert into flows select * from flows where false",
        "copy events": "insert into events select * from events where false",
        "flows_other": "delete from flows_other where time < now()",
        "events_other": "delete from events_other where time < now()",
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory):
    async with running_postgres(tmp_path_factory.mktemp("grants"), KEY) as engine:
        yield engine


def all_of(service):
    return queries_of(service) | UNNAMED[service]


async def explained(connection, text):
    """Plan it, which asks for every right that running it asks for; why it was refused, empty: it was not."""
    prepared = await connection.prepare(text)
    values = ", ".join(["null"] * len(prepared.get_parameters()))
    await connection.execute(f"prepare asked as {text}")
    try:
        await connection.execute(f"explain execute asked{f'({values})' if values else ''}")
    except asyncpg.InsufficientPrivilegeError as error:
        return str(error)
    finally:
        await connection.execute("deallocate asked")
    return ""


@pytest.mark.parametrize("service", grants.SERVICES)
async def test_each_query_of_a_service_runs_as_its_role(engine, service):
    assert len(queries_of(service)) >= 5
    connection = await asyncpg.connect(engine.dsn_of(service))
    try:
        refused = {}
        for name, text in all_of(service).items():
            if why := await explained(connection, text):
                refused[name] = why
        assert not refused
    finally:
        await connection.close()


def each(service):
    """(table, right) of every right of a service."""
    return [(table, right) for table, rights in grants.SERVICES[service].items() for right in rights.split()]


async def needless(engine, service, rights):
    """Those of these rights without which every query of the service runs as well."""
    owner = await asyncpg.connect(engine.dsn)
    asker = await asyncpg.connect(engine.dsn_of(service))
    role, found = grants.PREFIX + service, []
    try:
        for table, right in rights:
            await owner.execute(f"revoke {right} on {table} from {role}")
            for text in all_of(service).values():
                if re.search(rf"\b{table}\b", text) and await explained(asker, text):
                    break
            else:
                found.append((table, right))
            await owner.execute(f"grant {right} on {table} to {role}")
    finally:
        await owner.close()
        await asker.close()
    return found


@pytest.mark.parametrize("service", grants.SERVICES)
async def test_each_right_of_a_service_is_one_that_a_query_needs(engine, service):
    assert await needless(engine, service, each(service)) == []


async def test_a_right_that_nobody_needs_would_be_found(engine):
    extra = [("outbox", "select"), ("plans", "delete")]
    try:
        assert await needless(engine, "segmenter", extra) == extra
    finally:
        owner = await asyncpg.connect(engine.dsn)
        for table, right in extra:
            await owner.execute(f"revoke {right} on {table} from aegisflux_segmenter")
        await owner.close()


FORBIDDEN = {
    "run a program": "copy (select 1) to program 'true'",
    "read a file": "select pg_read_file('/etc/hostname')",
    "read a file by COPY": "create table x (a text); copy x from '/etc/hostname'",
    "list a folder": "select pg_ls_dir('/')",
    "import a file": "select lo_import('/etc/hostname')",
    "make a role": "create role eve",
    "give itself a role": "grant aegisflux_owner to current_user",
    "become the owner": "set role aegisflux_owner",
    "become the superuser": "set role aegisflux",
    "make a database": "create database eve",
    "make a function": "create function bounded(bigint) returns bigint language sql as 'select 1'",
    "make a temporary table": "create temporary table tokens (a int)",
    "load a library": "load 'plpgsql'",
    "read passwords": "select rolpassword from pg_authid",
    "change a setting of the server": "alter system set log_statement = 'all'",
    "change the schema": "alter table tokens drop column mac",
    "switch triggers off": "alter table hosts disable trigger all",
    "drop a foreign table as a day": "select facts_drop_day('tokens', '2026-01-01')",
    "drop what is no day": "select facts_drop_day('flows', 'infinity')",
    "cut the log off": "delete from audit",
    "write the log anew": "update audit set actor = 'eve'",
    "add a line to the log": "insert into audit values (9, 1, 'eve', '', 'panic', 'x', '', '', '', '', 'x')",
    "move the head of the log": "update audit_head set seq = 0",
    "take the head of the log": "delete from audit_head",
    "give the head of the log another MAC": "update audit_head set mac = 'x'",
    "add a line that the control plane did not make": "select audit_add(9, 1, 'eve', '', 'panic', 'x', '',"
    " '', '', '', 'x', 'x')",
    "move the head to a line of its own": "select audit_move(9, 'x', 'x', 'x')",
    "move the head without a gate": "select audit_move(9, 'x', 'x', null)",
    "look through the gate of the log": "select inner_key from audit_gate",
    "write the gate of the log": "update audit_gate set inner_key = 'x'",
    "ask the gate of the log": "select audit_check('line 9 78', 'x')",
    "forget a migration": "delete from migrations",
}


@pytest.mark.parametrize("what", FORBIDDEN)
@pytest.mark.parametrize("service", grants.SERVICES)
async def test_no_service_may(engine, service, what):
    connection = await asyncpg.connect(engine.dsn_of(service))
    try:
        with pytest.raises(asyncpg.PostgresError) as refused:
            await connection.execute(FORBIDDEN[what])
        denied = refused.value.sqlstate == "42501"
        assert denied or "infinity" in str(refused.value), refused.value
    finally:
        await connection.close()


async def test_only_lines_of_the_control_plane_pass_the_gate_of_the_log(engine):
    """As each service, what passed it once passes it no second time, and nothing that looks like it."""
    stores = {name: PostgresStore(engine.dsn_of(name), KEY, owner=None) for name in ("orchestrator", *WEAK)}
    seq, mac = 0, b"m" * 32
    for name, store in stores.items():
        await store.open()
        async with store.change() as db:
            await db.audit(Entry(name, "host.release", "host/x"))
        head, lines = await store.audit_log()
        assert list(audit.problems(lines, head, KEY)) == []
        seq = head.seq
    gates = {
        "of the last line": audit.gate_of(KEY, "line", seq, head.hash),
        "of the last head": audit.gate_of(KEY, "head", seq, head.hash),
        "of another key": audit.gate_of(b"x" * 32, "line", seq + 1, b"h"),
        "with the MAC of a head": audit.mac_of(KEY, seq + 1, b"h"),
    }
    add = "select audit_add($1, 1, 'eve', '', 'panic', 'x', '', '', '', '', $2, $3)"
    for name in WEAK:
        connection = await asyncpg.connect(engine.dsn_of(name))
        try:
            for gate in gates.values():
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(add, seq + 1, b"h", gate)
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute("select audit_move($1, $2, $3, $4)", seq + 1, b"h", mac, gate)
        finally:
            await connection.close()
    for store in stores.values():
        async with store.change() as db:
            await db.audit(Entry("tester", "panic", "x"))
        await store.close()


WEAK = ("ingest", "segmenter")
NOT_EVEN = ("run a program", "read a file", "list a folder", "import a file", "make a role",
            "make a database",
            "become the superuser", "read passwords", "change a setting of the server")  # fmt: skip


@pytest.mark.parametrize("what", NOT_EVEN)
async def test_not_even_the_owner_may(engine, what):
    connection = await asyncpg.connect(engine.dsn)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(FORBIDDEN[what])
    finally:
        await connection.close()


OTHERS = {  # what each service has no business with
    "ingest": ("hosts", "services", "plans", "contents", "enroll_tokens", "key_sets"),
    "enrich": ("plans", "enroll_tokens", "key_sets", "idempotency", "outbox"),
    "segmenter": ("enroll_tokens", "key_sets", "idempotency", "outbox", "rollouts"),
}


@pytest.mark.parametrize("service", OTHERS)
async def test_a_service_reads_nothing_of_others_and_writes_no_token(engine, service):
    connection = await asyncpg.connect(engine.dsn_of(service))
    try:
        for table in OTHERS[service]:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"select from {table}")
        columns = "id, name, role, hash, created_at, created_by"
        for text in (
            "delete from tokens",
            "update tokens set role = 'admin'",
            "update tokens set revoked_at = null",
            f"insert into tokens ({columns}) values ('1', 'x', 'admin', 'x', 0, '')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(text)
    finally:
        await connection.close()


ALL_TABLES = {table for rights in grants.SERVICES.values() for table in rights}
CONNECTIONS = {
    "the superuser": lambda dsn: dsn.replace("aegisflux_owner", "aegisflux"),
    "another database": lambda dsn: dsn.replace("/aegisflux?", "/postgres?"),
    "a template": lambda dsn: dsn.replace("/aegisflux?", "/template1?"),
    "a wrong password": lambda dsn: dsn.replace("@", "x@"),
    "no password": lambda dsn: re.sub(r":[0-9a-f]{48}@", "@", dsn),
    "another one's password": lambda dsn: dsn.replace("aegisflux_owner", "aegisflux_ingest"),
}


@pytest.mark.parametrize("who", sorted(CONNECTIONS))
async def test_who_is_not_named_cannot_connect(engine, who):
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(CONNECTIONS[who](engine.dsn), timeout=5)


async def test_passwords_are_files_of_their_own_and_stand_nowhere_else(engine):
    found = sorted(path.name for path in (engine.data_dir / "passwords").iterdir())
    assert found == sorted(roles.ROLES)
    texts = {(engine.data_dir / "passwords" / role).read_text() for role in roles.ROLES}
    assert len(texts) == len(roles.ROLES)
    for role in roles.ROLES:
        assert (engine.data_dir / "passwords" / role).stat().st_mode & 0o777 == 0o600
    child = engine.child()
    said = " ".join((*child.argv, *(child.env or {}).values(), engine.log.read_text()))
    assert not any(text in said for text in texts)


async def test_a_service_waits_for_the_schema_and_does_not_make_it(engine):
    owner = await asyncpg.connect(engine.dsn)
    store = PostgresStore(engine.dsn_of("ingest"), KEY, owner=None)
    last = await owner.fetchrow("delete from migrations where number = 12 returning number, sha256")
    try:
        with pytest.raises(Unavailable, match="not applied migration 12"):
            await store.open()
    finally:
        await owner.execute("insert into migrations values ($1, $2)", *last)
        await owner.close()
    await store.open()
    await store.close()


async def test_days_are_made_and_dropped_by_a_writer_that_owns_nothing(engine):
    facts = PostgresFacts(engine.dsn_of("enrich"))
    try:
        await facts.open_writer()
        assert await facts.shape("auto", KEEP) == "native partitions"
        with pytest.raises(Unavailable, match="require"):
            await facts.shape("require", KEEP)
        made = await facts.upkeep(1_700_000_000.0, KEEP)
        assert "made flows_20231114" in made
        assert await facts.upkeep(1_700_000_000.0, KEEP) == []
        dropped = await facts.upkeep(1_700_000_000.0 + 40 * DAY, KEEP)
        assert {"dropped flows_20231114", "dropped events_20231114"} <= set(dropped)
    finally:
        await facts.close()


async def test_rights_that_were_given_by_hand_are_taken_at_the_next_start(engine):
    owner = await asyncpg.connect(engine.dsn)
    try:
        await owner.execute("grant delete on audit to aegisflux_ingest")
        assert [await grants._has(owner, name, ALL_TABLES) for name in grants.SERVICES].count(False) == 1
        store = PostgresStore(engine.dsn_of("orchestrator"), KEY, owner=engine.dsn)
        await store.open()
        await store.close()
        assert all([await grants._has(owner, name, ALL_TABLES) for name in grants.SERVICES])
        asked = "select has_table_privilege('aegisflux_ingest', 'audit', 'delete')"
        assert await owner.fetchval(asked) is False
    finally:
        await owner.close()


OURS = [(name, function) for name in grants.FUNCTIONS for function in grants.FUNCTIONS[name]]
NEEDED = """
select oid::regprocedure::text from pg_proc where prosecdef and pronamespace = current_schema()::regnamespace
"""


async def test_a_role_that_is_made_after_the_tables_runs_the_functions_that_it_needs(engine):
    """A migration gives nothing to a role that is not there yet."""
    owner = await asyncpg.connect(engine.dsn)
    try:
        named = {one for _, one in OURS} | {"audit_check(text, bytea)"}  # which the two of the log call
        assert {row[0].replace(",", ", ") for row in await owner.fetch(NEEDED)} == named
        for name, function in OURS:
            await owner.execute(f"revoke all on function {function} from aegisflux_{name}")
        store = PostgresStore(engine.dsn_of("orchestrator"), KEY, owner=engine.dsn)
        await store.open()
        await store.close()
        found = [await owner.fetchval(grants.MAY_RUN, f"aegisflux_{name}", one) for name, one in OURS]
        assert all(found)
    finally:
        await owner.close()


# What each service can hold for ever: it switches the time-outs of its role off.
HELD = {
    "ingest, the head of the log": ("ingest", "select from audit_head for update"),
    "segmenter, the head of the log": ("segmenter", "select from audit_head for update"),
    "segmenter, its head by an update": ("segmenter", "update audit_head set one = true"),
    "segmenter, the plans": ("segmenter", "lock table plans in access exclusive mode"),
    "enrich, the sources": ("enrich", "lock table sources in access exclusive mode"),
    "enrich, tokens": ("enrich", "update tokens set last_used = 1"),
    "ingest, tokens": ("ingest", "select from tokens for update"),
}


@pytest.mark.parametrize("what", HELD)
async def test_a_service_that_holds_a_lock_holds_up_no_change(engine, what):
    role, text = HELD[what]
    store, blockers = (
        PostgresStore(engine.dsn_of("orchestrator"), KEY, owner=None),
        Blockers(engine.dsn_of("orchestrator")),
    )
    await store.open()
    hostile = await asyncpg.connect(engine.dsn_of(role))
    waiting = await asyncpg.connect(engine.dsn_of("segmenter"))  # an honest one, ahead of us
    watch = asyncio.create_task(_watched(blockers))
    tasks = []
    try:
        await store.run("add_token", what, what, "viewer", what.encode(), 0, "", None, None, None)
        await hostile.execute("set lock_timeout = 0; set idle_in_transaction_session_timeout = 0")
        await hostile.execute(f"begin; {text}")
        tasks = [asyncio.create_task(waiting.execute("select from audit_head for update"))]
        await asyncio.sleep(0)
        async with asyncio.timeout(8):
            async with store.change() as db:
                await db.run("revoke_token", what, 1)
                await db.rows("plan", 0)
                await db.audit(Entry("tester", "panic", "x"))
            await store.rows("token", what.encode())
            await store._runner.fetch("select from sources")
        await asyncio.gather(*tasks)
        assert not waiting.is_closed()
    finally:
        watch.cancel()
        await asyncio.gather(watch, *tasks, return_exceptions=True)
        hostile.terminate()
        waiting.terminate()
        await blockers.close()
        await store.close()


async def _watched(blockers):
    while True:
        await blockers.step()


async def test_locks_of_the_orchestrator_itself_and_of_who_holds_nobody_up_are_left_alone(engine):
    blockers = Blockers(engine.dsn_of("orchestrator"))
    ours, other = [await asyncpg.connect(engine.dsn_of(role)) for role in ("orchestrator", "segmenter")]
    asker = await asyncpg.connect(engine.dsn_of("orchestrator"))
    try:
        await ours.execute("begin; select from audit_head for update")
        await other.execute("begin; lock table plans in share mode")
        await asker.execute("set lock_timeout = '3s'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await asker.execute("select from audit_head for update")
        assert await blockers.look() == []
        await other.execute("commit")
    finally:
        for connection in (ours, other, asker):
            connection.terminate()
        await blockers.close()


@pytest.mark.parametrize("role", grants.SERVICES)
async def test_what_a_service_leaves_behind_ends_by_itself(engine, role):
    connection = await asyncpg.connect(engine.dsn_of(role))
    try:
        assert await connection.fetchval("show lock_timeout") == "10s"
        assert await connection.fetchval("show idle_in_transaction_session_timeout") == "30s"
    finally:
        await connection.close()


@pytest.mark.parametrize("role", sorted(set(roles.ROLES) - {"orchestrator"}))
async def test_a_role_has_its_own_connections_and_no_others(engine, role):
    held, own = [], []
    try:
        with pytest.raises(asyncpg.TooManyConnectionsError):
            while len(held) <= sum(roles.CONNECTIONS.values()):
                held.append(await asyncpg.connect(engine.dsn_of(role)))
        assert len(held) == roles.CONNECTIONS[role]
        own += [await asyncpg.connect(engine.dsn_of("orchestrator")) for _ in range(CONNECTIONS_OF_POOL + 1)]
    finally:
        for connection in held + own:
            connection.terminate()


async def test_the_server_has_a_connection_for_each_that_a_role_may_have(engine):
    superuser = 3
    wanted = sum(roles.CONNECTIONS.values()) + superuser
    assert wanted <= int(SETTINGS["max_connections"])
    assert roles.CONNECTIONS["orchestrator"] > CONNECTIONS_OF_POOL


async def test_one_plain_role_is_enough(engine):
    """An own PostgreSQL whose operator gives one URL: it migrates, changes and writes facts."""
    await asyncio.sleep(0)
    store, facts = PostgresStore(engine.dsn, KEY), PostgresFacts(engine.dsn)
    try:
        await store.open()
        assert "PostgreSQL" in await store.check()
        await facts.open_writer()
        assert await facts.shape("auto", KEEP) == "native partitions"
    finally:
        await facts.close()
        await store.close()
