"""Enrich on a real NATS, a real PostgreSQL and the embedded graph: raw batches in, answers out."""

import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from msgspec import Raw
from tests.support.believing import Trusting
from tests.support.engines import eventually, opened, running_nats
from tests.support.facts import NOON, execed, flow, listen

from aegisflux.adapters.engines.postgres import PostgresEngine
from aegisflux.adapters.graph.ladybug import LadybugGraph
from aegisflux.adapters.store.facts import PostgresFacts
from aegisflux.adapters.store.postgres import PostgresStore
from aegisflux.domain.event import EventBatch
from aegisflux.domain.inventory import Package, PackageInventory, System, digest_of
from aegisflux.runtime.access import hashed
from aegisflux.runtime.clock import WallClock
from aegisflux.runtime.supervise import Process
from aegisflux.services.enrich.api import application
from aegisflux.services.enrich.app import Enrich, Parts
from aegisflux.services.enrich.refill import refill
from aegisflux.wire import events, subjects
from aegisflux.wire.inventory import encode_inventory

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
DAY = 86_400
KEEP = {"flows": 14 * DAY, "events": 30 * DAY, "flow_minutes": 400 * DAY, "sources": 400 * DAY}
REGISTRY = """
insert into services (id, name, selectors, host_labels, created_at) values
  (101, 'web', '{unit:web}', '{}', 1), (102, 'db', '{unit:db}', '{}', 1);
insert into hosts (host_id, labels, enrolled_at, addresses) values
  ('web-1', '{"role": "web"}', 1, '{10.0.0.1}'), ('db-1', '{}', 1, '{10.0.0.2}');
"""
WINDOW = {"since": "2026-11-24T11:00:00Z", "until": "2026-11-24T13:00:00Z"}


class Lab:
    """A running enrich; `get` asks its API as a viewer."""

    def __init__(self, bus, enrich, client, dsn):
        self.bus, self.enrich, self.client, self.dsn = bus, enrich, client, dsn

    async def send(self, host, *given, boot="b"):
        batch = EventBatch(host_id=host, boot_id=boot, sent_ns=NOON, events=given)
        first, last = given[0].seq, given[-1].seq
        taken = events.encode_taken([events.Sealed(0, 0, Raw(events.encode_batch(batch)))])
        await self.bus.publish(subjects.RAW, taken, msg_id=f"{host}:{boot}:{first}-{last}:{time.time_ns()}")

    async def get(self, path, **query):
        answer = await self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("enrich")
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(running_nats(folder))
        engine = PostgresEngine(folder / "postgres", log=folder / "postgres.log")
        process = Process(engine.child(), folder / "run")
        await process.start()
        stack.push_async_callback(process.stop)
        store = PostgresStore(engine.dsn, b"k" * 32)
        await store.open()
        stack.push_async_callback(store.close)
        await store._runner.execute(REGISTRY)
        await store.run(
            "add_token", "t", "viewer", "viewer", hashed("afx_viewer"), 1, "test", None, None, None
        )
        bus = await stack.enter_async_context(opened(nats.bus(nats.accounts.control_creds(int(time.time())))))
        facts = PostgresFacts(engine.dsn)
        stack.push_async_callback(facts.close)
        graph = LadybugGraph(folder / "graph")
        parts = Parts(
            bus=bus,
            facts=facts,
            graph=graph,
            store=store,
            clock=WallClock(),
            believer=Trusting(),
            keep_seconds=KEEP,
        )
        enrich = Enrich(parts)
        await enrich.start()
        stack.push_async_callback(enrich.close)
        transport = httpx.ASGITransport(application(enrich))
        client = httpx.AsyncClient(
            transport=transport, base_url="http://x", headers={"Authorization": "Bearer afx_viewer"}
        )
        await stack.enter_async_context(client)
        yield Lab(bus, enrich, client, engine.dsn)


async def test_flows_are_between_named_services(lab):
    await lab.send("db-1", listen(1, cgroup="/system.slice/db.service"))
    await lab.send("web-1", execed(1), flow(2, path="/usr/bin/psql"), flow(3, peer="203.0.113.9", port=443))

    async def page():
        found = (await lab.get("/api/v1/flows", **WINDOW))["items"]
        return found if len(found) == 2 else None

    newest, oldest = await eventually(page)
    assert (newest["seq"], newest["peer_class"], newest["peer_service"]) == (3, "documentation", "")
    assert (oldest["service"], oldest["peer_service"], oldest["peer_host"]) == ("web", "db", "db-1")
    assert oldest["time"] == "2026-11-24T12:00:00+00:00"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("from=web to=db", 1),
        ("to=203.0.113.9", 1),
        ("from=db", 0),
        ("-to=db", 1),
        ("port=443,5432", 2),
        ("-port=443", 1),
        ("peer=203.0.113.0/24", 1),
        ("-peer=203.0.113.0/24", 1),
        ("verdict=blocked", 0),
        ("verdict=allowed proto=tcp host=web-1", 2),
        ('path="/usr/bin/psql"', 1),
        ("service=db", 1),
        ("class=documentation", 1),
        ("direction=egress -reason=allow", 0),
    ],
)
async def test_filters(lab, text, count):
    assert len((await lab.get("/api/v1/flows", filter=text, **WINDOW))["items"]) == count


