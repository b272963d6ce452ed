"""The orchestrator on a real NATS and a real PostgreSQL, with scripted agents."""

import asyncio
import os
import signal
import time

import msgspec
import pytest
import pytest_asyncio
from msgspec.structs import replace
from nacl.signing import SigningKey
from tests.support.control import WHO, body, request_of, running_plane
from tests.support.engines import eventually

from aegisflux.domain import audit
from aegisflux.domain.errors import Conflict, Forbidden, Invalid, NotFound
from aegisflux.domain.manifest import Ack, ServiceReport
from aegisflux.domain.roles import Principal
from aegisflux.domain.rollout import StaleVersion
from aegisflux.domain.runs import Run, Runs
from aegisflux.runtime import asking
from aegisflux.services.orchestrator.core import Who
from aegisflux.services.orchestrator.suspicions import Suspicion
from aegisflux.services.orchestrator.views import Asked
from aegisflux.wire import envelope, subjects

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


async def state_is(plane, service_id, host, wanted):
    """Wait until the host's state for the service is the wanted word."""

    async def same():
        status = await plane.orchestrator.views.status(service_id)
        return next((h for h in status.hosts if h.host_id == host and h.state == wanted), None)

    return await eventually(same)


async def test_a_post_ends_as_an_ack_in_the_store(plane):
    agent = await plane.agent("web-1")
    answer = await plane.orchestrator.snapshots.post(body(101, 7), ["web-1"], "", WHO)
    assert (answer.accepted, answer.version, answer.target_hosts) == (True, 7, ("web-1",))
    await agent.beat()
    found = await state_is(plane, 101, "web-1", "in_force")
    assert found.observed.digest == answer.digest
    sealed = envelope.decode_envelope(await agent.fetch(answer.digest), 1 << 20)
    assert sealed.payload_type == envelope.CONTENT


async def test_a_confirmation_needs_the_ack_and_a_heartbeat_from_after_the_flip(plane):
    agent = await plane.agent("confirm-1")
    await plane.orchestrator.snapshots.post(body(102, 1), ["confirm-1"], "", WHO)
    await eventually(lambda: 102 in agent.in_force)
    await asyncio.sleep(0.3)
    assert agent.confirms == []
    await agent.beat()
    await eventually(lambda: agent.confirms)


async def test_content_is_served_only_to_hosts_whose_manifest_names_it(plane):
    await plane.agent("has-it")
    other = await plane.agent("has-not")
    answer = await plane.orchestrator.snapshots.post(body(103, 1), ["has-it"], "", WHO)
    with pytest.raises(LookupError, match="not_named"):
        await other.fetch(answer.digest)


async def test_versions_digests_and_idempotency(plane):
    post = plane.orchestrator.snapshots.post
    first = await post(body(104, 3), None, "key-1", WHO)
    assert await post(body(104, 3), None, "key-1", WHO) == first
    again = await post(body(104, 3), None, "", WHO)
    assert (again.digest, again.timestamp, again.version) == (first.digest, first.timestamp, first.version)
    with pytest.raises(StaleVersion) as error:
        await post(body(104, 3, ttl_seconds=61), None, "", WHO)
    assert (error.value.current, error.value.following) == (3, 4)
    with pytest.raises(StaleVersion):
        await post(body(104, 2), None, "", WHO)
    with pytest.raises(Conflict, match="Idempotency-Key"):
        await post(body(104, 4), None, "key-1", WHO)


async def test_an_unknown_service_is_registered_with_a_warning(plane):
    answer = await plane.orchestrator.snapshots.post(body(105, 1), None, "", WHO)
    assert any("registered as service-105" in line for line in answer.warnings)
    assert any("no enrolled host runs service 105" in line for line in answer.warnings)
    assert (await plane.orchestrator.registry.one(105)).name == "service-105"


async def test_a_target_that_is_not_enrolled_is_refused_by_name_and_nothing_is_stored(plane):
    with pytest.raises(Invalid, match="nobody"):
        await plane.orchestrator.snapshots.post(body(106, 1), ["web-1", "nobody"], "", WHO)
    with pytest.raises(NotFound):
        await plane.orchestrator.registry.one(106)


