"""The segmenter on a real PostgreSQL: from stored flows to a proposal and its policy, over HTTP."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import msgspec
import pytest
import pytest_asyncio
import zstandard
from msgspec.structs import replace
from tests.support.believing import Trusting
from tests.support.engines import eventually
from tests.support.facts import NOON, SECOND, enriched, flow

from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.store.facts import PostgresFacts
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain.enriched import Context
from aegisflux.runtime.access import hashed
from aegisflux.runtime.clock import WallClock
from aegisflux.runtime.supervise import Process
from aegisflux.services.segmenter import proposals
from aegisflux.services.segmenter.api import application
from aegisflux.services.segmenter.app import Parts, Segmenter
from aegisflux.wire.policyfile import read

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
DAY = 86_400
BEGIN = NOON - 5 * DAY * SECOND
WINDOW = {"since": "2026-11-19T00:00:00Z", "until": "2026-11-25T00:00:00Z"}
WEBS, DBS = ("w1", "w2", "w3"), ("d1", "d2")


class Lab:
    """A segmenter, and what its API answers to an operator and a viewer."""

    def __init__(self, segmenter, client):
        self.segmenter, self.client = segmenter, client

    async def asks(self, method, path, role="operator", **more):
        return await self.client.request(method, path, headers={"Authorization": f"Bearer {role}"}, **more)

    async def ended(self, answer):
        """The operation that an answer began, when it has ended."""
        assert answer.status_code == 202, answer.text
        path = f"/segment/operations/{answer.json()['id']}"

        async def over():
            found = (await self.asks("GET", path)).json()
            return found if found["state"] != "running" else None

        return await eventually(over, 30)

    async def proposed(self, **asked):
        """The proposal of a window."""
        operation = await self.ended(await self.asks("POST", "/segment/propose", json=WINDOW | asked))
        assert operation["state"] == "done", operation
        assert (operation["share"], operation["step"]) == (1.0, "done")
        return (await self.asks("GET", operation["result"])).json()


async def store_flows(facts):
    """Five days: the world calls web, web calls db; one job once; refused, unanswered and own flows."""
    web, db = Context(service_id=101, service="web"), Context(service_id=102, service="db")
    for n, host in enumerate(WEBS):
        calls = []
        for day in range(5):
            at = BEGIN + day * DAY * SECOND
            for d, peer in enumerate(DBS):
                context = replace(web, peer_class="private", peer_host=peer, peer_service_id=102)
                calls.append((flow(100 * day + d + 1, at, peer=f"10.0.1.{d}"), context))
            world = replace(web, peer_class="public")
            told = {"direction": "ingress", "port": 443}
            calls += [
                (flow(100 * day + 10 + c, at, peer=f"203.0.113.{10 * n + c}", **told), world)
                for c in range(9)
            ]
        at = BEGIN + DAY * SECOND
        odd = replace(web, peer_class="private", peer_host="d1", peer_service_id=102)
        calls += [
            (flow(900, at, peer="10.0.1.0", port=1, verdict="blocked"), odd),
            (flow(901, at, peer="10.0.1.0", port=2, packets_in=0), odd),
            (flow(902, at, peer="127.0.0.1", port=3), replace(web, peer_class="loopback")),
        ]
        if n == 0:
            calls.append((flow(903, at, peer="10.0.1.0", port=4), odd))
        batch = enriched(host=host, boot=f"boot-{host}")
        found = [enriched(event, context=context).events[0] for event, context in calls]
        await facts.commit([replace(batch, events=tuple(found))])
    seen = replace(db, peer_class="private", peer_host="w1", peer_service_id=101)
    answer = flow(1, BEGIN, direction="ingress", peer="10.0.0.1", local="10.0.1.0")
    await facts.commit([enriched(answer, host="d1", boot="boot-d1", context=seen)])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("segmenter")
    async with AsyncExitStack() as stack:
        engine = PostgresEngine(folder / "postgres", log=folder / "postgres.log")
        (folder / "run").mkdir()
        process = Process(engine.child(), folder / "run")
        await process.start()
        stack.push_async_callback(process.stop)
        store, facts = PostgresStore(engine.dsn, b"k" * 32), PostgresFacts(engine.dsn)
        await store.open()
        stack.push_async_callback(store.close)
        await facts.open_writer()
        stack.push_async_callback(facts.close)
        for number, role in enumerate(("operator", "viewer")):
            await store.run("add_token", str(number), role, role, hashed(role), 0, "test", None, None, None)
        for number, name in ((101, "web"), (102, "db")):
            await store.run("put_service", number, name, [], {}, 0)
        await store_flows(facts)
        segmenter = Segmenter(Parts(store=store, facts=facts, clock=WallClock(), believer=Trusting()))
        segmenter.started = True
        stack.push_async_callback(segmenter.close)
        transport = httpx.ASGITransport(application(segmenter))
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://it"))
        yield Lab(segmenter, client)


async def test_from_stored_flows_to_rules_with_evidence(lab):
    kept = await lab.proposed()
    said = {(r["client"], r["server"], r["port"]): r for r in kept["proposal"]["rules"]}
    assert {way: rule["held"] for way, rule in said.items()} == {
        ("anyone", "web", 443): "",
        ("web", "db", 5432): "",
        ("web", "db", 4): "one_client_few_days",
    }
    rule = said["web", "db", 5432]
    assert (rule["clients"], rule["servers"], rule["days"], rule["connections"]) == (3, 2, 5, 30)
    assert [group["members"] for group in kept["proposal"]["groups"]] == [
        ["db@d1", "db@d2"],
        ["web@w1", "web@w2", "web@w3"],
    ]
    assert [rule["server"] for rule in kept["proposal"]["review"]] == ["web"]
    assert (kept["created_by"], kept["asked"]["since"]) == ("operator", "2026-11-19T00:00:00Z")


async def test_the_same_window_gives_the_same_proposal_again(lab):
    """Asked as it was kept: with the proposal whose names it took over, and the hosts that were suspected."""
    first, second = [await lab.proposed() for _ in range(2)]
    again = await lab.proposed(**second["asked"])
    assert [second["id"], again["id"]] == [first["id"] + 1, first["id"] + 2]
    assert second["asked"] == first["asked"] | {"before": first["id"]}
    for part in ("proposal", "flows_digest", "flows"):
        assert first[part] == second[part] == again[part]
    assert again["asked"] == second["asked"]
    listed = (await lab.asks("GET", "/segment/proposals", params={"limit": 1})).json()
    assert [item["id"] for item in listed["items"]] == [again["id"]] == [listed["next_cursor"]]
    assert listed["items"][0]["rules"] == 2


async def test_the_exported_policy_says_what_is_proposed_and_why(lab):
    kept = await lab.proposed(mode="observe", ttl_seconds=3600)
    answer = await lab.asks("GET", f"/segment/proposals/{kept['id']}/policy", "viewer")
    policy = read(answer.text)
    assert [(rule.name, rule.ports) for rule in policy.rules] == [
        ("anyone-to-web", ("tcp/443",)),
        ("web-to-db", ("tcp/5432",)),
    ]
    assert (policy.services, policy.mode, policy.ttl_seconds) == (("db", "web"), "observe", 3600)
    assert "# tcp/5432: 30 connections, 3 clients, 2 servers, 5 days" in answer.text


async def test_suspicious_hosts_do_not_teach_and_a_scope_narrows(lab):
    await enrolled(lab)
    kept = await lab.proposed(suspicious=["w1"])
    assert kept["proposal"]["left_out"] == {"web@w1": "marked as suspicious"}
    assert ("web", 4) not in {(r["client"], r["port"]) for r in kept["proposal"]["rules"]}
    store = lab.segmenter.parts.store
    for finding in ("", "f-1"):
        await store.run("suspect", "w1", finding, "beacons", 1.0, "ada")
    for finding in ("", "f-1"):
        marked = await lab.proposed()
        assert marked["proposal"]["left_out"] == {"web@w1": "marked as suspicious"}
        assert (marked["asked"]["suspicious"], marked["asked"]["marked"]) == (["w1"], False)
        await store.run("trust", "w1", finding)
    assert (await lab.proposed())["proposal"]["left_out"] == {}
    scoped = await lab.proposed(scope=["db"])
    assert {r["port"] for r in scoped["proposal"]["rules"]} == {5432, 4}


async def test_an_empty_and_a_tiny_window_propose_nothing_and_say_what_to_do(lab):
    empty = await lab.proposed(since="2020-01-01T00:00:00Z", until="2020-01-02T00:00:00Z")
    assert (empty["proposal"]["rules"], empty["flows"]) == ([], 0)
    assert "no flows were recorded in this window" in empty["proposal"]["advice"][0]
    tiny = await lab.proposed(since="2026-11-19T00:00:00Z", until="2026-11-20T00:00:00Z")
    assert all(rule["held"] for rule in tiny["proposal"]["rules"])
    assert "learn for" in tiny["proposal"]["advice"][0]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"since": "2026-11-25T00:00:00Z"}, "since: expected a time before"),
        ({"since": "2020-01-01T00:00:00Z"}, "at most 63 periods before until"),
        ({"period_seconds": 60}, "at most 63 periods"),
        ({"period_seconds": 1}, "period_seconds"),
        ({"scoop": []}, "scoop"),
        ({"suspicious": ["UPPER"]}, "suspicious"),
        ({"suspicious": ["w1x"]}, "suspicious: expected hosts that are or were enrolled"),
        ({"scope": ["wbe"]}, "scope: expected services that are registered"),
        ({"since": None, "until": "0001-01-03T00:00:00Z"}, "until: expected a time after 2000"),
    ],
)
async def test_what_cannot_be_asked_is_refused_at_once(lab, asked, words):
    answer = await lab.asks("POST", "/segment/propose", json=WINDOW | asked)
    assert answer.status_code in (400, 422)
    assert words in answer.text


async def test_work_can_be_cancelled_and_leaves_nothing(lab, monkeypatch):
    begun = asyncio.Event()

    async def slow(*_):
        begun.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(proposals, "computed", slow)
    before = (await lab.asks("GET", "/segment/proposals")).json()["items"][:1]
    operation = (await lab.asks("POST", "/segment/propose", json=WINDOW)).json()
    await begun.wait()
    path = f"/segment/operations/{operation['id']}"
    assert (await lab.asks("GET", path)).json()["step"].startswith("finding groups and rules in")
    assert (await lab.asks("DELETE", path, "viewer")).status_code == 403
    assert (await lab.asks("DELETE", path)).json()["state"] == "cancelled"
    assert (await lab.asks("DELETE", path)).status_code == 409
    assert (await lab.asks("GET", "/segment/proposals")).json()["items"][:1] == before


async def test_a_computation_whose_process_dies_is_said_to_have_failed(lab, monkeypatch):
    monkeypatch.setattr(proposals, "propose", dies)
    operation = await lab.ended(await lab.asks("POST", "/segment/propose", json=WINDOW))
    assert (operation["state"], operation["error"]) == (
        "failed",
        "the computation: its process ended; was there memory enough?",
    )


def dies(*_):
    """Runs in the process of the computation."""
    import os

    os.abort()


async def test_who_may_not_and_what_is_not_there(lab):
    assert (await lab.asks("POST", "/segment/propose", "viewer", json=WINDOW)).status_code == 403
    assert (await lab.asks("GET", "/segment/proposals/999999", "viewer")).status_code == 404
    assert (await lab.asks("GET", f"/segment/operations/{'0' * 16}", "viewer")).status_code == 404
    ready = (await lab.asks("GET", "/readyz")).json()
    assert [line["name"] for line in ready["dependencies"]] == ["store", "facts", "segmenter", "tokens"]


def table_of(hosts):
    return {host: f"10.0.{'wd'.index(host[0])}.{int(host[1:]) - 1}" for host in hosts}


async def enrolled(lab):
    """Hosts with addresses; their services run there by label."""
    store = lab.segmenter.parts.store
    for host, address in table_of((*WEBS, *DBS)).items():
        role = {"w": "web", "d": "db"}[host[0]]
        await store.run("put_host", host, b"k" * 32, {"role": role}, 0)
        await store.run("store_heartbeats", [host], [5.0], [b"{}"], [1], [address], 0, [None])
    for number, name in ((101, "web"), (102, "db")):
        await store.run("put_service", number, name, [], {"role": name}, 0)


async def planned(lab, role="operator", **asked):
    operation = await lab.ended(await lab.asks("POST", "/segment/plan", role, json=asked))
    assert operation["state"] == "done", operation
    return (await lab.asks("GET", operation["result"])).json()


async def test_a_proposal_becomes_a_plan_that_would_have_blocked_what_it_holds_back(lab):
    await enrolled(lab)
    kept = await lab.proposed()
    found = await planned(lab, proposal=kept["id"])
    plan = found["plan"]
    assert [(s["service"], s["replaces"], s["canary"]) for s in plan["services"]] == [
        ("db", None, ["d1"]),
        ("web", None, ["w1"]),
    ]
    assert [(line["at"], line["direction"], line["rule"]) for line in plan["replay"]["lines"]] == [
        ("db", "ingress", "web -> db tcp/4"),
        ("web", "egress", "web -> db tcp/4"),
    ]
    assert plan["approval"] == [
        "web is open to anyone on tcp/443",
        "it would have blocked 1 recorded flows",
    ]
    assert (plan["held"], plan["broken_tests"], found["stale"]) == ([], [], [])
    db = plan["services"][0]["snapshot"]
    assert {entry["src_cidr"] for entry in db["ingress"]} == {"10.0.0.0/31", "10.0.0.2/32"}
    again = await planned(lab, proposal=kept["id"])
    assert (again["digest"], again["inventory_digest"]) == (found["digest"], found["inventory_digest"])


POLICY = """\
policy: 1
rules:
  - {from: web, to: db, ports: [tcp/5432, tcp/4]}  # all of it
  - {from: anyone, to: web, ports: [tcp/443]}
