"""What the control plane gives a host whose credentials end: to whom, and to nobody else."""

import httpx
import msgspec
import pytest
import pytest_asyncio
from nacl.signing import SigningKey
from tests.support.control import WHO, running_plane
from tests.support.engines import eventually, opened

from aegisflux.services.orchestrator.api import application
from aegisflux.wire import natsjwt, subjects
from aegisflux.wire.natsjwt import Credentials
from aegisflux.wire.token import RENEW_PATH, Renewed, RenewRequest, b64, renewal_bytes

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with running_plane(tmp_path_factory.mktemp("plane")) as plane:
        plane.agent_1 = await plane.enroll("web-1")
        transport = httpx.ASGITransport(application(plane.orchestrator))
        async with httpx.AsyncClient(transport=transport, base_url="http://plane") as client:
            plane.http = client
            yield plane


def proof(key: SigningKey, host: str, context: bytes | None = None) -> str:
    return b64(key.sign(context or renewal_bytes(host)).signature)


async def posted(plane, host, text):
    body = msgspec.json.encode(RenewRequest(host, text))
    return await plane.http.post(RENEW_PATH, content=body, headers={"Content-Type": "application/json"})


async def test_a_host_that_proves_its_key_gets_credentials_that_work(plane):
    agent = plane.agent_1
    answer = await posted(plane, "web-1", proof(agent.key, "web-1"))
    assert answer.status_code == 200, answer.text
    found = msgspec.json.decode(answer.content, type=Renewed)
    claims = natsjwt.claims(found.user_jwt)
    assert claims["sub"] == natsjwt.public_nkey("user", bytes(agent.key.verify_key))
    async with opened(plane.lab.bus(Credentials(found.user_jwt, bytes(agent.key)))) as bus:
        over_bus = msgspec.json.decode(await bus.request(subjects.credentials("web-1"), b""), type=Renewed)
    assert natsjwt.claims(over_bus.user_jwt)["sub"] == claims["sub"]


@pytest.mark.parametrize("host", ["web-1", "nobody", "", "*", ">", "a.b", "x" * 5000])
async def test_without_the_key_of_the_host_there_is_one_answer(plane, host):
    answer = await posted(plane, host, proof(SigningKey.generate(), host))
    assert answer.status_code == 403, answer.text
    assert "no host of this name is enrolled with the key of this proof" in answer.text


@pytest.mark.parametrize("text", ["", "x", "=" * 88, b64(bytes(63))])
async def test_a_proof_that_is_none(plane, text):
    assert (await posted(plane, "web-1", text)).status_code in (400, 403, 422)


async def test_a_signature_for_something_else_is_no_proof(plane):
    agent = plane.agent_1
    for context in (b"web-1", renewal_bytes("web-2"), b"aegisflux-enroll-v1\0" + b"web-1"):
        assert (await posted(plane, "web-1", proof(agent.key, "web-1", context))).status_code == 403


async def test_a_released_host_is_cut_off_and_gets_nothing_anew(plane):
    agent = await plane.agent("gone-1")
    await plane.orchestrator.hosts.release("gone-1", WHO)
    await eventually(lambda: not agent.bus.connected)
    assert (await posted(plane, "gone-1", proof(agent.key, "gone-1"))).status_code == 403
    await eventually(lambda: "auth" in agent.bus.last_error.lower())
    assert not agent.bus.connected
