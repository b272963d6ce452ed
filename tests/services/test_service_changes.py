"""A service that takes part in what hosts enforce is changed by two people, or by an admin."""

import re
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest
import pytest_asyncio
from msgspec import structs
from nacl.signing import SigningKey
from tests.support.control import WHO, body, disagreements, request_of, running_plane, told

from aegisflux.domain.decided import CHANGE, made_text
from aegisflux.domain.errors import Conflict, Forbidden, NotFound
from aegisflux.domain.guardrails import OPEN
from aegisflux.domain.roles import Principal
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.service_changes import MOST_HOSTS
from aegisflux.services.orchestrator.state import HostsMoved

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
OLGA = Who(Principal("olga", "operator"), "test", "req-1")
ANNA, ANTON = (Who(Principal(name, "approver"), "test", "req-2") for name in ("anna", "anton"))
NUMBERS = iter(range(301, 600))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("changes")) as plane:
        for host in ("c1", "c2"):
            await plane.agent(host, {"at": host})
        await plane.orchestrator.registry.put(9000, "highest", [], {}, WHO)  # free numbers are above it
        yield plane


@pytest_asyncio.fixture(loop_scope="module")
async def number(plane):
    """A service of host c1 whose policy is in force."""
    number = next(NUMBERS)
    registry = plane.orchestrator.registry
    await registry.put(number, f"s{number}", [f"unit:s{number}"], {"at": "c1"}, OLGA)
    await plane.orchestrator.snapshots.post(body(number, 1), None, "", OLGA)
    return number


async def put(plane, number, who, selectors=None, labels=None, name=None):
    wanted = [f"unit:s{number}"] if selectors is None else selectors
    registry = plane.orchestrator.registry
    return await registry.put(
        number, name or f"s{number}", wanted, {"at": "c1"} if labels is None else labels, who
    )


async def lines(plane, number):
    """The audit lines of a service, oldest first."""
    rows = await plane.store.rows("audit_newest", 2**62, 1000)
    return [(r["actor"], r["action"]) for r in reversed(rows) if r["object"] == f"service/{number}"]


async def on(plane, number):
    return {row["host_id"] for row in await plane.store.rows("assignments", number)}


WIDER = {
    "other labels": {"labels": {"at": "c2"}},
    "no labels": {"labels": {}},
    "more selectors": {"selectors": ["unit:x"]},
    "no selectors": {"selectors": []},
    "another name": {"name": "renamed"},
}


@pytest.mark.parametrize("kind", WIDER)
@pytest.mark.parametrize("who", [OLGA, ANNA], ids=["operator", "approver"])
async def test_nobody_below_an_admin_changes_it_alone(plane, number, kind, who):
    before = await plane.orchestrator.registry.one(number)
    asked = await put(plane, number, who, **WIDER[kind])
    assert (asked.name, asked.selectors, asked.host_labels) == (
        before.name,
        before.selectors,
        before.host_labels,
    )
    assert asked.waits is not None
    assert asked.warning == (
        f"not changed: it takes part in what hosts enforce; change {asked.waits.id} waits for an approver"
    )
    now = await plane.orchestrator.registry.one(number)
    assert (now.definition, now.waits) == (before.definition, asked.waits)
    assert await on(plane, number) == {"c1"}
    assert asked.waits in await plane.orchestrator.registry.changes(100)
    await plane.orchestrator.registry.discard(number, asked.waits.id, OLGA)
    assert [action for _, action in await lines(plane, number)][-2:] == ["service.ask", "service.discard"]


@pytest.mark.parametrize("kind", WIDER)
@pytest.mark.parametrize("who", [OLGA, WHO], ids=["operator", "admin"])
async def test_a_dry_run_says_what_changes_and_whether_it_waits(plane, number, kind, who):
    registry = plane.orchestrator.registry
    before = await registry.one(number)
    given = {"selectors": before.selectors, "labels": before.host_labels, "name": before.name} | WIDER[kind]
    args = number, given["name"], list(given["selectors"]), given["labels"], who
    tried = (await registry.put(*args, dry_run=True)).tried
    assert await registry.one(number) == before
    made = await registry.put(*args)
    assert tried.id == 0
    assert bool(tried.reason) == (made.waits is not None) == (who is OLGA)
    if who is OLGA:
        assert replace_id(tried, made.waits.id) == made.waits
    assert tried.differs
    assert (tried.begin.count, tried.cease.count) == {
        "other labels": (1, 1), "no labels": (0, 1)
    }.get(kind, (0, 0))  # fmt: skip


def replace_id(change, number):
    return structs.replace(change, id=number)