tests:
  - {from: web, to: db, port: tcp/22, expect: allowed}
"""


async def test_a_policy_is_planned_as_it_is_written_and_its_tests_are_run(lab):
    await enrolled(lab)
    found = await planned(lab, policy=POLICY, since=WINDOW["since"], until=WINDOW["until"])
    assert found["plan"]["replay"]["blocked"] == 0
    assert [one["number"] for one in found["plan"]["broken_tests"]] == [0]
    assert found["proposal"] is None
    listed = (await lab.asks("GET", "/segment/plans", params={"limit": 1})).json()["items"]
    assert (listed[0]["id"], listed[0]["services"], listed[0]["would_block"]) == (found["id"], 2, 0)


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({}, 400, "a proposal or a policy, one of both"),
        ({"proposal": 1, "policy": "policy: 1"}, 400, "one of both"),
        ({"proposal": 999_999}, 404, "there is no proposal 999999"),
        (
            {"policy": "policy: 1\nrules:\n  - {from: web, to: db, ports: [tcp/0]}"},
            400,
            "line 3: rules[0].ports[0]",
        ),
        ({"policy": "policy: 1", "strategy": {"canary_share": 2}}, 400, "canary_share"),
    ],
)
async def test_what_cannot_be_planned_is_refused_at_once(lab, asked, status, words):
    answer = await lab.asks("POST", "/segment/plan", json=asked)
    assert (answer.status_code in (status, 422), words in answer.text) == (True, True), answer.text


async def test_a_name_that_nobody_has_fails_with_its_rule(lab):
    text = "policy: 1\nrules:\n  - {from: wbe, to: db, ports: [tcp/1]}"
    operation = await lab.ended(await lab.asks("POST", "/segment/plan", json={"policy": text}))
    assert (operation["state"], operation["error"]) == (
        "failed",
        "line 3: rules[0].from: no service, group or kind of end is named 'wbe'; did you mean web?",
    )


async def test_an_approval_is_of_this_plan_by_another_person_while_nothing_changed(lab):
    await enrolled(lab)
    store = lab.segmenter.parts.store
    for name in ("ann", "bob"):
        await store.run("add_token", name, name, "approver", hashed(name), 0, "test", None, None, None)
    found = await planned(lab, "ann", policy=POLICY)
    path, digest = f"/segment/plans/{found['id']}/approve", {"digest": found["digest"]}

    async def says(who, body=digest):
        return await lab.asks("POST", path, who, json=body)

    assert (await says("operator")).status_code == 403
    own = await says("ann")
    assert (own.status_code, "ann made it" in own.text) == (403, True)
    other = await says("bob", {"digest": "sha256:" + "0" * 64})
    assert (other.status_code, "expected its digest" in other.text) == (409, True)
    assert (await says("bob")).json()["approved_by"] == "bob"
    await store.run("put_host", "w9", b"k" * 32, {"role": "web"}, 0)
    late = await says("bob")
    assert (late.status_code, "plan again" in late.text) == (409, True)
    shown = (await lab.asks("GET", f"/segment/plans/{found['id']}")).json()
    assert shown["stale"] == ["web: its hosts changed: w9"]
    await store.run("release_host", "w9", 1)


async def test_what_appeared_since_and_would_be_cut_stands_in_the_way_unless_its_caller_is_suspected(lab):
    await enrolled(lab)
    store = lab.segmenter.parts.store
    await store.run("add_token", "eve", "eve", "approver", hashed("eve"), 0, "test", None, None, None)
    policy = POLICY.replace(", tcp/4]", "]")
    found = await planned(lab, policy=policy, since="2026-11-19T00:00:00Z", until="2026-11-20T00:00:00Z")
    assert "tcp/4" not in {line["what"] for line in found["plan"]["replay"]["lines"]}
    path, said = f"/segment/plans/{found['id']}/approve", {"digest": found["digest"], "accept_blocked": True}
    late = await lab.asks("POST", path, "eve", json=said)
    assert late.status_code == 409
    assert "web -> db tcp/4 appeared since, and it would cut it" in late.json()["detail"]
    await store.run("suspect", "w1", "", "", 1.0, "ada")
    assert (await lab.asks("POST", path, "eve", json=said)).status_code == 200
    await store.run("trust", "w1", "")


async def in_force(store, part):
    """The snapshot that a plan has for a service lies on its first host."""
    snapshot = part["snapshot"]
    number, version, host = snapshot["service_id"], snapshot["version"], part["hosts"][0]
    body = zstandard.compress(msgspec.json.encode(snapshot))
    digests = [f"sha256:{n}" * 3 for n in "123"]
    said = 600, "enforce", "keep", "keep", 1, "ada", None, body, b"", "key", b"", None, None, None
    await store.run("put_content", number, version, *digests, 1, 1, *said)
    await store.run("assign", [number], [host], [version], [1 << 40], [False], 1)


async def test_what_was_kept_is_computed_again_from_what_it_was_made_of(lab):
    """Also when hosts came meanwhile; and it is said when it rests on flows that are others now."""
    await enrolled(lab)
    window = {"since": "2026-11-19T00:00:00Z", "until": "2026-11-21T00:00:00Z"}
    store, first = lab.segmenter.parts.store, await planned(lab, policy=POLICY, **window)
    await in_force(store, next(one for one in first["plan"]["services"] if one["service"] == "db"))
    kept, found = await lab.proposed(**window), await planned(lab, policy=POLICY, **window)
    assert [one["service"] for one in found["plan"]["services"]] == ["web"]
    paths = f"proposals/{kept['id']}", f"plans/{found['id']}"

    async def again(path):
        return await lab.ended(await lab.asks("POST", f"/segment/{path}/recompute"))

    await store.run("put_host", "w9", b"k" * 32, {"role": "web"}, 0)
    for path in paths:
        operation = await again(path)
        assert (operation["state"], operation["result"]) == ("done", f"/segment/{path}"), operation
    late = enriched(flow(1, BEGIN + SECOND, peer="10.0.1.0"), host="w1", boot="boot-late")
    await lab.segmenter.parts.facts.commit([late])
    for path in paths:
        operation = await again(path)
        assert operation["state"] == "failed"
        assert "expected flows with the digest sha256:" in operation["error"]
    await store.run("release_host", "w9", 1)
    await store.run("unassign", 102, ["d1"])
    missing = await lab.asks("POST", "/segment/plans/999999/recompute")
    assert (missing.status_code, missing.json()["detail"]) == (404, "there is no plan 999999")