@pytest.mark.parametrize(
    "query", [{"filter": "nonsense"}, {"filter": "port=x"}, {"cursor": "%"}, {"limit": 0}]
)
async def test_what_is_not_understood_is_refused(lab, query):
    answer = await lab.client.get("/api/v1/flows", params=query)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_pages_and_following(lab):
    first = await lab.get("/api/v1/flows", limit=1, **WINDOW)
    second = await lab.get("/api/v1/flows", limit=1, cursor=first["next_cursor"], **WINDOW)
    assert [page["items"][0]["seq"] for page in (first, second)] == [3, 2]
    followed = await lab.get("/api/v1/flows", follow=True, **WINDOW)
    assert [item["seq"] for item in followed["items"]] == [2, 3]
    await lab.send("web-1", flow(4, NOON + 10**9))

    async def more():
        page = await lab.get("/api/v1/flows", follow=True, cursor=followed["next_cursor"], **WINDOW)
        return [item["seq"] for item in page["items"]]

    assert await eventually(more) == [4]


async def test_events_carry_what_was_known(lab):
    (found,) = (await lab.get("/api/v1/events", filter="kind=exec host=web-1", **WINDOW))["items"]
    assert found["body"]["event"]["args"] == ["env", "x"]
    assert (found["path"], found["user_name"]) == ("/usr/bin/env", "33")


async def test_the_summary_names_both_ends(lab):
    found = await lab.get("/api/v1/flows/summary", **WINDOW)
    assert {"client": "web", "server": "db", "port": 5432}.items() <= found[0].items()
    weeks = {"since": "2026-11-01T00:00:00Z", "until": "2026-12-01T00:00:00Z"}
    long = await lab.get("/api/v1/flows/summary", **weeks)
    assert [row["flows"] for row in long] == [row["flows"] for row in found], "by hours it is the same"


async def test_enriched_batches_are_on_the_bus(lab):
    message = await lab.bus.last(subjects.ENRICHED)
    batch = events.decode_enriched(message.payload)[-1]
    assert batch.events[0].context.service == "web"


async def test_inventories_are_kept_with_their_changes(lab):
    def taken(*versions):
        packages = tuple(Package(type="deb", name="nginx", version=version) for version in versions)
        system = System(id="debian")
        return PackageInventory(
            host_id="web-1",
            taken_ns=NOON,
            digest=digest_of(system, packages),
            system=system,
            packages=packages,
        )

    for number, version in enumerate(("1", "2")):
        await lab.bus.publish(
            subjects.inventory("web-1"), encode_inventory(taken(version)), msg_id=f"i{number}"
        )

        async def has(version=version):
            items = (await lab.get("/api/v1/packages", name="nginx"))["items"]
            return [item["version"] for item in items] == [version]

        await eventually(has)
    changes = await lab.get("/api/v1/packages/changes", since="2026-11-24T11:00:00Z")
    assert sorted((c["added"], c["version"]) for c in changes) == [(False, "1"), (True, "1"), (True, "2")]


async def test_who_reaches_a_service_and_what_a_host_exposes(lab):
    await lab.enrich.graphed.flush()
    reach = await lab.get("/api/v1/graph/reach/db")
    assert (reach["hosts"], [way["actor"] for way in reach["reached_by"]]) == (["db-1"], ["service:web"])
    radius = await lab.get("/api/v1/graph/blast-radius/web-1")
    assert radius["services"] == ["web"]
    assert [way["actor"] for way in radius["reaches"]] == ["endpoint:203.0.113.9", "service:db"]
    assert radius["software"]["packages"] == 1
    assert (await lab.client.get("/api/v1/graph/reach/nobody")).status_code == 404


async def test_an_empty_graph_is_filled_from_the_store(lab):
    """What was asked before is answered the same after the graph is gone."""
    await lab.enrich.graphed.flush()
    graph, facts = lab.enrich.parts.graph, lab.enrich.parts.facts
    paths = ("/api/v1/graph/reach/db", "/api/v1/graph/reach/web", "/api/v1/graph/blast-radius/web-1")
    before = [await lab.get(path) for path in paths]
    assert before[0]["reached_by"]
    assert await refill(graph, facts, time.time()) == 0, "it is not empty"
    await graph.clear()
    assert await refill(graph, facts, time.time()) > 0
    assert [_timeless(await lab.get(path)) for path in paths] == list(map(_timeless, before))


def _timeless(answer):
    """The store keeps microseconds."""
    if isinstance(answer, dict):
        return {name: _timeless(value) for name, value in answer.items() if name != "last_ns"}
    return list(map(_timeless, answer)) if isinstance(answer, list) else answer


async def test_a_change_of_the_registry_holds_for_the_next_event(lab):
    await lab.enrich.parts.facts._writer.execute("update services set name = 'front' where id = 101")

    async def named():
        await lab.send("web-1", flow(time.time_ns()))
        batch = events.decode_enriched((await lab.bus.last(subjects.ENRICHED)).payload)[-1]
        return batch.events[0].context.service == "front"

    await eventually(named)


async def test_without_a_token_nothing_is_told(lab):
    for path in ("/api/v1/flows", "/api/v1/events", "/api/v1/graph/reach/db", "/metrics"):
        answer = await lab.client.get(path, headers={"Authorization": "Bearer nobody"})
        assert answer.status_code == 401
    assert (await lab.client.get("/healthz")).status_code == 200
    ready = (await lab.client.get("/readyz")).json()
    assert [line["name"] for line in ready["dependencies"]] == ["store", "bus", "graph", "enrich", "tokens"]
