"""Rollouts in stages, carried out on a real NATS and a real PostgreSQL, with scripted agents."""

import asyncio
import time
from dataclasses import replace

import msgspec
import pytest
import pytest_asyncio
from msgspec import structs
from tests.support.control import WHO, body, disagreements, told
from tests.support.engines import eventually
from tests.support.rollouts import APPROVER, GATE, Tables, modes, running_fleet, running_world

from aegisflux.domain import renewal
from aegisflux.domain.decided import plan_texts
from aegisflux.domain.errors import Conflict, Forbidden, Invalid, NotFound
from aegisflux.domain.guardrails import OPEN, Limits
from aegisflux.domain.manifest import ServiceReport
from aegisflux.domain.policy_compile import ServicePlace
from aegisflux.domain.roles import Principal
from aegisflux.runtime import places
from aegisflux.services.orchestrator.app import Orchestrator
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.panic import PanicRequest
from aegisflux.services.orchestrator.registry import Health
from aegisflux.services.orchestrator.rollouts import Move

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    async with running_world(tmp_path_factory.mktemp("rollouts")) as world:
        yield world


NUMBERS = iter(range(201, 1000))


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(world):
    async with running_fleet(world, next(NUMBERS)) as fleet:
        yield fleet


async def test_a_rollout_goes_through_its_stages_by_evidence_alone(fleet):
    rollout = await fleet.begun(5432)
    await eventually(lambda: all(agent.beside for agent in fleet.agents.values()))
    assert fleet.versions() == [None] * 4
    await fleet.goes_on(rollout.id, "canary")
    await eventually(lambda: fleet.versions() == [1, None, None, None])
    await fleet.goes_on(rollout.id, "waves", fleet.hosts[0])
    await fleet.goes_on(rollout.id, "promoted")
    await eventually(lambda: fleet.versions() == [1] * 4)
    await eventually(lambda: not any(agent.beside for agent in fleet.agents.values()))
    told = await fleet.at(rollout.id, "promoted")
    stages = [(step.stage, step.turn) for step in told.steps]
    assert stages == [("observe", 0), ("canary", 0), ("waves", 0), ("waves", 1), ("promoted", 0)]
    assert told.rollout.verbs == ("roll_back",)
    status = await fleet.plane.orchestrator.views.status(fleet.service)
    assert status.stable == 1
    assert all(host.renewed for host in status.hosts)


async def test_a_legitimate_flow_that_is_denied_takes_the_canary_back(fleet):
    await fleet.calls(port=6379, seconds_ago=3600)
    await fleet.promoted(5432, 6379)
    rollout = await fleet.begun(5432)
    await fleet.goes_on(rollout.id, "canary")
    await eventually(lambda: fleet.versions() == [2, 1, 1, 1])
    await fleet.denied(fleet.hosts[0], rollout.parts[0].digest, 6379)
    told = await fleet.at(rollout.id, "rolled_back")
    assert told.rollout.run.reason == "1 legitimate flows denied: expected at most 0"
    assert told.steps[-1].did == (f"s{fleet.service}: version 1 again, as version 3",)
    await eventually(lambda: fleet.versions() == [3, 1, 1, 1])
    (way,) = told.rollout.looked.ways
    assert (way.client, way.server, way.what) == (f"s{fleet.service}", "10.0.1.1", "tcp/6379")
    again = await fleet.plane.orchestrator.views.one(fleet.service, 3)
    first = await fleet.plane.orchestrator.views.one(fleet.service, 1)
    assert msgspec.json.decode(again.snapshot)["edges"] == msgspec.json.decode(first.snapshot)["edges"]


async def test_what_would_be_denied_ends_it_before_anything_is_enforced(fleet):
    await fleet.calls(port=6379, seconds_ago=3600)
    rollout = await fleet.begun(5432)
    await fleet.denied(fleet.hosts[2], rollout.parts[0].digest, 6379, candidate=True)
    await fleet.at(rollout.id, "aborted")
    await eventually(lambda: not any(agent.beside for agent in fleet.agents.values()))
    assert fleet.versions() == [None] * 4


