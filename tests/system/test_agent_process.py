"""The agent as a process on a real NATS: enrolment, convergence, restarts, panic; the kernel is simulated."""

import asyncio
import json
import shutil
import signal
import subprocess
import time

import pytest
import pytest_asyncio
from msgspec.structs import replace
from nacl.signing import SigningKey
from tests.support.netns import own_cgroup

from aegisflux.agent import remember
from aegisflux.agent.state import FileStore
from aegisflux.wire import token as tokens
from support.agent_process import AgentProcess, EnrollServer, fleet
from support.agents import Plane, body, edges
from support.engines import eventually, running_nats

pytestmark = [pytest.mark.engines, pytest.mark.asyncio]
FAST = {"heartbeat_seconds": "0.3", "tick_seconds": "0.2", "refresh_seconds": "2", "drift_seconds": "1"}


@pytest_asyncio.fixture
async def lab(tmp_path):
    async with running_nats(tmp_path / "nats") as found:
        yield found


@pytest.fixture
def plane():
    return Plane()


@pytest.fixture
def enrolment(lab, plane):
    server = EnrollServer(lab, plane)
    yield server
    server.close()


@pytest.fixture
def agent(tmp_path):
    found = AgentProcess(tmp_path, datapath="simulated", **FAST)
    yield found
    found.close()