async def test_canary_promote_rollback_withdraw(plane):
    core = plane.orchestrator
    await core.registry.put(110, "shop", [], {"role": "shop"}, WHO)
    agents = {name: await plane.agent(name, {"role": "shop"}) for name in ("shop-1", "shop-2")}
    await core.snapshots.post(body(110, 1), ["shop-1"], "", WHO)
    promoted = await core.changes.promote(110, None, WHO)
    assert promoted.changed_hosts == ("shop-1", "shop-2")
    await eventually(
        lambda: all(a.in_force.get(110) and a.in_force[110].version == 1 for a in agents.values())
    )
    await core.snapshots.post(body(110, 2, edges=[]), ["shop-2"], "", WHO)
    await eventually(lambda: agents["shop-2"].in_force[110].version == 2)
    assert agents["shop-1"].in_force[110].version == 1
    back = await core.changes.rollback(110, None, WHO)
    assert (back.version, back.from_version) == (3, 1)
    await eventually(lambda: all(a.in_force[110].version == 3 for a in agents.values()))
    maps = await core.views.one(110)
    assert (maps.stable.version, maps.stable.copy_of, maps.next_version) == (3, 1, 4)
    late = await plane.agent("shop-3", {"role": "shop"})
    await eventually(lambda: 110 in late.in_force)
    gone = await core.changes.withdraw(110, None, WHO)
    assert gone.changed_hosts == ("shop-1", "shop-2", "shop-3")
    await eventually(lambda: agents["shop-1"].manifests[-1].services == ())


async def test_a_version_beside_is_offered_fetched_shown_and_ends_with_the_promotion(plane):
    core = plane.orchestrator
    await core.registry.put(191, "store", [], {"role": "store"}, WHO)
    agent = await plane.agent("store-1", {"role": "store"})
    await core.snapshots.post(body(191, 1), None, "", WHO)
    await core.changes.promote(191, None, WHO)
    await eventually(lambda: agent.in_force.get(191) and agent.in_force[191].version == 1)
    offered = await core.snapshots.post(body(191, 2, edges=[]), None, "", WHO, beside=True)

    def beside():
        (service,) = agent.manifests[-1].services
        return service.candidate and (service.active.version, service.candidate.version)

    await eventually(lambda: beside() == (1, 2))
    assert len(await agent.fetch(offered.digest)) > 100
    (shown,) = (await core.views.status(191)).hosts
    assert (shown.desired.version, shown.beside) == (1, 2)
    again = await core.snapshots.post(body(191, 2, edges=[]), None, "", WHO, beside=True)
    assert again.digest == offered.digest
    tried = await core.changes.try_withdraw(191, ["store-1"])
    assert (tried.changed_hosts, tried.dry_run) == (("store-1",), True)
    await core.changes.promote(191, 2, WHO)
    await eventually(lambda: agent.in_force[191].version == 2)
    assert agent.manifests[-1].services[0].candidate is None
    await core.snapshots.post(body(191, 3), None, "", WHO, beside=True)
    await eventually(lambda: beside() == (2, 3))
    await core.snapshots.post(body(191, 4, edges=[]), None, "", WHO)
    await eventually(lambda: agent.in_force[191].version == 4)
    assert agent.manifests[-1].services[0].candidate is None


async def test_a_version_beside_nothing_governs_nothing_and_is_withdrawn(plane):
    core = plane.orchestrator
    agent = await plane.agent("store-2")
    await core.snapshots.post(body(192, 1), ["store-2"], "", WHO, beside=True)
    await eventually(lambda: agent.manifests and agent.manifests[-1].services)
    (service,) = agent.manifests[-1].services
    assert (service.active, service.candidate.version) == (None, 1)
    gone = await core.changes.withdraw(192, ["store-2"], WHO)
    assert (gone.changed_hosts, gone.warnings) == (("store-2",), ())
    await eventually(lambda: agent.manifests[-1].services == ())


