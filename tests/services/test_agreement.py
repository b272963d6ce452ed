"""Whatever SQL gives or takes of a right, the audit log says otherwise: a table of all that gives one, on a
real PostgreSQL, after a rollout of a plan on enrolled hosts."""

import json
from dataclasses import dataclass, field

import asyncpg
import pytest
import pytest_asyncio
from msgspec.structs import replace
from nacl.signing import SigningKey
from tests.support.columns import COLUMNS, Compared, Whole
from tests.support.control import WHO, body, disagreements, request_of
from tests.support.rollouts import running_fleet, running_world

from aegisflux.domain import agreement
from aegisflux.domain.errors import Conflict, Forbidden
from aegisflux.domain.roles import Principal
from aegisflux.domain.rotation import Progress
from aegisflux.services.orchestrator import agreed
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.registry import Health
from aegisflux.services.orchestrator.rotation import Rotation
from aegisflux.services.orchestrator.suspicions import Suspicion
from aegisflux.wire.token import parse_token, token_hash, token_text

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Known:
    """What there is to tamper with."""

    plane: object
    owner: object
    fleet: object
    names: dict = field(default_factory=dict)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def known(tmp_path_factory):
    patched = pytest.MonkeyPatch()
    patched.setattr(Rotation, "_progress", _waits_for_ever)
    async with (
        running_world(tmp_path_factory.mktemp("agreement")) as world,
        running_fleet(world, 300) as fleet,
    ):
        plane = world[0]
        rollout = await fleet.promoted(5432, 6379)
        core = plane.orchestrator
        await core.hosts.relabel(fleet.hosts[0], {"role": "bastion", "a": "b"}, WHO)
        await core.hosts.suspicions.say(fleet.hosts[1], Suspicion(suspicious=True, detail="odd"), WHO)
        await core.registry.put(301, "other", ["unit:other"], {"role": "x"}, WHO)
        await core.snapshots.post(body(301, 1), [fleet.hosts[0]], "", WHO)
        await core.snapshots.post(body(302, 1), None, "", WHO)
        asks = Who(Principal("op", "operator", id="1"), "test", "req")
        asked = await core.registry.put(301, "other", ["unit:more"], {"role": "x"}, asks)
        assert asked.waits
        await core.access.seal()
        token = await core.access.issue("op", "operator", None, WHO)
        await core.hosts.token({"role": "web"}, None, 600, WHO)
        await core.changes.withdraw(301, [fleet.hosts[0]], WHO)
        await core.registry.health(301, Health(healthy=False, detail="ill"), WHO)
        await core.registry.put(303, "third", ["unit:third"], {"role": "x"}, WHO)
        await core.snapshots.post(body(303, 1), None, "", WHO)
        await core.rotation.begin(WHO)
        assert await disagreements(plane) == []
        owner = await asyncpg.connect(plane.dsn)
        names = {
            "HOST": fleet.hosts[0], "SUSPECTED": fleet.hosts[1], "TOKEN": token.id,
            "OTHER_HOST": fleet.hosts[2], "OTHER_PLAN": "77", "OTHER_ROLLOUT": "77", "PROPOSAL": "77",
            "PLAN": str(rollout.rollout.plan),
            "ROLLOUT": str(rollout.rollout.id),
        }  # fmt: skip
        names = dict(sorted(names.items(), key=lambda one: -len(one[0])))
        try:
            yield Known(plane, owner, fleet, names)
        finally:
            await owner.close()
            patched.undo()


async def _waits_for_ever(_self, _row):
    return Progress(over=False, missing=())