async def enrolled(agent, enrolment) -> None:
    done = await agent.acall("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=enrolment.token())
    assert done.returncode == 0, done.stderr


def content(plane, version=1, **fields):
    return plane.content(body(version, edges=edges("10.0.0.0/8 tcp/443"), **fields))


async def test_enrolment_keeps_its_key_and_hides_its_state(agent, enrolment):
    await enrolled(agent, enrolment)
    assert agent.state.stat().st_mode & 0o777 == 0o700
    assert (agent.state / "key").stat().st_mode & 0o777 == 0o600
    again = await agent.acall("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=enrolment.token())
    assert (again.returncode, "--force" in again.stderr) == (3, True)
    forced = await agent.acall(
        "enroll", "--host-id", "web1", "--force", AEGISFLUX_ENROLL_TOKEN=enrolment.token()
    )
    assert forced.returncode == 0, "the same key is the same host"


async def test_a_second_host_cannot_take_a_name(agent, enrolment, tmp_path):
    await enrolled(agent, enrolment)
    (tmp_path / "second").mkdir()
    second = AgentProcess(tmp_path / "second", datapath="simulated")
    done = await second.acall("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=enrolment.token())
    assert (done.returncode, "taken" in done.stderr) == (3, True)


@pytest.mark.parametrize("part", ["root_sha256", "ca_sha256"])
async def test_another_control_plane_than_the_tokens_is_refused(agent, enrolment, part):
    token = enrolment.token(**{part: "0" * 64})
    done = await agent.acall("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=token)
    assert (done.returncode, "the token names" in done.stderr) == (3, True)
    assert not (agent.state / "identity").exists()
    assert token not in done.stderr


async def test_a_key_set_of_another_root_is_refused(agent, enrolment):
    other = Plane(root=SigningKey.generate())
    honest = enrolment.enroll

    def swapped(request):
        root, enrolment.plane.root = enrolment.plane.root, other.root
        try:
            status, raw = honest(request)
        finally:
            enrolment.plane.root = root
        answer = json.loads(raw) | {"root_public_key": tokens.b64(bytes(root.verify_key))}
        return status, json.dumps(answer).encode()

    enrolment.enroll = swapped
    done = await agent.acall("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=enrolment.token())
    assert (done.returncode, "key set" in done.stderr) == (3, True)


async def test_credentials_of_another_host_are_refused(agent, enrolment):
    enrolment.break_answer = lambda answer: replace(answer, host_id="web2")
    done = await agent.acall("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=enrolment.token())
    assert done.returncode == 3


async def test_plain_http_beyond_this_machine_is_refused(agent, enrolment):
    token = enrolment.token(url="http://192.0.2.1:8081")
    done = await agent.acall("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=token)
    assert (done.returncode, "plain HTTP" in done.stderr) == (3, True)


async def test_exit_statuses_without_an_agent(agent):
    assert (await agent.acall("status", "--instance", "nobody")).returncode == 3
    assert (await agent.acall("run")).returncode == 3
    assert (await agent.acall("enroll", "--token-file", "/nonexistent")).returncode == 2
    assert (await agent.acall("panic", "--instance", "nobody")).returncode == 3


@pytest.mark.parametrize("name", ["nobody", "", "DEFAULT"])
@pytest.mark.parametrize(
    "command", ["status", "why x tcp 10.0.0.1 1", "denied", "doctor", "reset-clock", "resume", "panic"]
)
async def test_an_instance_that_is_none_of_this_host_is_never_another_one(agent, enrolment, command, name):
    await enrolled(agent, enrolment)
    done = await agent.acall(*command.split(), "--instance", name)
    assert (done.returncode, done.stdout) == (3, "")
    assert "--instance: expected an instance of this host" in done.stderr
    assert agent.env.get("AEGISFLUX_AGENT_INSTANCE", "default") in done.stderr


@pytest.mark.parametrize("text", ["", "\n", "  \n"])
async def test_an_empty_stdin_is_said(agent, text):
    done = await agent.acall("enroll", "--host-id", "web1", stdin=text)
    assert done.returncode == 3
    assert "nothing on stdin" in done.stderr.replace("\n", " ")


async def examined(agent) -> tuple[int, str | None, dict[str, tuple[str, bool]]]:
    done = await agent.acall("doctor", "-o", "json")
    found = json.loads(done.stdout)
    checks = {check["name"]: (check["about"], check["ok"]) for check in found["checks"]}
    return done.returncode, found["next"], checks


async def test_doctor_tells_what_the_host_can_do_from_how_its_agent_is(lab, plane, enrolment, agent):
    status, step, checks = await examined(agent)
    assert (status, checks["enrolment"]) == (0, ("agent", False)), "able, and not enrolled yet"
    assert checks["root"] == checks["cgroup v2"] == ("host", True)
    assert "aegisflux agent enroll" in step
    assert not agent.state.exists(), "looking changes nothing"
    text = (await agent.acall("doctor")).stdout.splitlines()
    assert text[-1] == f"next: {step}"
    await enrolled(agent, enrolment)
    status, step, checks = await examined(agent)
    assert (status, step, checks["running"]) == (0, "aegisflux agent run", ("agent", False))
    async with fleet(lab, plane) as control:
        await control.desire(plane.service(content(plane)))
        agent.start()
        await control.acked(1)
        assert (await examined(agent))[:2] == (0, None)
        await agent.acall("panic")
        assert (await examined(agent))[:2] == (1, "aegisflux agent resume")
        await agent.acall("resume")
        agent.kill()
        assert (await examined(agent))[:2] == (1, "aegisflux agent run")


async def test_doctor_fails_on_a_real_obstacle(agent):
    agent.env["AEGISFLUX_AGENT_DATAPATH"] = "bpf"
    agent.env["AEGISFLUX_AGENT_CONFIG"] = "/nonexistent"
    argv = ["setpriv", "--reuid", "65534", "--clear-groups", *agent.command("doctor", "-o", "json")]
    done = await asyncio.to_thread(
        subprocess.run, argv, env=agent.env, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1, done.stderr
    assert "run as root" in json.loads(done.stdout)["next"]


async def test_a_withdrawn_service_is_said_to_be(lab, plane, enrolment, agent):
    await enrolled(agent, enrolment)
    async with fleet(lab, plane) as control:
        await control.desire(plane.service(content(plane)))
        agent.start()
        await control.acked(1)
        await control.desire(plane.service(None, service_id=101))

        async def told():
            status = await agent.status()
            return [s["state"] for s in status["services"]] == ["withdrawn"]

        await eventually(told)
        assert (await agent.acall("status")).returncode == 0


async def test_no_noise_when_the_bus_ends(lab, plane, enrolment, agent):
    await enrolled(agent, enrolment)
    async with fleet(lab, plane) as control:
        await control.desire(plane.service(content(plane)))
        agent.start()
        await control.acked(1)
        await lab.process.stop()
        await eventually(lambda: _disconnected(agent))
        assert "eof_received" not in agent.log()
        assert all(line.startswith("{") for line in agent.log().splitlines()), agent.log()
        await lab.process.start()


async def _disconnected(agent):
    status = await agent.status()
    return status and not status["connected"]


async def test_a_clock_that_was_far_ahead_is_believed_again_by_hand(lab, plane, enrolment, agent):
    """And nothing that is older than what was accepted comes back by it."""
    await enrolled(agent, enrolment)
    async with fleet(lab, plane) as control:
        first = plane.desired(plane.service(content(plane)))
        await control.send(first)
        await control.desire(plane.service(content(plane, 2)))
        agent.start()
        await control.acked(2)
        for running, version in ((True, 3), (False, 4)):
            agent.kill()
            remember.write_clock(FileStore(agent.state), time.time() + 90 * 86_400)
            agent.start()
            await eventually(agent.status)
            await control.desire(plane.service(content(plane, version)))
            await eventually(lambda: "nack expired: not_after" in agent.log())
            (agent.directory / "agent.log").write_text("")
            assert (await examined(agent))[:2] == (1, "aegisflux agent reset-clock")
            if not running:
                agent.kill()
            done = await agent.acall("reset-clock")
            assert (done.returncode, "it was believed" in done.stderr) == (0, True), done.stderr
            if not running:
                agent.start()
            await control.acked(version)
            status = await agent.status()
            (service,) = status["services"]
            assert service["deadline"] <= time.time() + 601
            assert (await examined(agent))[0] == 0
        await control.send(first)
        await eventually(lambda: "nack stale_serial" in agent.log())


@pytest.fixture
def web():
    """The selector of a cgroup that is there."""
    with own_cgroup("web") as path:
        yield f"cgroup:{path}"


async def test_the_story_of_a_host(lab, plane, enrolment, agent, web):
    await enrolled(agent, enrolment)
    async with fleet(lab, plane) as control:
        await control.desire(plane.service(content(plane), selectors=(web,)))
        agent.start()
        ack = await control.acked(1)
        assert ack.tables_digest == plane.known[ack.digest].tables_digest
        beat = await eventually(control.heartbeat)
        await eventually(lambda: _in_force(control, 1))
        assert beat.host_id == "web1"
        status = await agent.status()
        assert [s["state"] for s in status["services"]] == ["in_force"]
        verdict = await agent.acall("why", "web", "tcp", "10.0.0.5", "443")
        assert (verdict.returncode, "allowed" in verdict.stdout) == (0, True)
        verdict = await agent.acall("why", "101", "tcp", "192.0.2.1", "443", "-o", "json")
        assert (verdict.returncode, json.loads(verdict.stdout)["reason"]) == (1, "no_match")
        second = AgentProcess(agent.directory, datapath="simulated")
        refused = await second.acall("run")
        assert (refused.returncode, "another agent holds it" in refused.stderr) == (4, True)
        agent.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.process.wait, 10) == 0


async def _in_force(control, version):
    beat = await control.heartbeat()
    return beat and any(s.state == "in_force" and s.version == version for s in beat.services)


async def test_panic_and_resume_from_the_command_line(lab, plane, enrolment, agent, web):
    await enrolled(agent, enrolment)
    async with fleet(lab, plane) as control:
        await control.desire(plane.service(content(plane), selectors=(web,)))
        agent.start()
        await control.acked(1)
        started = time.monotonic()
        assert (await agent.acall("panic", "--why", "locked out")).returncode == 0
        assert time.monotonic() - started < 5
        status = await agent.status()
        assert status["panicked"]
        assert status["panic"]["why"] == "locked out"
        agent.kill()
        agent.start()
        await eventually(lambda: _panicked(control))
        assert (await agent.acall("resume")).returncode == 0
        await eventually(lambda: _in_force(control, 1))
        agent.kill()
        assert (await agent.acall("panic")).returncode == 0
        assert (agent.state / "panic").exists()


async def _panicked(control):
    beat = await control.heartbeat()
    return beat and beat.panicked


async def test_kills_of_agent_and_nats_under_a_stream_of_updates(lab, plane, enrolment, agent):
    await enrolled(agent, enrolment)
    async with fleet(lab, plane) as control:
        agent.start()
        for version in range(1, 31):
            await control.desire(plane.service(content(plane, version)))
            if version % 7 == 0:
                agent.kill()
                agent.start()
            if version % 11 == 0:
                await lab.process.stop()
                await lab.process.start()
        await control.acked(30, 30)
        served = [a.version for a in control.answers if hasattr(a, "deadline")]
        assert not [a for a in control.answers if not hasattr(a, "deadline")]
        assert served == sorted(served), "never back to an older version"


async def test_the_bus_lost_all_its_data(lab, plane, enrolment, agent):
    await enrolled(agent, enrolment)
    async with fleet(lab, plane) as control:
        await control.desire(plane.service(content(plane)))
        agent.start()
        await control.acked(1)
        await lab.process.stop()
        assert (lab.directory / "nats" / "jetstream").is_dir()
        accounts = lab.engine.data_dir / "accounts"  # the orchestrator pushes them after each connect
        kept = {path: path.read_bytes() for path in accounts.iterdir()}
        shutil.rmtree(lab.directory / "nats")
        accounts.mkdir(mode=0o700, parents=True)
        for path, claim in kept.items():
            path.write_bytes(claim)
        await lab.process.start()
        await control.bus.ready(20)
        await eventually(lambda: _streams(control))
        await control.desire(plane.service(content(plane, 2)))
        await control.acked(2, 30)


async def _streams(control):
    from aegisflux.domain.errors import Unavailable

    try:
        await control.bus.ensure_streams()
    except Unavailable:
        return False
    return True
