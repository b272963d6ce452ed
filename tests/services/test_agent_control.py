"""The agent's socket: what the command line asks, and what it is told."""

import asyncio
import socket

import pytest

from aegisflux.agent.control import ask
from aegisflux.agent.notify import systemd
from aegisflux.domain.errors import Refused, Unavailable
from aegisflux.domain.flow import Flow
from aegisflux.domain.manifest import CandidateRef
from aegisflux.domain.net import TCP, parse_address
from support.agent_socket import asked, listening
from support.agents import AgentLab, body, edges


@pytest.fixture
async def lab():
    found = await AgentLab().begin()
    made = found.plane.content(body(1, edges=edges("10.0.0.0/8 tcp/443")))
    await found.desire(found.plane.service(made))
    return found


@pytest.fixture
async def path(lab, tmp_path):
    async with listening(lab.runner, tmp_path) as found:
        yield found


def deny(lab, address="192.0.2.1"):
    lab.kernel.judge("web", Flow("egress", TCP, parse_address(address), 443, 40_000))


async def test_only_the_owner_may_ask(path):
    assert path.stat().st_mode & 0o777 == 0o600


async def test_status(lab, path):
    (found,) = await asked(path, do="status")
    assert (found["host_id"], found["serial"], found["panicked"]) == ("web1", 1, False)
    assert [(s["name"], s["state"]) for s in found["services"]] == [("web", "in_force")]


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(
    ("steps", "state"),
    [
        (["nothing"], "no snapshot"),
        (["candidate"], "no snapshot"),
        (["active"], "in_force"),
        (["active", "nothing"], "withdrawn"),
        (["nothing", "active", "nothing"], "withdrawn"),
    ],
)
async def test_status_tells_what_never_had_a_snapshot_from_what_was_withdrawn(tmp_path, steps, state, anew):
    """Also after a restart: the agent remembers the versions that it was given."""
    lab = await AgentLab().begin()
    made = lab.plane.content(body(1, edges=edges("10.0.0.0/8 tcp/443")))
    for step in steps:
        active, candidate = (made if step == name else None for name in ("active", "candidate"))
        given = {} if candidate is None else {"candidate": CandidateRef(made.version, made.digest)}
        await lab.desire(lab.plane.service(active, service_id=101, **given))
    if anew:
        await lab.restart()
    async with listening(lab.runner, tmp_path) as path:
        (found,) = await asked(path, do="status")
    assert [s["state"] for s in found["services"]] == [state]


@pytest.mark.parametrize("service", ["101", "web", "web/worker/3"])
async def test_why_by_number_name_and_cgroup(path, service):
    (found,) = await asked(path, do="why", service=service, peer="10.0.0.1", port=443)
    assert (found["verdict"], found["rule"]) == ("allowed", "edges 10.0.0.0/8 tcp/443")


async def test_why_of_a_cgroup_of_no_service(path):
    (found,) = await asked(path, do="why", service="/db/x", peer="10.0.0.1", port=443)
    assert found["reason"] == "unmanaged"


@pytest.mark.parametrize(
    "question",
    [
        {"do": "why", "service": "nobody", "peer": "10.0.0.1", "port": 443},
        {"do": "why", "service": "web", "peer": "10.0.0.300", "port": 443},
        {"do": "why", "service": "web", "peer": "10.0.0.1"},
        {"do": "why", "service": "web", "peer": "10.0.0.1", "port": 443, "proto": "http"},
        {"do": "format"},
        {"do": 7},
    ],
)
async def test_what_cannot_be_asked(path, question):
    with pytest.raises(Refused):
        await asked(path, **question)


async def test_denied_and_follow(lab, path):
    deny(lab)
    await lab.runner.tick()
    (found,) = await asked(path, do="denied")
    assert (found["verdict"], found["peer"], found["reason"]) == ("blocked", "192.0.2.1", "no_match")
    heard = []

    def follow():
        for flow in ask(path, {"do": "denied", "follow": True, "last": 0}, 5):
            heard.append(flow["peer"])
            if len(heard) == 2:
                return

    life = asyncio.create_task(asyncio.to_thread(follow))
    await asyncio.sleep(0.3)
    deny(lab, "192.0.2.2")
    deny(lab, "192.0.2.3")
    await asyncio.wait_for(life, 5)
    assert heard == ["192.0.2.2", "192.0.2.3"]


async def test_panic_and_resume(lab, path):
    assert await asked(path, do="panic", why="locked out") == [{"panicked": True}]
    assert not lab.kernel.is_open
    (found,) = await asked(path, do="why", service="web", peer="192.0.2.1", port=1)
    assert (found["verdict"], found["reason"]) == ("allowed", "panic")
    assert await asked(path, do="resume") == [{"panicked": False}]
    assert lab.held() == ["active 101 v1"]


async def test_a_line_without_end_is_dropped(path):
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"x" * 200_000)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_nobody_answers(tmp_path):
    with pytest.raises(Unavailable):
        await asked(tmp_path / "none", do="status")


def test_systemd_is_told(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd("READY=1")
        assert heard.recv(64) == b"READY=1"
    systemd("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd("READY=1")
