"""Each verb of each service that changes something writes a line of the audit log, or is known here with the
reason why not: by the route tables of the services, over HTTP, on a real store."""

import asyncio
from contextlib import AsyncExitStack

import httpx
import pytest
import pytest_asyncio
from nacl.signing import SigningKey
from tests.support.control import body, request_of
from tests.support.engines import eventually
from tests.support.rollouts import GATE, running_fleet, running_world

from aegisflux.domain.roles import Principal
from aegisflux.runtime import access
from aegisflux.services.enrich import api as enrich
from aegisflux.services.ingest import api as ingest
from aegisflux.services.orchestrator import api as orchestrator
from aegisflux.services.segmenter import api as segmenter
from aegisflux.services.segmenter.operations import Operation

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]
SERVICES = {one.__name__.split(".")[-2]: one for one in (orchestrator, ingest, enrich, segmenter)}
VERBS = {"POST", "PUT", "DELETE", "PATCH"}
LINES = {
    "orchestrator": {
        "POST /api/v1/enroll": "host.enroll",
        "POST /seg/maps": "snapshot.post",
        "POST /seg/maps/promote": "snapshot.promote",
        "POST /seg/maps/rollback": "snapshot.rollback",
        "DELETE /seg/maps/{service_id}": "snapshot.withdraw",
        "POST /api/v1/services": "service.put",
        "POST /api/v1/services/{service_id}/health": "service.health",
        "DELETE /api/v1/services/{service_id}": "service.delete",
        "POST /api/v1/services/{service_id}/approve": "service.put",
        "POST /api/v1/services/{service_id}/discard": "service.discard",
        "PUT /api/v1/hosts/{host_id}/labels": "host.relabel",
        "POST /api/v1/hosts/{host_id}/suspicion": "host.suspicion",
        "DELETE /api/v1/hosts/{host_id}": "host.release",
        "POST /api/v1/hosts/tokens": "host.token",
        "POST /api/v1/tokens": "token.issue",
        "DELETE /api/v1/tokens/{token_id}": "token.revoke",
        "POST /api/v1/keys/rotate": "keys.add",
        "POST /api/v1/rollouts": "rollout.observe",
        "POST /api/v1/rollouts/{number}/promote": "rollout.canary",
        "POST /api/v1/rollouts/{number}/pause": "rollout.observe",
        "POST /api/v1/rollouts/{number}/resume": "rollout.observe",
        "POST /api/v1/rollouts/{number}/abort": "rollout.aborted",
        "POST /api/v1/rollouts/{number}/rollback": "rollout.rolled_back",
        "POST /api/v1/panic": "panic",
    },
    "segmenter": {
        "POST /segment/propose": "segment.propose",
        "DELETE /segment/operations/{operation}": "segment.cancel",
        "POST /segment/plan": "segment.plan",
        "POST /segment/plans/{number}/approve": "segment.approve",
    },
    "ingest": {"POST /api/v1/dead/{number}/replay": "dead.replay"},  # tests/services/test_ingest.py
    "enrich": {},
}
WITHOUT = {
    "orchestrator": {
        "POST /api/v1/enroll/renew": "an enrolled key keeps the right that it has; nothing is stored",
    },
    "ingest": {"POST /api/v1/events": "telemetry, thousands a second; each event is stored with its host"},
    "segmenter": {
        "POST /segment/proposals/{number}/recompute": "compares and keeps nothing",
        "POST /segment/plans/{number}/recompute": "compares and keeps nothing",
    },
}


def routes(service):
    """The verbs of a service that are no GET, from the application's own table of routes."""
    app = SERVICES[service].application(None)
    return {
        f"{method} {route.path_format}"
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        for method in handler.http_methods
        if method in VERBS
    }


@pytest.mark.parametrize("service", SERVICES)
async def test_every_verb_is_known_here(service):
    known = {*LINES[service], *WITHOUT.get(service, {})}
    assert routes(service) == known, "give it a line of the audit log, or a reason, and tell it here"


# Named queries, what they are given, and the columns that only a request changes.
TABLES = (
    ("services", (), ("id", "name", "selectors", "host_labels")),
    ("held_changes", (None,), ("id", "service_id", "name", "host_labels", "reason")),
    ("hosts", (), ("host_id", "public_key", "labels", "released_at")),
    ("all_assigned", (), ("host_id", "service_id")),
    ("tokens", (), ("id", "name", "revoked_at")),
    ("suspicions", (), ("host_id", "finding", "detail")),
)