TOKEN = "(id, name, role, hash, created_at, created_by) values ('9', 'eve', 'admin', 'x', 1, 'admin')"
ENROLMENT = (
    "(hash, labels, created_at, created_by, expires_at) "
    "values ('00112233445566778899', '{}', 1, 'admin', 99999999999)"
)
UNUSED = "where used_by is null"
REUSED = "update enroll_tokens set used_by = null"
MADE = "(plan, created_at, created_by, stage, run, parts) values (PLAN, 1, 'x', 'waves', '{}', '[]')"
SUSPICION = "values ('HOST', 'f', '', 1, 'x')"
KEY = "decode(repeat('ab', 32), 'hex')"
HOST = f"(host_id, public_key, enrolled_at) values ('eve', {KEY}, 1)"
OTHER_RULES = "(select snapshot from contents where service_id = 301 and version = 1)"
# What is changed, and the objects that are named.
TAMPERING = {
    "a token that is made": (f"insert into tokens {TOKEN}", "token/9"),
    "a token that is raised": ("update tokens set role = 'admin' where id = 'TOKEN'", "token/TOKEN"),
    "a token without its MAC": ("update tokens set mac = null where id = 'TOKEN'", "token/TOKEN"),
    "a token that is ended": ("update tokens set revoked_at = 1 where id = 'TOKEN'", "token/TOKEN"),
    "a token that is taken": ("delete from tokens where id = 'TOKEN'", "token/TOKEN"),
    "a host's key": (f"update hosts set public_key = {KEY} where host_id = 'HOST'", "host/HOST"),
    "a host's labels": ("""update hosts set labels = '{"role": "db"}' where host_id = 'HOST'""", "host/HOST"),
    "a host that is made": (f"insert into hosts {HOST}", "host/eve"),
    "a host that is released": ("update hosts set released_at = 1 where host_id = 'HOST'", "host/HOST"),
    "an enrolment token that is made": (
        f"insert into enroll_tokens {ENROLMENT}",
        "enrolment/0011223344556677",
    ),
    "an enrolment token with other labels": (
        f"update enroll_tokens set labels = '{{}}' {UNUSED}",
        "enrolment/",
    ),
    "an enrolment token that lives on": (f"update enroll_tokens set expires_at = 9e9 {UNUSED}", "enrolment/"),
    "an enrolment token that is used again": (f"{REUSED} where used_by = 'HOST'", "enrolment/"),
    "a service's selectors": ("update services set selectors = '{unit:*}' where id = 301", "service/301"),
    "a service's labels": ("update services set host_labels = '{}' where id = 301", "service/301"),
    "a service's name": ("update services set name = 'web' where id = 301", "service/301"),
    "a change that was asked for": (
        "update service_changes set selectors = '{unit:*}' where service_id = 301",
        "service/301/change service/301/change/made",
    ),
    "a promotion": ("update services set stable = 1 where id = 301", "service/301/stable"),
    "a promotion that is taken": ("update services set stable = null where id = 300", "service/300/stable"),
    "a content": ("update contents set digest = 'sha256:x' where service_id = 302", "service/302/version/1"),
    "a content that is taken": ("delete from contents where service_id = 302", "service/302/version/1"),
    "a content under another version": (
        "update contents set version = 7 where service_id = 302",
        "service/302/version/1 service/302/version/7",
    ),
    "rules behind a digest": (
        f"update contents set snapshot = {OTHER_RULES} where service_id = 302",
        "service/302/version/1",
    ),
    "a snapshot that is none": (
        "update contents set snapshot = 'x' where service_id = 302",
        "service/302/version/1",
    ),
    "what was promoted": (
        "update services set promotions = promotions || 1::bigint where id = 301",
        "service/301/promotions",
    ),
    "an approval": ("update plans set approved_by = 'eve' where id = PLAN", "plan/PLAN"),
    "an approval of what is cut": ("update plans set accepted = true where id = PLAN", "plan/PLAN"),
    "another plan": ("""update plans set body = body || '{"x": 1}' where id = PLAN""", "plan/PLAN"),
    "another plan with its digest": (
        "update plans set digest = 'sha256:x' where id = PLAN",
        "plan/PLAN plan/PLAN/made",
    ),
    "another policy": (
        "update plans set policy = policy || ' ' where id = PLAN",
        "plan/PLAN/made plan/PLAN/policy",
    ),
    "a rollout's stage": ("update rollouts set stage = 'canary' where id = ROLLOUT", "rollout/ROLLOUT"),
    "a rollout that is made": (f"insert into rollouts {MADE}", "rollout/ rollout/"),
    "what a host had that is made": (
        "insert into had values (302, 'HOST', '{1}')",
        "service/302/had/HOST",
    ),
    "a host that nothing is withheld from": ("delete from withheld", "service/301/withheld"),
    "a step that is made": (
        "insert into rollout_steps values (ROLLOUT, 1, 'waves', 0, 'x', '', '{}')",
        "rollout/ROLLOUT/steps",
    ),
    "a sick service that is not": ("delete from service_health", "service/301/health/"),
    "a change that was discarded": (
        "delete from service_changes",
        "service/301/change service/301/change/made",
    ),
    "a suspicion that is taken": ("delete from suspicions", "host/SUSPECTED/suspicion/"),
    "a suspicion that is made": (f"insert into suspicions {SUSPICION}", "host/HOST/suspicion/f"),
    "another key that signs": ("update key_sets set signing = 'eve' where version = 1", "keys/1"),
    "another key set": ("insert into key_sets values (5, 'x', 'eve', 1)", "keys/5"),
}


@pytest.mark.parametrize("what", TAMPERING)
async def test_what_sql_changes_is_named(known, what):
    statement, objects = TAMPERING[what]
    for name, value in known.names.items():
        statement = statement.replace(name, value)
        objects = objects.replace(name, value)
    transaction = known.owner.transaction()
    await transaction.start()
    try:
        assert not (await known.owner.execute(statement)).endswith(" 0")
        found = await _seen_by(known)
    finally:
        await transaction.rollback()
    named = [line.partition(": ")[0] for line in found]
    assert len(named) == len(objects.split()), found
    for name, wanted in zip(named, objects.split(), strict=True):
        assert name == wanted or (wanted.endswith("/") and name.startswith(wanted)), found
    assert await disagreements(known.plane) == []


REWRITTEN = [
    (table, column)
    for table, columns in COLUMNS.items()
    if not isinstance(columns, Whole)
    for column, one in columns.items()
    if isinstance(one, Compared)
]