async def test_a_dry_run_is_refused_where_the_change_would_be(plane, number):
    registry = plane.orchestrator.registry
    with pytest.raises(Conflict, match="belongs to service"):
        await registry.put(None, f"s{number}", [], {}, OLGA, dry_run=True)
    with pytest.raises(Conflict, match="withdraw it first"):
        await registry.delete(number, WHO, dry_run=True)
    with pytest.raises(NotFound, match="no change waits"):
        await registry.discard(number, 7, OLGA, dry_run=True)


async def test_another_one_approves_what_was_asked_for(plane, number):
    first = await put(plane, number, ANNA, labels={"at": "c2"})
    asked = await put(plane, number, ANNA, labels={})
    approve = plane.orchestrator.registry.approve
    with pytest.raises(Conflict, match=f"change {asked.waits.id} waits, not change {first.waits.id}"):
        await approve(number, first.waits.id, ANTON)
    with pytest.raises(Forbidden, match="was asked for by anna; another approver approves it"):
        await approve(number, asked.waits.id, ANNA)
    tried = await approve(number, asked.waits.id, ANTON, dry_run=True)
    assert (tried.host_labels, tried.waits) == ({"at": "c1"}, asked.waits)
    done = await approve(number, asked.waits.id, ANTON)
    assert (done.host_labels, done.waits) == ({}, None)
    with pytest.raises(NotFound, match="no change waits"):
        await approve(number, asked.waits.id, ANTON)
    said = await lines(plane, number)
    assert said[-3:] == [("anna", "service.ask"), ("anna", "service.ask"), ("anton", "service.put")]


async def test_hosts_on_which_nothing_is_enforced_begin_nothing(plane, number):
    core = plane.orchestrator.core
    free = core.options
    asked = await put(plane, number, OLGA, labels={"at": "c2"})
    core.options = replace(free, limits=structs.replace(OPEN, never_block={"at": "c2"}))
    try:
        with pytest.raises(Conflict, match="never_block: c2"):
            await plane.orchestrator.registry.approve(number, asked.waits.id, ANNA)
        with pytest.raises(Conflict, match="never_block: c2"):
            await put(plane, number, WHO, labels={"at": "c2"})
        core.options = replace(free, limits=structs.replace(OPEN, never_block={"at": "c1"}))
        same = await put(plane, number, WHO, selectors=[f"unit:s{number}", "unit:beside"])
        assert same.selectors == (f"unit:s{number}", "unit:beside"), (
            "a host that ran it before begins nothing"
        )
    finally:
        core.options = free
    assert (await plane.orchestrator.registry.one(number)).host_labels == {"at": "c1"}


async def test_a_new_service_takes_no_cgroups_from_one_in_force(plane, number):
    thief = next(NUMBERS)
    asked = await put(plane, thief, OLGA, [f"cgroup:system.slice/s{number}.service"], {})
    assert asked.selectors == ()
    assert asked.warning.startswith(f"not changed: its selectors may take cgroups from s{number}; change")
    done = await plane.orchestrator.registry.approve(thief, asked.waits.id, ANNA)
    assert done.selectors == (f"cgroup:system.slice/s{number}.service",)
    free = await put(plane, next(NUMBERS), OLGA, [f"cgroup:system.slice/s{number}.service"], {"at": "c3"})
    assert free.waits is None


async def test_what_changes_nothing_or_takes_part_in_nothing_waits_for_nobody(plane, number):
    assert (await put(plane, number, OLGA)).waits is None
    idle = next(NUMBERS)
    await put(plane, idle, OLGA)
    assert (await put(plane, idle, OLGA, ["unit:elsewhere"], {"at": "c2"})).selectors == ("unit:elsewhere",)
    changed = await put(plane, number, WHO, labels={})
    assert (changed.host_labels, changed.waits) == ({}, None)


@asynccontextmanager
async def policy_of(plane, ends, stage="promoted", approved_by=None):
    """A plan whose policy names these ends, and where a stage is said its rollout."""
    text = f"rules:\n- {{from: {ends}, to: fleet, ports: [any]}}\n"
    connection = await asyncpg.connect(plane.dsn)
    try:
        plan = await connection.fetchval(
            "insert into plans (created_at, created_by, policy, asked, inventory_digest, flows_digest, "
            "digest, body, approved_by) values (0, 'x', $1, '{}', '', '', '', '{}', $2) returning id",
            text,
            approved_by,
        )
        if stage:
            await connection.execute(
                "insert into rollouts (plan, created_at, created_by, stage, run, parts) "
                "values ($1, 0, 'x', $2, '{}', $3)",
                plan,
                stage,
                '[{"hosts": ["part-of-it"]}]',
            )
        yield plan
    finally:
        await connection.execute("delete from rollouts where plan = $1", plan)
        await connection.execute("delete from plans where id = $1", plan)
        await connection.close()