async def test_an_author_never_approves_their_own_change(plane):
    core = plane.orchestrator
    ada, bob = (Who(Principal(name, "approver"), "test", name) for name in ("ada", "bob"))
    await core.registry.put(141, "pair", [], {"role": "pair"}, WHO)
    await plane.agent("pair-1", {"role": "pair"})
    await core.snapshots.post(body(141, 1), ["pair-1"], "", ada)
    for promote in (core.changes.try_promote, core.changes.promote):
        with pytest.raises(Forbidden, match="posted by ada"):
            await promote(141, None, ada)
    assert (await core.changes.promote(141, None, bob)).warnings == ()
    await core.snapshots.post(body(141, 2, edges=[]), ["pair-1"], "", WHO)
    promoted = await core.changes.promote(141, None, WHO)
    assert promoted.warnings == ("promoted by its author, as an admin may",)
    (line,) = await core.core.store.rows("audit_newest", 2**62, 1)
    assert line["reason"].startswith("promoted by its author")


async def test_a_dry_run_tells_and_changes_nothing(plane):
    core, store = plane.orchestrator, plane.orchestrator.core.store
    await core.registry.put(142, "tried", [], {"role": "tried"}, WHO)
    for name in ("tried-1", "tried-2"):
        await plane.agent(name, {"role": "tried"})
    await core.snapshots.post(body(142, 1), ["tried-1"], "", WHO)

    async def state():
        return await core.views.one(142), [row["seq"] for row in await store.rows("audit_newest", 2**62, 1)]

    async def same(tried, act):
        before = await state()
        told = await tried
        assert told.dry_run
        assert await state() == before
        done = await act
        assert replace(told, dry_run=False, timestamp=done.timestamp) == done

    changes = core.changes
    await same(changes.try_promote(142, None, WHO), changes.promote(142, None, WHO))
    await core.snapshots.post(body(142, 2, edges=[]), ["tried-2"], "", WHO)
    await same(changes.try_rollback(142, None), changes.rollback(142, None, WHO))
    await same(changes.try_withdraw(142, None), changes.withdraw(142, None, WHO))


async def test_a_host_that_reports_a_matched_cgroup_gets_the_snapshot(plane):
    core = plane.orchestrator
    await core.registry.put(111, "worker", ["unit:worker*.service"], {}, WHO)
    await core.snapshots.post(body(111, 1), None, "", WHO)
    agent = await plane.agent("cgroup-1")
    await eventually(lambda: agent.manifests)
    assert [s.selectors for s in agent.manifests[-1].services if s.service_id == 111] == [
        ("unit:worker*.service",)
    ]
    report = ServiceReport(111, "pending", cgroups=("/system.slice/worker1.service",))
    await agent.beat(services=(report,))
    await eventually(lambda: 111 in agent.in_force)
    await core.registry.put(111, "worker", [], {}, WHO)


async def test_an_observing_host_says_so_from_its_ack_on(plane):
    agent = await plane.agent("observe-1")
    await agent.beat()
    await plane.orchestrator.snapshots.post(body(115, 1, mode="observe"), ["observe-1"], "", WHO)
    await state_is(plane, 115, "observe-1", "observing")


async def test_a_killed_compiler_is_replaced(plane):
    workshop = plane.orchestrator.core.workshop
    for pid in list(workshop._usual._pool._processes):
        os.kill(pid, signal.SIGKILL)
    answer = await plane.orchestrator.snapshots.post(body(116, 1), None, "", WHO)
    assert answer.accepted


async def test_a_nack_is_told_with_its_reason(plane):
    agent = await plane.agent("nack-1", nack="map_full")
    await plane.orchestrator.snapshots.post(body(112, 1), ["nack-1"], "", WHO)
    await agent.beat()
    found = await state_is(plane, 112, "nack-1", "nacked")
    assert found.last_nack.reason == "map_full"