@pytest.mark.parametrize(("table", "column"), REWRITTEN)
async def test_a_column_that_decides_something_is_compared(known, table, column):
    row = COLUMNS[table][column]
    statement, wanted = f"update {table} set {column} = {row.value} where {row.where}", row.named
    for name, value in known.names.items():
        statement, wanted = statement.replace(name, value), wanted.replace(name, value)
    transaction = known.owner.transaction()
    await transaction.start()
    try:
        await _without_references(known.owner, table)
        assert not (await known.owner.execute(statement)).endswith(" 0")
        found = await _seen_by(known)
    finally:
        await transaction.rollback()
    named = [line.partition(": ")[0] for line in found]
    assert named
    assert all(name == wanted or (wanted.endswith("/") and name.startswith(wanted)) for name in named), found
    assert await disagreements(known.plane) == []


async def _without_references(owner, table):
    """Who writes the database may well write several tables, so that no reference stands in the way."""
    rows = await owner.fetch(
        "select conrelid::regclass::text as name, conname from pg_constraint where contype = 'f' "
        "and $1::regclass in (conrelid, confrelid)",
        table,
    )
    for row in rows:
        await owner.execute(f"alter table {row['name']} drop constraint {row['conname']}")
    fixed = await owner.fetch(
        "select column_name from information_schema.columns where table_name = $1 and is_identity = 'YES'",
        table,
    )
    for row in fixed:
        await owner.execute(f"alter table {table} alter column {row['column_name']} set generated by default")


async def test_each_column_of_the_store_is_compared_or_said_to_be_harmless(known):
    rows = await known.owner.fetch(
        "select c.table_name::text, c.column_name::text from information_schema.columns c "
        "join information_schema.tables t using (table_schema, table_name) "
        "where table_schema = current_schema() and t.table_type = 'BASE TABLE' and not exists "
        "(select from pg_inherits where inhrelid = format('%I', table_name)::regclass)"
    )
    whole = {table for table, columns in COLUMNS.items() if isinstance(columns, Whole)}
    there = {(table, column) for table, column in rows if table not in whole}
    told = {(table, column) for table in COLUMNS.keys() - whole for column in COLUMNS[table]}
    assert there == told
    assert {table for table, _ in rows} == COLUMNS.keys()


async def _seen_by(known):
    """The differences, as the connection of the open transaction sees the store."""
    _, lines = await known.plane.store.audit_log()
    seen = known.plane.store._queries

    class Within:
        async def rows(self, query, *values):
            return await known.owner.fetch(seen[query], *values)

    await known.owner.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    has = await agreed.texts(Within(), known.plane.orchestrator.access.register)
    return list(agreement.differences(agreement.said(lines), has))


ENROLMENTS = {
    "made": "insert into enroll_tokens (hash, labels, created_at, created_by, expires_at) "
    "values ($1, '{}', 1, 'admin', 99999999999)",
    "with other labels": """update enroll_tokens set labels = '{"role": "db"}' where hash = $1""",
    "that lives on": "update enroll_tokens set expires_at = expires_at + 9 where hash = $1",
    "bound to no name": "update enroll_tokens set host_id = null where hash = $1",
    "that was used": "update enroll_tokens set used_by = null, used_key = null where hash = $1",
}


@pytest.mark.parametrize("how", ENROLMENTS)
async def test_an_enrolment_token_is_believed_as_the_log_says(known, how):
    core, number = known.plane.orchestrator, list(ENROLMENTS).index(how)
    name = f"enrol-{number}"
    token = (await core.hosts.token({"role": "web"}, name, 600, WHO)).token
    if how == "made":
        token = token_text(replace(parse_token(token), secret="of-somebody-else"))
    if how == "that was used":
        await core.hosts.enroll(request_of(token, name, SigningKey.generate()), WHO)
        await core.hosts.release(name, WHO)
    assert (await known.owner.execute(ENROLMENTS[how], token_hash(token))).endswith(" 1")
    try:
        with pytest.raises(Forbidden):
            await core.hosts.enroll(request_of(token, name, SigningKey.generate()), WHO)
        assert all(host.host_id != name for host in await core.hosts.all())
    finally:
        await known.owner.execute("delete from enroll_tokens where hash = $1", token_hash(token))


async def test_a_plan_that_sql_approved_or_changed_is_not_carried_out(known):
    fleet = known.fleet
    number = await fleet.planned(5432, 8080, approve=False, canary_hosts=(fleet.hosts[1],))
    saved = await known.owner.fetchrow("select body, approved_by, accepted from plans where id = $1", number)
    for statement in (
        "update plans set approved_by = 'second', approved_at = 1 where id = $1",
        """update plans set body = jsonb_set(body, '{approval}', '[]') where id = $1""",
        "update plans set accepted = true, approved_by = 'second' where id = $1",
    ):
        assert (await known.owner.execute(statement, number)).endswith(" 1")
        with pytest.raises(Conflict, match="not as the audit log says"):
            await fleet.rollouts.begin(number, WHO, True)
        back = "update plans set body = $2, approved_by = $3, accepted = $4 where id = $1"
        await known.owner.execute(back, number, *saved)
    with pytest.raises(Conflict) as held:
        await fleet.rollouts.begin(number, WHO, True)
    assert "audit log" not in str(held.value)