KINDS = {
    "of another host of the service": ({}, {}, True),
    "to another address": ({}, {"peer": "10.0.1.9"}, False),
    "that was blocked before": ({"verdict": "blocked"}, {}, False),
    "that nobody answered": ({"packets_in": 0}, {}, False),
    "from another caller outside": (
        {"direction": "ingress", "peer": "10.8.0.1"},
        {"ingress": True, "peer": "10.8.0.2"},
        True,
    ),
    "to where a caller came from": ({"direction": "ingress"}, {}, False),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_which_denied_flow_was_legitimate_before(fleet, kind):
    before, now, legitimate = KINDS[kind]
    await fleet.calls(fleet.hosts[1], port=6379, seconds_ago=3600, **before)
    rollout = await fleet.begun(5432)
    await fleet.denied(fleet.hosts[0], rollout.parts[0].digest, 6379, candidate=True, **now)

    async def seen():
        await fleet.plane.orchestrator.pilot.look()
        return (await fleet.rollouts.one(rollout.id)).rollout.looked.ways

    (way,) = await eventually(seen)
    assert way.legitimate == legitimate


async def test_what_is_new_and_what_is_meant_to_be_cut_fail_nothing(fleet):
    await fleet.calls(port=23, seconds_ago=3600)
    rollout = await fleet.begun(5432, accept=True)
    await fleet.denied(fleet.hosts[0], rollout.parts[0].digest, 23, candidate=True, count=2)
    await fleet.denied(fleet.hosts[0], rollout.parts[0].digest, 31337, candidate=True)
    await fleet.goes_on(rollout.id, "canary")
    steps = (await fleet.rollouts.one(rollout.id)).steps
    assert [step.stage for step in steps] == ["observe", "canary"]


@pytest.mark.parametrize("trouble", ["nack", "silence", "lie", "panic"])
async def test_a_canary_host_in_trouble_gets_back_what_it_had(fleet, trouble):
    gate = msgspec.structs.replace(GATE, silent_seconds=1.5, least_flows=40)
    await fleet.promoted(5432)
    rollout = await fleet.begun(5432, 443, gate=gate)
    canary = fleet.agents[fleet.hosts[0]]
    if trouble == "nack":
        canary.nack = "map_full"
    if trouble == "lie":
        canary.tables = {}
    await fleet.goes_on(rollout.id, "canary")
    if trouble == "silence":
        fleet.silence(canary.host)
    if trouble == "panic":
        await eventually(lambda: fleet.versions()[0] == 2)
        fleet.beating.pop(canary.host).cancel()
        await canary.beat(state="panicked")
    told = await fleet.at(rollout.id, "rolled_back")
    words = {
        "nack": "w1-{0} refused: s{0} version 2: map_full: scripted",
        "silence": "w1-{0} is silent for",
        "lie": "w1-{0} says what cannot be: s{0} version",
        "panic": "w1-{0} refused: s{0}: the host is in panic",
    }
    assert told.rollout.run.reason.startswith(words[trouble].format(fleet.service))
    maps = await fleet.plane.orchestrator.views.one(fleet.service)
    assert (maps.latest, maps.candidate.copy_of, maps.candidate.hosts) == (3, 1, (canary.host,))


async def test_a_service_that_is_said_to_be_sick_gets_back_what_it_had(fleet):
    registry = fleet.plane.orchestrator.registry
    await registry.health(fleet.service, Health(healthy=False, detail="of last week"), WHO)
    rollout = await fleet.begun(5432)
    await fleet.goes_on(rollout.id, "canary")
    other = Health(healthy=False, host_id=fleet.hosts[3], detail="not a canary")
    await registry.health(fleet.service, other, WHO)
    await fleet.plane.orchestrator.pilot.look()
    assert (await fleet.rollouts.one(rollout.id)).rollout.run.stage == "canary"
    mine = Health(healthy=False, host_id=fleet.hosts[0], detail="p99 is 3 s")
    await registry.health(fleet.service, mine, WHO)
    told = await fleet.at(rollout.id, "rolled_back")
    said = f"s{fleet.service} on {fleet.hosts[0]} is sick: p99 is 3 s (said by tester)"
    assert told.rollout.run.reason == said
    for asked in ((9999, Health(healthy=True)), (fleet.service, Health(healthy=True, host_id="nobody"))):
        with pytest.raises(NotFound):
            await registry.health(*asked, WHO)


async def test_it_goes_on_after_a_restart_in_every_stage(fleet):
    rollout = await fleet.begun(5432)
    for stage, turn in (("canary", 0), ("waves", 0), ("waves", 1), ("promoted", 0)):
        await restarted(fleet.plane)
        await fleet.goes_on(rollout.id, stage, turn=turn)
    await restarted(fleet.plane)
    await eventually(lambda: fleet.versions() == [1] * 4)
    later = await fleet.promoted(5432, 443)
    assert later.rollout.run.stage == "promoted"
    told = await fleet.at(rollout.id, "superseded")
    assert told.rollout.run.reason == f"superseded by rollout {later.rollout.id}"


async def restarted(plane):
    """Another orchestrator on the same store."""
    await plane.orchestrator.close()
    core = plane.orchestrator.core
    core.workshop = type(core.workshop)(1)
    plane.orchestrator = Orchestrator(core)
    await plane.orchestrator.start()
    plane.stack.push_async_callback(plane.orchestrator.close)


async def test_of_two_operators_who_promote_at_once_one_wins(fleet):
    rollout = await fleet.begun(5432)
    both = await asyncio.gather(
        fleet.move(rollout, "promote"), fleet.move(rollout, "promote", APPROVER), return_exceptions=True
    )
    (lost,) = [one for one in both if isinstance(one, Conflict)]
    assert "it is at canary, turn 0, by now (promote by" in str(lost)
    assert (await fleet.rollouts.one(rollout.id)).rollout.run.stage == "canary"


async def test_pause_holds_what_passes_and_abort_takes_back(fleet):
    rollout = await fleet.begun(5432)
    paused = (await fleet.move(rollout, "pause", why="lunch")).rollout
    assert (paused.run.paused, paused.run.reason) == (True, "pause by tester: lunch")

    async def passed():
        await fleet.calls()
        return (await fleet.rollouts.one(rollout.id)).rollout.run.reason == "passed; paused"

    await eventually(passed)
    assert (await fleet.rollouts.one(rollout.id)).rollout.run.stage == "observe"
    await fleet.move(paused, "resume")
    await fleet.goes_on(rollout.id, "canary")
    await eventually(lambda: fleet.versions()[0] == 1)
    canary = (await fleet.at(rollout.id, "canary")).rollout
    tried = await fleet.rollouts.move(rollout.id, "abort", Move(stage="canary"), WHO, dry_run=True)
    assert tried.did == (f"TakeBack: {fleet.hosts[0]}", "Withdraw: all hosts")
    await fleet.move(canary, "abort")
    await eventually(lambda: fleet.versions() == [None] * 4)
    with pytest.raises(Conflict, match="what can be done: nothing"):
        await fleet.move(canary, "promote", stage="rolled_back", turn=0)


async def test_what_stands_in_the_way_of_a_beginning_is_said_at_once(fleet):
    await fleet.calls(port=6379, seconds_ago=3600)
    plan = await fleet.planned(5432, approve=False)
    with pytest.raises(Conflict, match="another person has to approve it: it would have blocked 4 recorded"):
        await fleet.rollouts.begin(plan, WHO)
    held = await fleet.planned(5432, limits=Limits(ttl_seconds=60))
    with pytest.raises(Conflict, match="ttl: the lease: expected at most 60 s, got 600 s"):
        await fleet.rollouts.begin(held, WHO)
    tried = await fleet.rollouts.begin(await fleet.planned(5432), WHO, dry_run=True)
    assert tried.did == (f"Offer: {', '.join(fleet.hosts)}",)
    stale = await fleet.planned(5432)
    rollout = await fleet.begun(5432)
    with pytest.raises(Conflict, match=f"rollout {rollout.id} is carrying s{fleet.service}"):
        await fleet.rollouts.begin(stale, WHO)
    with pytest.raises(Conflict, match=f"aegisflux rollout abort {rollout.id}"):
        await fleet.plane.orchestrator.snapshots.post(body(fleet.service, 9), None, "", WHO)


async def test_a_plan_whose_fleet_changed_does_not_begin(fleet):
    plan = await fleet.planned(5432)
    await fleet.plane.orchestrator.hosts.relabel(fleet.hosts[3], {"role": "other"}, WHO)
    with pytest.raises(Conflict, match=f"s{fleet.service}: its hosts changed: {fleet.hosts[3]}: plan again"):
        await fleet.rollouts.begin(plan, WHO)


async def test_a_plan_whose_service_is_another_by_now_does_not_begin(fleet):
    """The approver said yes to the cgroups that the service had then."""
    plan, registry = await fleet.planned(5432), fleet.plane.orchestrator.registry
    was = await registry.one(fleet.service)
    await registry.put(was.id, was.name, [*was.selectors, "unit:another"], was.host_labels, WHO)
    with pytest.raises(Conflict, match=f"{was.name}: when planned it was {was.name} .* now it is .*another"):
        await fleet.rollouts.begin(plan, WHO)
    await registry.put(was.id, was.name, was.selectors, was.host_labels, WHO)
    assert (await fleet.rollouts.begin(plan, WHO, dry_run=True)).dry_run


async def test_what_somebody_does_by_hand_meanwhile_ends_it_and_stays(fleet):
    await fleet.promoted(5432)
    rollout = await fleet.begun(5432, 443)
    await fleet.goes_on(rollout.id, "canary")
    await fleet.plane.orchestrator.changes.withdraw(fleet.service, [fleet.hosts[0]], WHO)
    told = await fleet.at(rollout.id, "rolled_back")
    assert told.rollout.run.reason == (
        f"s{fleet.service} was changed meanwhile: {fleet.hosts[0]} was given nothing instead of version 2"
    )
    await eventually(lambda: fleet.versions() == [None, 1, 1, 1])


async def test_leases_are_renewed_while_it_goes_on_and_ended_ones_have_ended(fleet):
    rollout = await fleet.begun(5432)
    await fleet.goes_on(rollout.id, "canary")
    store, soon = fleet.plane.store, int(time.time()) + 60
    await store.run("renew_trial", fleet.service, 1, [fleet.hosts[0]], soon)

    async def renewed():
        (row,) = await store.rows("assigned_of", [fleet.service], [fleet.hosts[0]])
        return row["lease_until"] > soon

    await eventually(renewed)
    await store.run("renew_trial", fleet.service, 1, [fleet.hosts[0]], int(time.time()) - 1)
    told = await fleet.at(rollout.id, "expired")
    assert told.rollout.run.reason == "the leases ended without a renewal"
    await eventually(lambda: fleet.versions() == [None] * 4)


async def test_a_promoted_rollout_can_still_be_rolled_back(fleet):
    first = await fleet.promoted(5432)
    told = await fleet.promoted(5432, 443)
    await eventually(lambda: fleet.versions() == [2] * 4)
    back = await fleet.move(told.rollout, "roll_back", why="wrong")
    assert back.did == (f"s{fleet.service}: version 1 again, as version 3",)
    await eventually(lambda: fleet.versions() == [3] * 4)
    again = (await fleet.at(first.rollout.id, "promoted")).rollout
    assert (again.parts[0].version, again.verbs) == (3, ("roll_back",))
    await fleet.plane.orchestrator.pilot.look()
    assert (await fleet.rollouts.one(first.rollout.id)).rollout.run.stage == "promoted"


async def test_no_plan_and_nobody_loosens_the_limits_of_the_fleet(fleet):
    core = fleet.plane.orchestrator.core
    marked = fleet.hosts[1]
    await fleet.plane.orchestrator.hosts.relabel(marked, {"role": f"s{fleet.service}", "spared": "yes"}, WHO)
    limits = msgspec.structs.replace(OPEN, never_block={"spared": "yes"}, ttl_seconds=604_800)
    free, core.options = core.options, replace(core.options, limits=limits)
    try:
        with pytest.raises(Conflict, match=f"settings, limits.: never_block: {marked}: expected no host"):
            await fleet.plane.orchestrator.snapshots.post(body(fleet.service, 1), None, "", WHO)
        observing = body(fleet.service, 1, mode="observe")
        await fleet.plane.orchestrator.snapshots.post(observing, None, "", WHO)
        with pytest.raises(Conflict, match="ttl: the lease: expected at most 604800 s, got 604801 s"):
            long = body(fleet.service, 2, mode="observe", ttl_seconds=604_801)
            await fleet.plane.orchestrator.snapshots.post(long, [fleet.hosts[0]], "", WHO)
        rollout = await fleet.begun(5432)
        await fleet.goes_on(rollout.id, "canary")

        async def waits():
            await fleet.calls()
            return "waits: never_block" in (await fleet.rollouts.one(rollout.id)).rollout.run.reason

        await eventually(waits, 15)
        run = (await fleet.rollouts.one(rollout.id)).rollout
        with pytest.raises(Conflict, match="never_block"):
            await fleet.move(run, "promote")
        assert fleet.versions()[1] == 1
    finally:
        core.options = free


async def test_a_policy_in_force_stays_true_as_hosts_come_and_go(fleet, monkeypatch):
    """Who runs the service may call it: one more host, and all others learn of it, by a renewal."""
    orchestrator = fleet.plane.orchestrator
    rule = f"{{from: s{fleet.service}, to: s{fleet.service}, ports: [tcp/7000]}}"
    told = await fleet.promoted(rules=f"\n  - {rule}")
    number, labels = told.rollout.id, {"role": f"s{fleet.service}"}
    await eventually(lambda: fleet.versions() == [1] * 4)
    fresh = await fleet.plane.agent(
        f"w5-{fleet.service}", labels, tables=Tables(fleet), addresses=("10.9.9.9",)
    )
    fleet.agents[fresh.host] = fresh
    fleet.beating[fresh.host] = asyncio.create_task(fleet._beats(fresh))

    async def says(words):
        await orchestrator.renewals.look()
        return words in (await fleet.rollouts.one(number)).rollout.run.reason

    await eventually(lambda: says("expected it quiet for 15 s"))
    assert fleet.versions() == [1] * 4
    monkeypatch.setattr(renewal, "SETTLED_SECONDS", 0.0)
    await eventually(lambda: says("renewed: the fleet has changed"))
    await eventually(lambda: fleet.versions() == [2] * 4)
    after = await fleet.rollouts.one(number)
    assert "+ from 10.9.9.9/32 tcp/7000" in after.steps[-1].did[0]
    assert (after.rollout.parts[0].version, fresh.host in after.rollout.parts[0].hosts) == (2, True)
    fleet.beating.pop(fresh.host).cancel()
    await orchestrator.hosts.release(fresh.host, WHO)
    del fleet.agents[fresh.host]
    await eventually(lambda: says("renewed: the fleet has changed"))
    await eventually(lambda: fleet.versions() == [3] * 4)
    first = await orchestrator.views.one(fleet.service, 1)
    last = await orchestrator.views.one(fleet.service, 3)
    assert msgspec.json.decode(last.snapshot)["edges"] == msgspec.json.decode(first.snapshot)["edges"]
    assert (await fleet.rollouts.one(number)).rollout.run.stage == "promoted"


async def test_a_stored_policy_is_renewed_although_a_new_one_like_it_is_refused(fleet, monkeypatch):
    orchestrator, service = fleet.plane.orchestrator, f"s{fleet.service}"
    done = await fleet.promoted(rules=f"\n  - {{from: {service}, to: {service}, ports: [tcp/7000]}}")
    plan = done.rollout.plan
    odd = f"rules:\n  - {{from: 'label:env!=prod', to: {service}, ports: [tcp/07001]}}\n"
    text = (await fleet.plane.store.row("plan", plan))["policy"]
    change = "update plans set policy = $1 where id = $2"
    await fleet.plane.store._runner.execute(change, text.replace("rules:\n", odd), plan)
    for name, said in plan_texts(await fleet.plane.store.row("plan", plan)).items():
        await told(fleet.plane, name, said)
    assert (await fleet.segmenter.plans.one(plan)).id == plan
    fresh = await fleet.plane.agent(
        f"w6-{fleet.service}", {"role": service}, tables=Tables(fleet), addresses=("10.9.9.8",)
    )
    fleet.agents[fresh.host] = fresh
    fleet.beating[fresh.host] = asyncio.create_task(fleet._beats(fresh))
    monkeypatch.setattr(renewal, "SETTLED_SECONDS", 0.0)

    async def renewed():
        await orchestrator.renewals.look()
        return (await fleet.rollouts.one(done.rollout.id)).rollout.run.reason == renewal.RENEWED

    await eventually(renewed)


async def test_an_upgrade_takes_no_host_away_that_is_a_member_by_report_alone(fleet, monkeypatch):
    """Before ADR 28 a report was as good as a label; what was promoted then stays in force as it is."""
    plane, other = fleet.plane, 900_000 + fleet.service
    orchestrator, db = plane.orchestrator, f"db{fleet.service}"
    await orchestrator.registry.put(other, db, ["unit:db.service"], {}, WHO)
    reported = ServiceReport(other, "pending", cgroups=("system.slice/db.service",))
    for host in fleet.hosts[1:3]:
        agent = fleet.agents[host]
        monkeypatch.setattr(
            agent,
            "send",
            lambda beat, send=agent.send: send(structs.replace(beat, services=(*beat.services, reported))),
        )

    async def members():
        return sum(row["service_id"] == other for row in await plane.store.rows("all_running"))

    async def until(count):
        async def seen():
            return await members() == count

        await eventually(seen)

    await until(2)
    with monkeypatch.context() as before:
        before.setattr(places, "ServicePlace", lambda i, hosts, v, *_: ServicePlace(i, hosts, v))
        rule = f"{{from: s{fleet.service}, to: {db}, ports: [tcp/5432]}}"
        told = await fleet.promoted(rules=f"\n  - {rule}\nservices: [s{fleet.service}]")
    monkeypatch.setattr(renewal, "SETTLED_SECONDS", 0.0)

    async def reason():
        await orchestrator.renewals.look()
        return (await fleet.rollouts.one(told.rollout.id)).rollout.run.reason

    first, second = fleet.hosts[1:3]
    assert await reason() == (
        f"not renewed: hosts {first}, {second} run {db} by report alone; give {db} host_labels and plan again"
    )
    assert await orchestrator.views.one(fleet.service, 1)
    with pytest.raises(NotFound):
        await orchestrator.views.one(fleet.service, 2)
    listed = {row.id: row for row in await fleet.rollouts.all(1 << 60, 50)}
    assert listed[told.rollout.id].run.reason.startswith("not renewed: ")


async def test_only_an_approver_skips_the_evidence(fleet):
    with pytest.raises(Forbidden):
        await fleet.segmenter.plans.approve(
            number := await fleet.planned(5432, approve=False),
            (await fleet.segmenter.plans.one(number)).digest,
            False,
            Who(Principal("tester", "approver"), "test", "req-3"),
        )


@pytest.mark.parametrize("scope", ["fleet", "service", "host"])
async def test_panic_returns_to_observing_and_a_rollback_undoes_it(fleet, scope):
    panic = fleet.plane.orchestrator.panic
    await fleet.promoted(5432)
    rollout = await fleet.begun(5432, 443)
    await fleet.move(rollout, "promote")
    await eventually(lambda: fleet.versions() == [2, 1, 1, 1])
    asked = {
        "fleet": PanicRequest(fleet=True),
        "service": PanicRequest(service_id=fleet.service, why="checkout is down"),
        "host": PanicRequest(host_id=fleet.hosts[1]),
    }[scope]
    tried = await panic.observe(asked, WHO, dry_run=True)
    assert (fleet.versions(), tried.dry_run) == ([2, 1, 1, 1], True)
    done = await panic.observe(asked, WHO)
    mine = next(one for one in done.services if one.service_id == fleet.service)
    assert (mine.hosts, done.aborted) == (
        ((fleet.hosts[1],), ()) if scope == "host" else (tuple(fleet.hosts), (rollout.id,))
    )
    wanted = ["enforce", "observe", "enforce", "enforce"] if scope == "host" else ["observe"] * 4

    async def there(expected):
        return await modes(fleet) == expected

    await eventually(lambda: there(wanted))
    assert (await panic.observe(asked, WHO)).services == ()
    if scope != "host":
        await fleet.plane.orchestrator.changes.rollback(fleet.service, 1, WHO)
        await eventually(lambda: there(["enforce"] * 4))


async def test_panic_names_what_it_cannot_find(fleet):
    panic = fleet.plane.orchestrator.panic
    for asked, error in (
        (PanicRequest(), Invalid),
        (PanicRequest(fleet=True, host_id="x"), Invalid),
        (PanicRequest(host_id="nobody"), NotFound),
        (PanicRequest(service_id=9999), NotFound),
    ):
        with pytest.raises(error):
            await panic.observe(asked, WHO)


async def test_after_all_of_this_the_store_is_as_its_audit_log_says(world):
    """Plans, approvals, rollouts, what is promoted, hosts: told by lines, whatever led to it."""
    found = await disagreements(world[0])
    assert [one for one in found if "/policy: " not in one] == [], "policies: some were changed by SQL above"
