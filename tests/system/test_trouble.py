"""A machine in trouble: a full disk, a read-only one, no /run, another BPF file system, a stuck agent, a
state folder that is gone. Each row is one trouble, made while the agent enforces.

Agents and commands live in a mount namespace with a state folder of 64 KiB. Each panic names its instance:
this kernel is shared with the tests of others.
"""

import asyncio
import signal
import subprocess
import time

import pytest
import pytest_asyncio

from support.agent_bench import Bench, content
from support.agent_process import AgentProcess, fleet
from support.agents import Plane
from support.elsewhere import MOUNTS, Elsewhere, mounts
from support.engines import eventually, running_nats
from support.rows import by_day

pytestmark = [pytest.mark.bpf, pytest.mark.engines, pytest.mark.asyncio]
FILL = "dd if=/dev/zero of={0}/ballast bs=1k >/dev/null 2>&1 || true"
DRIFTS_SECONDS = 1.5  # the bench's agent compares every half second
PANIC_SECONDS = 8.0  # on two busy cores; a stuck agent is not waited for

# What is done to the agent's host while it enforces ({state} is its state folder), and which media of a panic
# cannot be written then.
PANICS = {
    "full disk": (FILL, {"{state}"}),
    "full disk, full /run": (
        f"{FILL}; {FILL.format('/run')}",
        {"{state}", "/run/aegisflux/panic"},
    ),
    "read-only disk": ("mount -o remount,ro {state}", {"{state}"}),
    "read-only disk and /run": (
        "mount -o remount,ro {state}; mount -o remount,ro /run",
        {"{state}", "/run/aegisflux/panic"},
    ),
    "an empty, read-only /run": (
        "mount -t tmpfs other /run && mount -o remount,ro /run",
        {"/run/aegisflux/panic"},
    ),
    "/run is read-only": ("mount -o remount,ro /run", {"/run/aegisflux/panic"}),
    "a second BPF file system": ("mount -t bpf second /sys/fs/bpf", set()),
    "the BPF file system is gone": ("umount -l /sys/fs/bpf", set()),
    "a second BPF file system, all else read-only": (
        "mount -o remount,ro {state}; mount -o remount,ro /run; mount -t bpf second /sys/fs/bpf",
        {"{state}", "/run/aegisflux/panic"},
    ),
    "no notes": ("rm -rf /run/aegisflux", set()),
    "no socket": ("rm {state}/agent.sock", set()),
    "no state folder": ("umount -l {state}; rm -rf {state}", {"{state}"}),
}
# Each of these has what others try one by one.
DAY = {
    "read-only disk and /run", "a second BPF file system, all else read-only", "the BPF file system is gone",
    "no socket", "no state folder",
}  # fmt: skip