async def test_a_service_that_matches_nothing_and_a_full_disk_are_shown(plane):
    agent = await plane.agent("idle-1")
    await plane.orchestrator.snapshots.post(body(117, 1), ["idle-1"], "", WHO)
    await eventually(lambda: 117 in agent.in_force)
    await agent.beat(
        state="matches nothing", troubles=("disk full: /state/accepted: No space left on device",)
    )
    found = await state_is(plane, 117, "idle-1", "matches nothing")
    assert found.troubles == ("disk full: /state/accepted: No space left on device",)
    active = agent.in_force[117]
    ack = Ack("idle-1", agent.serial, 117, active.version, active.digest, "", active.lease_until, 0.0)
    await agent.send(ack)
    await state_is(plane, 117, "idle-1", "in_force")
    await agent.send(replace(ack, matches=False))
    await state_is(plane, 117, "idle-1", "matches nothing")
    assert (await plane.orchestrator.hosts.one("idle-1")).troubles == found.troubles


async def test_two_agents_with_one_identity_are_reported(plane):
    agent, core = await plane.agent("twin-1"), plane.orchestrator.core

    async def beats(*runs):
        for boot, started in runs:
            await agent.beat(boot_id=boot, started=started)
            run = Run(boot, started)
            await eventually(lambda: core.runs.get("twin-1", Runs()).current == run)  # noqa: B023
        return (await plane.orchestrator.hosts.one("twin-1")).troubles

    assert await beats(("a", 1), ("a", 2), ("b", 1)) == ()
    (text,) = await beats(("a", 2), ("b", 1))
    assert "two agents answer as this host at once" in text
    assert ("boot a" in text, "boot b" in text) == (True, True)
    lines = [row for row in await core.store.rows("audit_newest", 2**62, 50) if row["action"] == "host.clash"]
    assert [(row["object"], "cloned" in row["reason"]) for row in lines] == [("host/twin-1", True)]


async def test_a_host_that_says_nothing_is_silent(plane):
    await plane.agent("quiet-1", answer=False)
    await plane.orchestrator.snapshots.post(body(113, 1), ["quiet-1"], "", WHO)
    await state_is(plane, 113, "quiet-1", "silent")


@pytest.mark.parametrize("how", ["another key", "another host", "no envelope"])
async def test_a_forged_ack_becomes_a_dead_letter_and_changes_nothing(plane, how):
    name = "forge-" + how.split()[1]
    agent = await plane.agent(name, answer=False)
    answer = await plane.orchestrator.snapshots.post(body(114, int(time.time() * 1000)), [name], "", WHO)
    said = Ack(name, 99, 114, answer.version, answer.digest, "x", 1, time.time())
    before = await plane.bus.last(subjects.dead("ACKS"))
    if how == "another key":
        await agent.send(said, key=SigningKey.generate())
    elif how == "another host":
        await agent.send(msgspec.structs.replace(said, host_id="web-1"))
    else:
        await agent.bus.publish(subjects.acks(name), b"junk", msg_id=f"junk-{name}")

    async def buried():
        last = await plane.bus.last(subjects.dead("ACKS"))
        return last is not None and (before is None or last.sequence > before.sequence) and last

    letter = await eventually(buried)
    assert letter.headers["Aegisflux-Subject"] == subjects.acks(name)
    status = await plane.orchestrator.views.status(114)
    assert next(h for h in status.hosts if h.host_id == name).acked_at is None


async def test_an_enrolment_token_serves_one_key_once(plane):
    hosts = plane.orchestrator.hosts
    token = (await hosts.token({"role": "x"}, None, 600, WHO)).token
    key = SigningKey.generate()
    first = await hosts.enroll(request_of(token, "enrol-1", key), WHO)
    assert await hosts.enroll(request_of(token, "enrol-1", key), WHO) == first
    with pytest.raises(Conflict, match="used already"):
        await hosts.enroll(request_of(token, "enrol-1", SigningKey.generate()), WHO)
    with pytest.raises(Conflict, match="used already"):
        await hosts.enroll(request_of(token, "enrol-2", key), WHO)


