"""The orchestrator on a real NATS and a real PostgreSQL, with scripted agents."""

import asyncio
import json

import pytest
import pytest_asyncio
from nacl.signing import SigningKey

from aegisflux.domain.errors import Conflict, Forbidden, Invalid
from aegisflux.domain.manifest import Ack, ServiceReport
from aegisflux.domain.rollout import StaleVersion
from aegisflux.services.orchestrator.views import Asked
from aegisflux.wire import envelope, subjects
from tests.support.control import WHO, body, request_of, running_plane
from tests.support.engines import eventually

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


async def test_a_post_ends_as_an_ack_in_the_store(plane):
    agent = await plane.agent("web-1")
    answer = await plane.orchestrator.snapshots.post(body(101, 7), ["web-1"], "", WHO)
    assert answer.accepted and answer.version == 7 and answer.target_hosts == ("web-1",)

    async def in_force():
        status = await plane.orchestrator.views.status(101)
        await agent.beat()
        return (
            status.hosts
            and status.hosts[0].state == "in_force"
            and status.hosts[0].observed.digest == answer.digest
        )

    await eventually(in_force)
    sealed = envelope.decode_envelope(await agent.fetch(answer.digest), 1 << 20)
    assert sealed.payload_type == envelope.CONTENT
    await eventually(lambda: agent.confirms)