@pytest_asyncio.fixture
async def bench(tmp_path):
    """An agent with a state folder of 64 KiB, in a mount namespace of its own."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    script = f"{MOUNTS}; mount -o remount,size=64k /run; mount -t tmpfs -o size=64k,mode=0700 small {state}"
    async with running_nats(tmp_path / "nats") as lab:
        with mounts(script) as inside:
            found = Bench(tmp_path, lab, Plane())
            shell = Elsewhere(tmp_path)
            shell.env, shell.inside, shell.scoped = dict(found.agent.env), inside, inside
            shell.env["AEGISFLUX_AGENT_TELEMETRY_ENABLED"] = "false"
            found.agent = shell
            try:
                await found.enroll()
                yield found
            finally:
                await asyncio.to_thread(found.close)


async def enforcing(bench, control, made=None):
    await control.desire(bench.service(made or content(bench)))
    bench.agent.start()
    await control.acked(1)
    web = bench.cgroup("web")
    assert await bench.refused(web)
    return web


async def stays_open(bench, control, web) -> None:
    """Over several rounds of drift repair."""
    begin = (await eventually(control.heartbeat)).clock

    async def later():
        beat = await control.heartbeat()
        return beat if beat is not None and beat.clock > begin + DRIFTS_SECONDS else None

    assert await bench.is_open(web)
    await eventually(later, 20)
    assert await bench.is_open(web)


@pytest.mark.parametrize("trouble", by_day(PANICS, DAY))
async def test_panic_holds_and_says_what_it_could_not_write(bench, trouble):
    script, unwritten = PANICS[trouble]
    async with fleet(bench.lab, bench.plane) as control:
        web = await enforcing(bench, control)
        agent = bench.agent
        agent.shell(script.format(agent.state, state=agent.state))
        begin = time.monotonic()
        done = await agent.acall("panic", "--instance", bench.name)
        assert time.monotonic() - begin < PANIC_SECONDS
        removed = f"panic: all enforcement of {bench.name} (" in done.stderr
        assert (done.returncode, removed) == (0, True), done.stderr
        said = {line for line in done.stderr.splitlines() if "could not be written" in line}
        for medium in unwritten:
            assert any(medium.format(state=agent.state) in line for line in said), done.stderr
        assert len(said) == len(unwritten), done.stderr
        await stays_open(bench, control, web)
        beat = await control.heartbeat()
        assert beat.panicked
        agent.kill()
        if trouble != "no state folder":  # then nothing starts any more
            agent.start()
            await eventually(lambda: agent.log().count("running as") == 2, 20)
            await stays_open(bench, control, web)
            done = await agent.acall("resume", "--instance", bench.name)
            assert (done.returncode, f"resumed: {bench.name}" in done.stderr) == (0, True), done.stderr
            if trouble != "the BPF file system is gone":
                await eventually(lambda: bench.refused(web), 20)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_panic_waits_for_no_agent_that_is_stuck(bench, number):
    async with fleet(bench.lab, bench.plane) as control:
        web = await enforcing(bench, control)
        agent = bench.agent
        agent.process.send_signal(number)
        begin = time.monotonic()
        done = await agent.acall("panic", "--instance", bench.name)
        assert time.monotonic() - begin < PANIC_SECONDS
        assert done.returncode == 0, done.stderr
        assert await bench.is_open(web)
        if number == signal.SIGSTOP:
            agent.process.send_signal(signal.SIGCONT)
            await stays_open(bench, control, web)
            assert (await agent.status())["panicked"]


async def test_a_resume_beside_an_agent_that_is_stuck_holds_when_it_goes_on(bench):
    """It reads then, in any order, that it is to panic and that it is to go on."""
    async with fleet(bench.lab, bench.plane) as control:
        web = await enforcing(bench, control)
        agent = bench.agent
        agent.process.send_signal(signal.SIGSTOP)
        for command in ("panic", "resume"):
            done = await agent.acall(command, "--instance", bench.name)
            assert done.returncode == 0, done.stderr
        agent.process.send_signal(signal.SIGCONT)
        begin = (await eventually(control.heartbeat)).clock

        async def later():
            beat = await control.heartbeat()
            return beat is not None and beat.clock > begin + DRIFTS_SECONDS

        await eventually(later, 20)
        await eventually(lambda: bench.refused(web), 20)
        assert not (await agent.status())["panicked"]


FULL = {"full disk": (FILL, "disk full"), "read-only disk": ("mount -o remount,ro {state}", "disk read-only")}


@pytest.mark.parametrize("trouble", FULL)
async def test_what_is_in_force_stays_renewed_and_the_control_plane_is_told(bench, trouble):
    script, word = FULL[trouble]
    made = content(bench, ttl_seconds=120)
    async with fleet(bench.lab, bench.plane) as control:
        web = await enforcing(bench, control, made)
        agent = bench.agent
        agent.shell(script.format(agent.state, state=agent.state))
        first = await control.acked(1)
        await control.desire(bench.service(made, lease=first.deadline + 60))
        await eventually(lambda: control.answers[-1].serial == bench.plane.serial, 20)
        assert control.answers[-1].deadline > first.deadline, "the deadline moves in the kernel"

        async def told():
            beat = await control.heartbeat()
            return any(text.startswith(word) for text in beat.troubles)

        await eventually(told, 20)
        assert any(word in line for line in (await agent.acall("status")).stdout.splitlines())
        assert word in (await agent.acall("doctor")).stdout
        await control.desire(bench.service(content(bench, 2)))
        await eventually(
            lambda: getattr(control.answers[-1], "reason", "") in ("disk_full", "not_durable"), 20
        )
        assert await bench.refused(web)
        agent.kill()
        agent.start()
        await eventually(agent.status, 20)
        assert await bench.refused(web), "a restarted agent goes on with what the kernel holds"
        agent.shell(f"mount -o remount,rw {agent.state}; rm -f {agent.state}/ballast")
        await control.acked(2, 30)


async def test_two_live_agents_with_one_identity_are_reported(bench, tmp_path):
    """A machine was cloned with its state folder."""
    async with fleet(bench.lab, bench.plane) as control:
        web = await enforcing(bench, control)
        clone = AgentProcess(
            tmp_path / "clone", datapath="simulated", heartbeat_seconds="0.5", refresh_seconds="1"
        )
        clone.directory.mkdir()
        clone.state.mkdir(mode=0o700)
        bench.agent.shell(f"cd {bench.agent.state}; tar c accepted identity key > {tmp_path}/state.tar")
        subprocess.run(["tar", "x", "-C", str(clone.state), "-f", str(tmp_path / "state.tar")], check=True)
        try:
            clone.start()
            for agent in (bench.agent, clone):

                async def told(agent=agent):
                    status = await agent.status()
                    return status and any("another agent answers" in text for text in status["troubles"])

                await eventually(told, 30)
            assert await bench.refused(web), "neither stops to enforce"
            assert "another agent answers" in (await bench.agent.acall("doctor")).stdout
        finally:
            clone.close()