def with_dry_run(service):
    """The routes of a service that can be tried, as its OpenAPI document says."""
    document = SERVICES[service].application(None).openapi_schema.to_schema()
    return {
        f"{method.upper()} {path}"
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method.upper() in VERBS
        if any(one["name"] == "dry_run" for one in operation.get("parameters", ()))
    }


TRIED = {name: with_dry_run(name) for name in SERVICES}


class Anybody:
    """Bearers that know every token, as an admin of that name, or an operator."""

    async def principal(self, token, *, fresh=True):
        return Principal(token, "operator" if token == "op" else "admin", id=token)


class Asked:
    """Requests over HTTP to the orchestrator and the segmenter, and the lines that came of each."""

    def __init__(self, fleet, clients):
        self.fleet, self.clients, self.done = fleet, clients, {name: {} for name in SERVICES}
        self.store, self.tried = fleet.plane.store, {name: set() for name in SERVICES}

    async def newest(self):
        return (await self.store.audit_log())[0].seq

    async def lines(self, since, actor):
        rows = await self.store.rows("audit_lines", since, None)
        return [row["action"] for row in rows if row["actor"] in (actor, "system")]

    async def ask(self, service, route, json=None, content=None, actor="ann", query="", **places):
        """A request by its route; the answer. What it wrote into the log is kept."""
        method, _, path = route.partition(" ")
        headers = {"Authorization": f"Bearer {actor}"}
        if route in TRIED[service]:
            url = f"{path.format(**places)}{query}{'&' if query else '?'}dry_run=true"
            await self.tries(service, method, url, json, headers)
            self.tried[service].add(route)
        since = await self.newest()
        answer = await self.clients[service].request(
            method, path.format(**places) + query, json=json, content=content, headers=headers
        )
        assert answer.status_code < 300, (route, answer.text)
        found = answer.json() if answer.content else None
        if answer.status_code == 202 and found.get("state") == "running":
            found = await eventually(lambda: self.ended(found["id"]), 20)
            assert found["state"] == "done", found
        self.done[service].setdefault(route, []).extend(await self.lines(since, actor))
        return found

    async def tries(self, service, method, url, json, headers):
        """The same request as a dry run passes, and leaves tables and the log as they are."""
        before = await self.tables()
        answer = await self.clients[service].request(method, url, json=json, headers=headers)
        assert answer.status_code < 300, (method, url, answer.text)
        assert await self.tables() == before, (method, url)

    async def tables(self):
        """What a request could change, but for what heartbeats, renewals and the clock do."""
        found = {
            name: [{key: row[key] for key in keys} for row in await self.store.rows(name, *given)]
            for name, given, keys in TABLES
        }
        return found | {"log": await self.newest()}

    async def ended(self, number):
        headers = {"Authorization": "Bearer ann"}
        answer = await self.clients["segmenter"].get(f"/segment/operations/{number}", headers=headers)
        return answer.json() if answer.json()["state"] != "running" else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asked(tmp_path_factory):
    async with (
        running_world(tmp_path_factory.mktemp("verbs")) as world,
        running_fleet(world, 400) as fleet,
        AsyncExitStack() as stack,
    ):
        plane, _, behind = world
        clients = {}
        for name, app in (
            ("orchestrator", orchestrator.application(plane.orchestrator)),
            ("segmenter", segmenter.application(behind)),
        ):
            app.state[access.STATE] = Anybody()
            transport = httpx.ASGITransport(app)
            client = httpx.AsyncClient(transport=transport, base_url="http://it")
            clients[name] = await stack.enter_async_context(client)
        behind.started = True
        yield Asked(fleet, clients)


async def test_every_verb_of_the_orchestrator_and_the_segmenter_writes_its_line(asked):
    for part in (_hosts_and_tokens, _services, _segmenter, _rollouts, _keys):
        await part(asked)
    for service in ("orchestrator", "segmenter"):
        missing = {
            route: (action, asked.done[service].get(route, "never asked"))
            for route, action in LINES[service].items()
            if action not in asked.done[service].get(route, ())
        }
        assert not missing
        assert asked.tried[service] == TRIED[service]


