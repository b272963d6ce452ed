"""Who writes the database decides nothing: a row that was rewritten by SQL is refused where a decision reads
it, and reported, and nothing else stops."""

from types import SimpleNamespace

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from tests.support.control import WHO, body
from tests.support.rollouts import HALF, running_fleet, running_world

from aegisflux.domain.errors import Conflict, Forbidden, Refused
from aegisflux.domain.manifest import ContentChunk, ContentRequest
from aegisflux.domain.roles import Principal
from aegisflux.domain.tables import TABLES_FORMAT
from aegisflux.runtime.believed import doubt_of
from aegisflux.runtime.clock import WallClock
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.panic import PanicRequest
from aegisflux.services.orchestrator.sealing import seal_rows
from aegisflux.services.segmenter.plans import Plans
from aegisflux.wire import subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
MALLORY = Who(Principal("mallory", "approver", id="m1"), "test", "req")
SECOND = Who(Principal("second", "approver", id="s1"), "test", "req")
OPERATOR = Who(Principal("op", "operator", id="o1"), "test", "req")


class World:
    def __init__(self, plane, fleet, owner):
        self.plane, self.fleet, self.owner = plane, fleet, owner
        self.core = plane.orchestrator
        believer, proposals = self.core.core.register, fleet.segmenter.proposals
        self.plans = Plans(plane.store, proposals, WallClock(), HALF, believer)
        self.number = 600

    async def sql(self, statement, *values):
        assert not (await self.owner.execute(statement, *values)).endswith(" 0")

    @property
    def doubts(self):
        return self.core.core.register.doubts

    async def service(self):
        """One of its own, posted by Mallory to one host."""
        self.number += 1
        name = f"s{self.number}"
        await self.core.registry.put(self.number, name, [f"unit:{name}"], {"role": name}, WHO)
        await self.core.snapshots.post(body(self.number, 1), [self.fleet.hosts[0]], "", MALLORY)
        return self.number


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    async with (
        running_world(tmp_path_factory.mktemp("decided")) as parts,
        running_fleet(parts, 500) as fleet,
    ):
        owner = await asyncpg.connect(parts[0].dsn)
        try:
            yield World(parts[0], fleet, owner)
        finally:
            await owner.close()


# What Mallory, an approver, rewrites of her own change to approve it herself.
CHANGES = {
    "author": "author = 'token/o1'",
    "created_by": "author = null, created_by = 'op'",
    "seen": "seen = jsonb_set(seen, '{name}', '\"x\"')",
    "what it makes of the service": "selectors = '{unit:*}'",
    "why it waits": "reason = ''",
}


@pytest.mark.parametrize("what", CHANGES)
async def test_a_change_that_sql_rewrote_is_approved_by_nobody(world, what):
    service = await world.service()
    core = world.core
    asked = await core.registry.put(service, f"s{service}", ["unit:more"], {"role": "x"}, MALLORY)
    with pytest.raises(Forbidden):
        await core.registry.approve(service, asked.waits.id, MALLORY)
    await world.sql(f"update service_changes set {CHANGES[what]} where service_id = $1", service)
    for who in (MALLORY, WHO):
        for dry_run in (True, False):
            with pytest.raises(Conflict, match="not as the audit log says"):
                await core.registry.approve(service, asked.waits.id, who, dry_run)
    assert f"service/{service}/change/made" in world.doubts
    assert "not believed: " in await core.standing.said()
    await core.registry.discard(service, asked.waits.id, MALLORY)
    again = await core.registry.put(service, f"s{service}", ["unit:more"], {"role": "x"}, MALLORY)
    await core.registry.approve(service, again.waits.id, SECOND)
    assert f"service/{service}/change/made" not in world.doubts


# What Mallory rewrites of the version that she posted, to promote it herself or past a guardrail.
CONTENTS = {
    "author": "author = 'token/o1'",
    "created_by": "author = null, created_by = 'op'",
    "whose copy it is": "copy_of = 1, author = null",
    "mode": "mode = case mode when 'enforce' then 'observe' else 'enforce' end",
    "how long a lease is": "ttl_seconds = ttl_seconds + 1",
    "rules": "rules_digest = 'sha256:x'",
    "its digest": "digest = digest || 'x'",
    "its MAC": "mac = null",
}