async def test_two_hosts_at_once_with_one_token(plane):
    hosts = plane.orchestrator.hosts
    token = (await hosts.token({}, None, 600, WHO)).token
    tries = [hosts.enroll(request_of(token, "race-1", SigningKey.generate()), WHO) for _ in range(4)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(not isinstance(result, Exception) for result in results) == 1
    assert all(isinstance(result, Conflict) for result in results if isinstance(result, Exception))


async def test_a_second_host_cannot_take_a_name_until_it_is_released(plane):
    hosts = plane.orchestrator.hosts
    agent = await plane.agent("taken")
    token = (await hosts.token({}, None, 600, WHO)).token
    request = request_of(token, "taken", SigningKey.generate())
    with pytest.raises(Conflict, match="another key"):
        await hosts.enroll(request, WHO)
    serial = (await hosts.one("taken")).serial
    await hosts.release("taken", WHO)
    await eventually(lambda: not agent.bus.connected)
    await hosts.enroll(request, WHO)
    assert (await hosts.one("taken")).serial > serial


@pytest.mark.parametrize("what", ["expired", "bound to another name", "another proof", "bad name"])
async def test_enrolment_is_refused(plane, what):
    hosts, key = plane.orchestrator.hosts, SigningKey.generate()
    bound = "somebody" if what == "bound to another name" else None
    token = (await hosts.token({}, bound, 600, WHO)).token
    request = request_of(token, "fresh", key)
    if what == "expired":
        await plane.store._runner.execute("update enroll_tokens set expires_at = 1 where used_by is null")
    if what == "another proof":
        request = msgspec.structs.replace(request, proof=request_of(token, "other", key).proof)
    if what == "bad name":
        request = msgspec.structs.replace(request, host_id="*")
    with pytest.raises((Forbidden, Invalid)):
        await hosts.enroll(request, WHO)
    with pytest.raises(NotFound):
        await hosts.one("fresh")


async def test_leases_of_promoted_snapshots_are_renewed_and_posted_ones_are_not(plane):
    core = plane.orchestrator
    agent = await plane.agent("lease-1")
    await core.snapshots.post(body(120, 1), ["lease-1"], "", WHO)
    await core.snapshots.post(body(121, 1), ["lease-1"], "", WHO)
    await core.changes.promote(121, None, WHO)
    await eventually(lambda: 120 in agent.in_force and 121 in agent.in_force)
    near = int(time.time()) + 200
    await plane.store._runner.execute(
        "update assignments set lease_until = $1 where service_id in (120, 121)", near
    )

    async def leases():
        rows = await plane.store.rows("assignments", 121)
        return rows[0]["lease_until"] > near

    await eventually(leases)
    assert (await plane.store.rows("assignments", 120))[0]["lease_until"] == near
    await eventually(lambda: agent.in_force[121].lease_until > near)


async def test_why_tells_desired_and_observed(plane):
    core = plane.orchestrator
    agent = await plane.agent("why-1")
    await core.snapshots.post(body(122, 1), ["why-1"], "", WHO)
    await eventually(lambda: 122 in agent.in_force)
    await agent.beat()
    await state_is(plane, 122, "why-1", "in_force")
    found = await core.views.why(122, "why-1", Asked("10.1.2.3", "tcp", 443))
    assert (found.desired[0].word, found.observed[0].rule, found.differs) == (
        "allowed",
        "edges 10.1.0.0/16 tcp/443",
        False,
    )
    with pytest.raises(NotFound, match="service 122 has no snapshot on host nosuch"):
        await core.views.why(122, "nosuch", Asked("10.1.2.3", "tcp", 443))
    agent.answer = False
    await core.snapshots.post(body(122, 2, edges=[]), ["why-1"], "", WHO)
    found = await core.views.why(122, None, Asked("10.1.2.3", "tcp", 443))
    assert (found.desired[0].word, found.observed[0].word, found.differs) == ("blocked", "allowed", True)


async def test_announcements_come_in_the_order_of_the_commits(plane):
    heard = []

    async def note(message):
        heard.append(msgspec.json.decode(message.payload))

    async def posted(number):
        asking.begin(f"token {number % 2}")  # one alone may not have so many wait
        await plane.orchestrator.snapshots.post(body(number, 1), None, "", WHO)

    watch = await plane.bus.watch(subjects.MAPS, note)
    await asyncio.gather(*map(posted, range(900, 930)))
    await eventually(lambda: len([h for h in heard if h["service_id"] >= 900]) >= 30)
    rows = await plane.store._runner.fetch(
        "select msg_id from outbox where msg_id like 'maps:9__:1' order by id"
    )
    assert [h["service_id"] for h in heard if h["service_id"] >= 900] == [
        int(r["msg_id"].split(":")[1]) for r in rows
    ]
    await watch.close()


async def test_tokens_have_roles_ends_and_can_be_revoked(plane):
    access = plane.orchestrator.access
    made = await access.issue("bob", "operator", None, WHO)
    assert (await access.principal(made.token)).role == "operator"
    assert await access.principal(made.token + "x") is None
    stored = await plane.store._runner.fetchval("select hash from tokens where id = $1", made.id)
    assert made.token.encode() not in stored
    tried = await access.revoke(made.id, WHO, dry_run=True)
    assert (tried.did, tried.dry_run) == ((f"ends token {made.id} (bob, role operator)",), True)
    assert (await access.principal(made.token)).role == "operator"
    assert (await access.revoke(made.id, WHO)).did == tried.did
    assert await access.principal(made.token) is None


async def test_keys_rotate_while_hosts_follow(plane):
    core = plane.orchestrator
    agent = await plane.agent("rotate-1")
    await core.snapshots.post(body(130, 1), ["rotate-1"], "", WHO)
    await eventually(lambda: 130 in agent.in_force)
    await agent.beat()
    await core.snapshots.post(body(131, 1), None, "", WHO)
    old = core.core.keys.signing
    await core.rotation.begin(WHO)
    with pytest.raises(Conflict):
        await core.rotation.begin(WHO)

    async def done():
        rows = await plane.store.rows("hosts")
        for row in rows:  # hosts of other tests say nothing any more: they count as silent
            if row["host_id"] != "rotate-1":
                await plane.store._runner.execute(
                    "update hosts set seen_at = 0 where host_id = $1", row["host_id"]
                )
        await agent.beat()
        return (await core.rotation.state()).phase == "none"

    await eventually(done, 20)
    assert old not in [key.id for key in core.core.keys.set.keys]
    await core.snapshots.post(body(131, 1), ["rotate-1"], "", WHO)
    await eventually(lambda: 131 in agent.in_force)
    for number in (130, 131):  # in force meanwhile, and posted before but given to nobody until now
        sealed = envelope.decode_envelope(await agent.fetch(agent.in_force[number].digest), 1 << 20)
        assert sealed.signatures[0].keyid == core.core.keys.signing


async def test_the_audit_log_tells_of_tampering(plane):
    store = plane.store
    head, lines = await store.audit_log()
    assert list(audit.problems(lines, head, store._key)) == []
    actor = next(line.entry.actor for line in lines if line.seq == 2)
    await store._runner.execute("update audit set actor = 'eve' where seq = 2")
    head, lines = await store.audit_log()
    assert any("line 2" in problem for problem in audit.problems(lines, head, store._key))
    await store._runner.execute("update audit set actor = $1 where seq = 2", actor)


@pytest.mark.parametrize("name", ["fleet", "anyone"])
async def test_a_service_is_not_named_as_policies_name_everybody(plane, name):
    with pytest.raises(Invalid, match="means something in policies"):
        await plane.orchestrator.registry.put(None, name, [], {}, WHO)


async def test_who_suspects_a_host_is_told_until_each_of_them_trusts_it(plane):
    await plane.agent("odd-1")
    hosts = plane.orchestrator.hosts

    async def said(suspicious, detail="", finding="", host="odd-1"):
        await hosts.suspicions.say(
            host, Suspicion(suspicious=suspicious, detail=detail, finding=finding), WHO
        )
        return (await hosts.one("odd-1")).suspicious

    name = WHO.principal.name
    assert await said(True, "it beacons") == (f"{name}: it beacons",)
    assert await said(True, "it still does") == (f"{name}: it still does",)
    assert await said(True, finding="f-1") == (f"{name}: it still does", "finding f-1")
    assert await said(False) == ("finding f-1",)
    assert await said(False, finding="f-1") == ()
    with pytest.raises(NotFound, match="host nobody was never enrolled"):
        await said(True, host="nobody")


LITERALS = ("10.0.0.1", "443", "tcp", "fleet", "anyone", "host", "1e5", "0x1f", "true", "1.2.3")


async def test_a_name_that_looks_like_something_else_is_given_nowhere(plane):
    orchestrator = plane.orchestrator
    await plane.agent("named-1", {"role": "named"})
    for text in LITERALS:
        with pytest.raises(Invalid, match="name"):
            await orchestrator.registry.put(None, text, [], {}, WHO)
        with pytest.raises(Invalid, match=r"host_id|name"):
            await orchestrator.hosts.token({}, text, 600, WHO)
        with pytest.raises(Invalid, match="labels"):
            await orchestrator.hosts.token({text: "x"}, None, 600, WHO)
        if text != "true":  # the value of a label that is given without one
            with pytest.raises(Invalid, match=r"labels\.role"):
                await orchestrator.hosts.token({"role": text}, None, 600, WHO)
            with pytest.raises(Invalid, match=r"labels\.role"):
                await orchestrator.hosts.relabel("named-1", {"role": text}, WHO)
            with pytest.raises(Invalid, match=r"host_labels\.role"):
                await orchestrator.registry.put(None, "named", [], {"role": text}, WHO)
        if "." not in text:
            with pytest.raises(Invalid, match="host_id: expected a name"):
                await plane.enroll(text)
    assert (await orchestrator.hosts.one("named-1")).labels == {"role": "named"}


async def test_what_had_such_a_name_before_keeps_it(plane):
    orchestrator = plane.orchestrator
    async with orchestrator.core.store.change() as db:
        await db.run("put_service", 190, "443", [], {"tier": "1"}, 1)
        await db.audit(WHO.did("service.put", "service/190"))
    kept = await orchestrator.registry.put(190, "443", ["unit:x.service"], {"tier": "1"}, WHO)
    assert (kept.name, kept.host_labels) == ("443", {"tier": "1"})
    async with orchestrator.core.store.change() as db:
        await db.run("put_host", "443", b"k" * 32, {"env!": "prod", "tier": "1"}, 1)
        await db.audit(WHO.did("host.enroll", "host/443"))
    assert await orchestrator.hosts.token({"env!": "prod", "tier": "1"}, "443", 600, WHO)
    with pytest.raises(
        Invalid, match=r'labels\["env!"\]: expected a label that does not read as a comparison'
    ):
        await orchestrator.hosts.token({"env!": "prod"}, None, 600, WHO)
    with pytest.raises(Invalid, match="name: expected a name, not what looks like a number"):
        await orchestrator.registry.put(190, "444", [], {}, WHO)


async def test_a_selector_that_never_matches_is_kept_where_it_is_stored(plane):
    registry, bad = plane.orchestrator.registry, "cgroup:/sys/fs/cgroup/web"
    async with plane.orchestrator.core.store.change() as db:
        await db.run("put_service", 191, "old", [bad], {}, 1)
        await db.audit(WHO.did("service.put", "service/191"))
    kept = await registry.put(191, "older", ["unit:web", bad], {"role": "web"}, WHO)
    assert list(kept.selectors) == ["unit:web", bad]
    for number in (191, 192):
        with pytest.raises(Invalid, match=r"selectors\[0\]: expected .* not a template"):
            await registry.put(number, "older" if number == 191 else "new", ["unit:web@", bad], {}, WHO)
    with pytest.raises(Invalid, match=r"selectors\[0\]: expected .* \(write cgroup:web\)"):
        await registry.put(192, "new", [bad], {}, WHO)