async def _hosts_and_tokens(asked):
    o = "orchestrator"
    made = await asked.ask(o, "POST /api/v1/tokens", {"name": "bob", "role": "viewer"})
    await asked.ask(o, "DELETE /api/v1/tokens/{token_id}", token_id=made["id"])
    token = await asked.ask(o, "POST /api/v1/hosts/tokens", {})
    request = request_of(token["token"], "fresh", SigningKey.generate())
    told = {name: getattr(request, name) for name in request.__struct_fields__}
    await asked.ask(o, "POST /api/v1/enroll", told)
    await asked.ask(o, "PUT /api/v1/hosts/{host_id}/labels", {"labels": {"a": "b"}}, host_id="fresh")
    await asked.ask(o, "POST /api/v1/hosts/{host_id}/suspicion", {"suspicious": True}, host_id="fresh")
    await asked.ask(o, "DELETE /api/v1/hosts/{host_id}", host_id="fresh")


async def _services(asked):
    o, host = "orchestrator", asked.fleet.hosts[0]
    await asked.ask(o, "POST /api/v1/services", {"id": 900, "name": "nine", "host_labels": {"x": "nobody"}})
    await asked.ask(o, "POST /api/v1/services/{service_id}/health", {"healthy": True}, service_id=900)
    for version in (1, 2):
        await asked.ask(o, "POST /seg/maps", content=body(900, version), query=f"?target_host={host}")
        await asked.ask(o, "POST /seg/maps/promote", {"service_id": 900})
    wanted = {"id": 900, "name": "nine", "host_labels": {"x": "nobody"}, "selectors": ["unit:nine"]}
    for verb in ("discard", "approve"):
        held = await asked.ask(o, "POST /api/v1/services", wanted, actor="op")
        change = {"change": held["waits"]["id"]}
        await asked.ask(o, f"POST /api/v1/services/{{service_id}}/{verb}", change, service_id=900)
    await asked.ask(o, "POST /seg/maps/rollback", {"service_id": 900, "to_version": 1})
    await asked.ask(o, "POST /api/v1/panic", {"service_id": 900})
    await asked.ask(o, "DELETE /seg/maps/{service_id}", service_id=900)
    await asked.ask(o, "DELETE /api/v1/services/{service_id}", service_id=900)


async def _planned(asked, port):
    name, canary = f"s{asked.fleet.service}", [asked.fleet.hosts[0]]
    rule = f"  - {{from: {name}, to: 10.0.1.0/24, ports: [tcp/{port}]}}\n"
    gate = {"least_seconds": 3600.0, "least_flows": GATE.least_flows, "silent_seconds": GATE.silent_seconds}
    strategy = {
        "canary_hosts": canary,
        "gate": gate,
        "limits": {"most_of_fleet": 1.0, "changes_an_hour": 1000},
    }
    policy = f"policy: 1\nttl_seconds: 600\nrules:\n{rule}"
    found = await asked.ask("segmenter", "POST /segment/plan", {"policy": policy, "strategy": strategy})
    number = int(found["result"].rpartition("/")[2])
    plan = await asked.clients["segmenter"].get(
        f"/segment/plans/{number}", headers={"Authorization": "Bearer ann"}
    )
    approve = {"digest": plan.json()["digest"], "accept_blocked": True}
    await asked.ask("segmenter", "POST /segment/plans/{number}/approve", approve, actor="bob", number=number)
    return number


async def _segmenter(asked):
    await asked.ask("segmenter", "POST /segment/propose", {})
    operations = asked.fleet.segmenter.operations
    started = asyncio.Event()

    async def work(_told):
        started.set()
        await asyncio.Event().wait()

    running: Operation = operations.begin("plan", work, "a")
    await started.wait()
    await asked.ask("segmenter", "DELETE /segment/operations/{operation}", operation=running.id)


async def _rollouts(asked):
    o = "orchestrator"

    async def move(number, verb):
        carried = (await asked.fleet.rollouts.one(number)).rollout
        seen = {"stage": carried.run.stage, "turn": carried.run.at}
        return await asked.ask(o, f"POST /api/v1/rollouts/{{number}}/{verb}", seen, number=number)

    async def begun(port):
        found = await asked.ask(o, "POST /api/v1/rollouts", {"plan": await _planned(asked, port)})
        return found["rollout"]["id"]

    first = await begun(5432)
    for verb in ("pause", "resume", "abort"):
        await move(first, verb)
    second = await begun(6379)
    for verb in ("promote", "rollback"):
        await move(second, verb)


async def _keys(asked):
    await asked.ask("orchestrator", "POST /api/v1/keys/rotate", {})