@pytest.mark.parametrize("what", CONTENTS)
async def test_a_content_that_sql_rewrote_is_promoted_by_nobody(world, what):
    service, other = await world.service(), await world.service()
    core = world.core.changes
    with pytest.raises(Forbidden):
        await core.promote(service, 1, MALLORY)
    await world.sql(f"update contents set {CONTENTS[what]} where service_id = $1", service)
    for who in (MALLORY, WHO):
        with pytest.raises(Conflict, match="not as this control plane wrote it"):
            await core.promote(service, 1, who)
        with pytest.raises(Conflict):
            await core.try_promote(service, 1, who)
    assert any(name.startswith(f"service/{service}/version/1") for name in world.doubts)
    await core.promote(other, 1, SECOND)
    panicked = await world.core.panic.observe(PanicRequest(service_id=service), WHO)
    assert not panicked.failed
    await world.core.snapshots.post(body(service, 5), [world.fleet.hosts[0]], "", MALLORY)
    await core.promote(service, 5, SECOND)


async def test_the_row_of_another_version_or_service_is_none_of_this_one(world):
    service, other = await world.service(), await world.service()
    columns = "author, created_by, created_at, mac, payload_sha256"
    values = await world.owner.fetchrow(f"select {columns} from contents where service_id = $1", other)
    statement = f"update contents set ({columns}) = ($2, $3, $4, $5, $6) where service_id = $1"
    await world.sql(statement, service, *values)
    with pytest.raises(Conflict, match="not as this control plane wrote it"):
        await world.core.changes.promote(service, 1, SECOND)


async def test_what_a_host_had_by_sql_leads_it_nowhere(world):
    service = await world.service()
    core, host = world.core, world.fleet.hosts[1]
    await core.snapshots.post(body(service, 2), [host], "", MALLORY)
    await world.sql("insert into had values ($1, $2, '{1}') on conflict (service_id, host_id) do update "
                    "set versions = '{1,2}'", service, host)  # fmt: skip
    answer = await core.changes.rollback(service, 1, OPERATOR)
    assert host not in answer.changed_hosts
    assert f"service/{service}/had/{host}" in world.doubts


# What is rewritten of a plan between its making and its approval.
PLANS = {
    "author": "author = 'token/o1'",
    "created_by": "author = null, created_by = 'op'",
    "policy": "policy = policy || ' '",
    "what it rests on": "inventory_digest = 'sha256:x'",
    "its flows": "asked = asked || '{\"until\": null}'",
    "its body": "body = body || '{\"x\": 1}'",
}


@pytest.mark.parametrize("what", PLANS)
async def test_a_plan_that_sql_rewrote_is_approved_by_nobody(world, what):
    number = await world.fleet.planned(5432, approve=False)
    digest = (await world.plans.one(number)).digest
    await world.sql(f"update plans set {PLANS[what]} where id = $1", number)
    for who in (SECOND, WHO):
        with pytest.raises(Conflict, match="not as the audit log says"):
            await world.plans.approve(number, digest, False, who)


@pytest.mark.parametrize("what", ["approver", "policy", "asked"])
async def test_a_plan_that_sql_rewrote_after_its_approval_is_not_begun(world, what):
    number = await world.fleet.planned(5432, approve=False)
    await world.plans.approve(number, (await world.plans.one(number)).digest, False, SECOND)
    to = {"approver": "'token/o1'", "policy": "policy || ' '", "asked": "asked || '{\"x\": 1}'"}[what]
    await world.sql(f"update plans set {what} = {to} where id = $1", number)
    with pytest.raises(Conflict, match="not as the audit log says"):
        await world.fleet.rollouts.begin(number, WHO, True)


async def test_a_row_that_was_changed_since_it_was_read_is_no_tampered_one(world):
    number = await world.fleet.planned(5432, approve=False)
    store, register = world.plane.store, world.core.core.register
    row = await store.row("plan", number)
    assert await doubt_of(register, store, "plan", row) == ""
    await world.plans.approve(number, row["digest"], False, SECOND)
    assert (await doubt_of(register, store, "plan", row)).startswith("it was changed meanwhile")
    assert f"plan/{number}" not in world.doubts
    assert await doubt_of(register, store, "plan", await store.row("plan", number)) == ""