@pytest.mark.parametrize(("stage", "held"), [("promoted", True), ("canary", True), ("rolled_back", False)])
@pytest.mark.parametrize("named", ["[{name}]", "{name}x, x{name}, x.{name}, {name}-x"])
async def test_a_service_that_a_policy_in_force_names_waits_too(plane, stage, held, named):
    idle = next(NUMBERS)
    await put(plane, idle, OLGA, name=f"p{idle}.web")
    async with policy_of(plane, named.format(name=f"p{idle}.web"), stage):
        asked = await put(plane, idle, OLGA, labels={"at": "c2"}, name=f"p{idle}.web")
        assert (asked.waits is not None) is (held and "x" not in named)


async def fresh(plane, named):
    """A new service under the name."""
    return await plane.orchestrator.registry.put(None, named, ["unit:evil"], {"at": "c2"}, OLGA)


async def numbered(plane, named):
    """A new service under the name and a number of choice."""
    return await put(plane, next(NUMBERS), OLGA, ["unit:evil"], {"at": "c2"}, named)


async def renamed(plane, named):
    """A service of before, renamed to it."""
    number = next(NUMBERS)
    await put(plane, number, OLGA, ["unit:evil"], {"at": "c2"})
    return await put(plane, number, OLGA, ["unit:evil"], {"at": "c2"}, named)


async def swapped(plane, named):
    """Two services of before, of which the one that is named has to give the name up first."""
    number = next(NUMBERS)
    await plane.orchestrator.registry.put(number, named, ["unit:s"], {"at": "c1"}, WHO)
    moved = await put(plane, number, OLGA, ["unit:s"], {"at": "c1"}, f"{named}-old")
    done = await plane.orchestrator.registry.approve(number, moved.waits.id, ANNA)
    assert done.name == f"{named}-old"
    return await fresh(plane, named)


async def remade(plane, named):
    """Deleted by an admin, since an approver may not, and made again by an operator."""
    number = next(NUMBERS)
    await plane.orchestrator.registry.put(number, named, ["unit:s"], {"at": "c1"}, WHO)
    with pytest.raises(Conflict, match=f"service {number}: not deleted: the name {named} stands in the"):
        await plane.orchestrator.registry.delete(number, ANNA)
    await plane.orchestrator.registry.delete(number, WHO)
    return await put(plane, number, OLGA, ["unit:evil"], {"at": "c2"}, named)


MEANT = {
    "in force": {"stage": "promoted"},
    "on its way": {"stage": "canary"},
    "an approved plan": {"stage": None, "approved_by": "anna"},
}
NOT_MEANT = {
    "taken back": {"stage": "rolled_back", "approved_by": "anna"},
    "a plan that nobody approved": {"stage": None},
}
WAYS = (fresh, numbered, renamed, swapped, remade)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("meant", MEANT)
async def test_a_name_that_a_policy_means_is_taken_by_two_people(plane, way, meant):
    named = f"n{next(NUMBERS)}.db"
    async with policy_of(plane, named, **MEANT[meant]):
        asked = await way(plane, named)
        assert asked.waits is not None
        assert f"not changed: the name {named} stands in the policy of" in asked.warning
        assert named not in {one.name for one in await plane.orchestrator.registry.all()}
        if way is not renamed:
            with pytest.raises(Conflict, match=f"the name {named}: change {asked.waits.id} of service"):
                await fresh(plane, named)
        done = await plane.orchestrator.registry.approve(asked.id, asked.waits.id, ANNA)
        assert (done.name, done.host_labels) == (named, {"at": "c2"})


@pytest.mark.parametrize("way", [fresh, numbered, renamed], ids=lambda way: way.__name__)
@pytest.mark.parametrize("meant", NOT_MEANT)
async def test_a_name_that_no_policy_means_any_more_is_free(plane, way, meant):
    named = f"n{next(NUMBERS)}.db"
    async with policy_of(plane, named, **NOT_MEANT[meant]):
        assert (await way(plane, named)).waits is None


async def test_a_new_service_that_never_gets_its_name_goes_with_its_change(plane):
    named = f"n{next(NUMBERS)}.db"
    async with policy_of(plane, named):
        asked = await fresh(plane, named)
        await plane.orchestrator.registry.discard(asked.id, asked.waits.id, OLGA)
        with pytest.raises(NotFound):
            await plane.orchestrator.registry.one(asked.id)
        given = await plane.orchestrator.registry.put(None, named, [], {"at": "c2"}, WHO)
        assert (given.name, given.waits) == (named, None), "an admin's waits for nobody"
    assert await disagreements(plane) == []


