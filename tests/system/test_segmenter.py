"""The segmenter on a real PostgreSQL: from stored flows to a proposal and its policy, over HTTP."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from msgspec.structs import replace
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
            await store.run("add_token", str(number), role, role, hashed(role), 0, "test", None, None)
        for number, name in ((101, "web"), (102, "db")):
            await store.run("put_service", number, name, [], {}, 0)
        await store_flows(facts)
        segmenter = Segmenter(Parts(store=store, facts=facts, clock=WallClock()))
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
    first, second = [await lab.proposed() for _ in range(2)]
    assert second["id"] == first["id"] + 1
    for part in ("proposal", "flows_digest", "flows", "asked"):
        assert first[part] == second[part]
    listed = (await lab.asks("GET", "/segment/proposals", params={"limit": 1})).json()
    assert [item["id"] for item in listed["items"]] == [second["id"]] == [listed["next_cursor"]]
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
    kept = await lab.proposed(suspicious=["w1"])
    assert kept["proposal"]["left_out"] == {"web@w1": "marked as suspicious"}
    assert ("web", 4) not in {(r["client"], r["port"]) for r in kept["proposal"]["rules"]}
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
    before = (await lab.asks("GET", "/segment/proposals")).json()["items"][0]["id"]
    operation = (await lab.asks("POST", "/segment/propose", json=WINDOW)).json()
    await begun.wait()
    path = f"/segment/operations/{operation['id']}"
    assert (await lab.asks("GET", path)).json()["step"].startswith("finding groups and rules in")
    assert (await lab.asks("DELETE", path, "viewer")).status_code == 403
    assert (await lab.asks("DELETE", path)).json()["state"] == "cancelled"
    assert (await lab.asks("DELETE", path)).status_code == 409
    assert (await lab.asks("GET", "/segment/proposals")).json()["items"][0]["id"] == before


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
    assert [line["name"] for line in ready["dependencies"]] == ["store", "facts", "segmenter"]
