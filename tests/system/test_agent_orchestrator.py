"""A real agent process and the real orchestrator: enrolment, a post in force, commit-confirm, convergence."""

import asyncio
from dataclasses import replace

import msgspec
import pytest
import pytest_asyncio
from tests.support.control import WHO, body, running_plane
from tests.support.netns import own_cgroup

from aegisflux.wire.token import EnrollRequest
from support.agent_process import AgentProcess, EnrollServer
from support.engines import eventually

pytestmark = [pytest.mark.engines, pytest.mark.asyncio]
FAST = {"heartbeat_seconds": "0.3", "tick_seconds": "0.2", "refresh_seconds": "1"}
WINDOW = 3


class Door(EnrollServer):
    """The orchestrator's enrolment behind an HTTP server of the test's own."""

    def __init__(self, plane, loop) -> None:
        self.control, self.loop = plane, loop
        super().__init__(plane.lab, plane)

    def enroll(self, request: EnrollRequest) -> tuple[int, bytes]:
        work = self.control.orchestrator.hosts.enroll(request, WHO)
        return 200, msgspec.json.encode(asyncio.run_coroutine_threadsafe(work, self.loop).result(10))


@pytest_asyncio.fixture
async def plane(tmp_path):
    """Its service selects a cgroup that is there."""
    with own_cgroup("web") as path:
        async with running_plane(tmp_path / "control", confirm_seconds=WINDOW) as found:
            await found.orchestrator.registry.put(101, "web", [f"cgroup:{path}"], {}, WHO)
            yield found


@pytest_asyncio.fixture
async def agent(plane, tmp_path):
    """web1, enrolled over HTTP with a token of the orchestrator."""
    door = Door(plane, asyncio.get_running_loop())
    core = plane.orchestrator.core
    core.options = replace(core.options, enroll_url=door.url)
    found = AgentProcess(tmp_path, datapath="simulated", **FAST)
    try:
        made = await plane.orchestrator.hosts.token({"role": "web"}, None, 600, WHO)
        done = await found.acall("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=made.token)
        assert done.returncode == 0, done.stderr
        yield found
    finally:
        found.close()
        door.close()


async def state_of(plane, version: int) -> str:
    status = await plane.orchestrator.views.status(101)
    hosts = [h for h in status.hosts if h.observed is not None and h.observed.version == version]
    return hosts[0].state if hosts else ""


async def is_in_force(plane, version: int) -> bool:
    return await state_of(plane, version) == "in_force"


async def post(plane, version: int, **fields) -> None:
    await plane.orchestrator.snapshots.post(body(101, version, **fields), ["web1"], "", WHO)


async def test_a_post_is_in_force_confirmed_and_stays(plane, agent):
    agent.start()
    await post(plane, 1)
    await eventually(lambda: is_in_force(plane, 1), 20)
    await asyncio.sleep(WINDOW + 1)
    assert await is_in_force(plane, 1), "confirmed within the window"
    status = await agent.status()
    assert [(s["service_id"], s["state"], s["version"]) for s in status["services"]] == [(101, "in_force", 1)]


async def test_an_agent_that_was_away_and_one_that_is_killed_converge(plane, agent):
    await post(plane, 1)
    await post(plane, 2)
    agent.start()
    await eventually(lambda: is_in_force(plane, 2), 20)
    for version in (3, 4, 5):
        await post(plane, version)
        agent.kill()
        agent.start()
    await eventually(lambda: is_in_force(plane, 5), 20)
    await asyncio.sleep(WINDOW + 1)
    assert await is_in_force(plane, 5)


@pytest_asyncio.fixture
async def db(plane):
    """A second service."""
    with own_cgroup("db") as path:
        yield await plane.orchestrator.registry.put(102, "db", [f"cgroup:{path}"], {}, WHO)


async def test_two_services_are_both_confirmed(plane, agent, db):
    agent.start()
    await post(plane, 1)
    await plane.orchestrator.snapshots.post(body(102, 1), ["web1"], "", WHO)
    await eventually(lambda: is_in_force(plane, 1), 20)
    await asyncio.sleep(WINDOW + 1)
    status = await agent.status()
    assert [s["state"] for s in status["services"]] == ["in_force", "in_force"]