@pytest.mark.parametrize("meant", MEANT)
@pytest.mark.parametrize("ends", ["host:{name}", "[web, {name}]"])
async def test_a_host_that_a_policy_means_is_named_by_an_admin(plane, meant, ends):
    hosts = plane.orchestrator.hosts
    name = f"h{next(NUMBERS)}"
    async with policy_of(plane, ends.format(name=name), **MEANT[meant]):
        await refused_without_its_name(plane, name)
        token = await hosts.token({"at": "c2"}, name, 600, WHO)
        assert (await hosts.enroll(request_of(token.token, name, SigningKey.generate()), WHO)).host_id == name
        await hosts.release(name, WHO)
        await refused_without_its_name(plane, name)


async def test_a_host_that_a_rollout_is_to_reach_is_named_by_an_admin(plane):
    async with policy_of(plane, "web", "waves"):
        await refused_without_its_name(plane, "part-of-it")
    async with policy_of(plane, "web", "promoted"):
        assert (await plane.enroll("part-of-it")).host == "part-of-it"


async def refused_without_its_name(plane, name):
    with pytest.raises(Forbidden, match=f"aegisflux hosts token --host-id {name}"):
        await plane.enroll(name, {"at": "c2"})


DRIFTS = {
    "labels": ({"labels": {"at": "c1", "tier": "db"}}, "host label tier=db is added"),
    "other labels": ({"labels": {"at": "c2"}}, "host label at=c1 becomes at=c2"),
    "a selector": ({"selectors": []}, "selector unit:s[0-9]+ is removed"),
    "a name": ({"name": "renamed{number}"}, "name s[0-9]+ becomes renamed[0-9]+"),
}


@pytest.mark.parametrize("drift", DRIFTS)
async def test_an_approval_holds_for_what_the_service_was(plane, number, drift):
    """Approved later, the change would take back what somebody else changed meanwhile."""
    more, words = DRIFTS[drift]
    registry = plane.orchestrator.registry
    asked = await put(plane, number, OLGA, ["unit:more"], {"at": "c1"})
    more = {name: value.format(number=number) if name == "name" else value for name, value in more.items()}
    changed = await put(plane, number, WHO, **more)
    held = (await registry.one(number)).waits
    assert (held.id, changed.waits) == (asked.waits.id, held)
    assert re.fullmatch(words, "; ".join(held.stale))
    for dry_run in (True, False):
        with pytest.raises(Conflict, match=f"{words}; ask for it again .*, or aegisflux service discard"):
            await registry.approve(number, held.id, ANNA, dry_run)
    assert (await registry.one(number)).definition == changed.definition
    again = await put(plane, number, OLGA, ["unit:more"], {"at": "c1"})
    assert again.waits.stale == ()
    assert (await registry.approve(number, again.waits.id, ANNA)).selectors == ("unit:more",)


async def test_a_change_that_was_asked_for_by_an_older_version_is_asked_for_again(plane, number):
    asked = await put(plane, number, OLGA, labels={})
    connection = await asyncpg.connect(plane.dsn)
    try:
        await connection.execute("update service_changes set seen = null where service_id = $1", number)
        row = await plane.store.row("held_change", number)
        await told(plane, f"service/{number}/change/made", made_text(row, CHANGE))
    finally:
        await connection.close()
    with pytest.raises(Conflict, match="it was asked for when changes did not keep what they were made of"):
        await plane.orchestrator.registry.approve(number, asked.waits.id, WHO)


async def test_who_approves_sees_what_it_changes(plane, number):
    registry = plane.orchestrator.registry
    before = (await registry.one(number)).definition
    asked = await put(plane, number, OLGA, [f"unit:s{number}", "cgroup:extra"], {"at": "c2"})
    seen = {
        "the answer": asked.waits,
        "the changes": next(one for one in await registry.changes(100) if one.service_id == number),
        "the service": (await registry.one(number)).waits,
        "the dry run": (await registry.approve(number, asked.waits.id, ANNA, dry_run=True)).waits,
    }
    for held in seen.values():
        assert held.before == before
        assert held.differs == ("selector cgroup:extra is added", "host label at=c1 becomes at=c2")
        assert held.reason == "it takes part in what hosts enforce"
        assert (held.begin, held.cease) == (HostsMoved(1, ("c2",)), HostsMoved(1, ("c1",)))
    listed = next(one for one in await registry.all() if one.id == number)
    assert (listed.waits.id, listed.waits.differs) == (asked.waits.id, asked.waits.differs)


async def test_hosts_that_begin_are_counted_and_the_first_are_named(plane, number):
    for n in range(MOST_HOSTS + 3):
        await plane.enroll(f"m{number}-{n:02}", {"many": f"m{number}"})
    asked = await put(plane, number, OLGA, labels={"many": f"m{number}"})
    assert (asked.waits.begin.count, len(asked.waits.begin.hosts)) == (MOST_HOSTS + 3, MOST_HOSTS)
    assert asked.waits.begin.hosts[0] == f"m{number}-00"
    assert asked.waits.cease == HostsMoved(1, ("c1",))