# What is rewritten of a rollout that observes, to have it enforce sooner, elsewhere, or something else.
ROLLOUTS = {
    "canary": "run = jsonb_set(run, '{canary}', '[]')",
    "waves": "run = jsonb_set(run, '{waves}', '[]')",
    "gate": "run = jsonb_set(run, '{gate,denied_budget}', '1000')",
    "when its turn began": "run = jsonb_set(run, '{since}', to_jsonb((run ->> 'since')::float8 - 100))",
    "what it brings": "parts = jsonb_set(parts, '{0,replaces}', '7')",
    "whose it is": "created_by = 'op'",
    "its plan": "plan = (select min(id) from plans)",
    "the plan's limits": "",
}


@pytest.mark.parametrize("what", ROLLOUTS)
async def test_a_rollout_that_sql_rewrote_goes_nowhere_but_back(world, what):
    fleet = world.fleet
    rollout = await fleet.begun(5432)
    try:
        if ROLLOUTS[what]:
            await world.sql(f"update rollouts set {ROLLOUTS[what]} where id = $1", rollout.id)
        else:
            limits = "body = jsonb_set(body, '{strategy,limits,most_of_fleet}', '1.0')"
            await world.sql(f"update plans set {limits} where id = $1", rollout.plan)
        for verb in ("promote", "pause") if ROLLOUTS[what] else ("promote",):
            with pytest.raises(Conflict, match="not as the audit log says"):
                await fleet.move(rollout, verb)
        await fleet.calls()
        await world.core.pilot.look()
        assert (await fleet.at(rollout.id, "observe")).rollout.run.stage == "observe"
    finally:
        await fleet.move(rollout, "abort")
    assert (await fleet.at(rollout.id, "aborted")).rollout.run.stage == "aborted"


PAYLOADS = {
    "another payload": "payload = 'x'",
    "another payload with its digest": "payload = 'x', payload_sha256 = sha256('x')",
    "a content without its MAC": "mac = null",
}


@pytest.mark.parametrize("what", PAYLOADS)
async def test_only_what_was_posted_is_signed_anew(world, what):
    service, other = await world.service(), await world.service()
    host = world.fleet.hosts[0]
    await world.sql("update contents set key_id = 'of-before' where service_id = any($1)", [service, other])
    await world.sql(f"update contents set {PAYLOADS[what]} where service_id = $1", service)
    world.core.contents.forget()
    found = {}
    for number in (service, other):
        digest = await world.owner.fetchval("select digest from contents where service_id = $1", number)
        world.core.core.digests[host] = frozenset([digest])
        request = msgspec.msgpack.encode(ContentRequest(digest, TABLES_FORMAT, 0))
        message = SimpleNamespace(subject=subjects.content(host), payload=request)
        found[number] = msgspec.msgpack.decode(await world.core.contents.answer(message), type=ContentChunk)
    world.core.core.digests.clear()
    assert found[service].error.startswith("not_signed: ")
    assert not found[service].data
    assert found[other].data
    assert any(name.startswith(f"service/{service}/version/1") for name in world.doubts)


async def test_rows_of_before_there_were_macs_get_them_once(world):
    """As after an upgrade: what agrees with the log is sealed, and nothing later."""
    good, bad = await world.service(), await world.service()
    without = "update contents set mac = null, payload_sha256 = null where service_id = any($1)"
    await world.sql(without, [good, bad])
    await world.sql("update contents set payload = 'x' where service_id = $1", bad)
    register = world.core.core.register
    await seal_rows(world.core.core)
    with pytest.raises(Conflict):
        await world.core.changes.promote(good, 1, SECOND)
    register.rights.sealed_rows = False
    await seal_rows(world.core.core)
    await world.core.changes.promote(good, 1, SECOND)
    with pytest.raises(Refused):
        await world.core.changes.promote(bad, 1, SECOND)
    assert register.rights.sealed_rows
