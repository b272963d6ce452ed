"""Panic and questions from a shell that knows nothing of the agent's settings, on the real kernel.

Agents and commands live in a mount namespace with a BPF file system, a /run and a /var/lib of their own:
panic without a name ends all that is pinned and every agent that was enrolled, and this host may have others.
"""

import asyncio
import pickle
import subprocess
import sys

import pytest
import pytest_asyncio
from tests.bpf.test_sockets import rules
from tests.support.kernel import generation_of

from support.agent_bench import FORBIDDEN, Bench, content
from support.agent_process import fleet
from support.agents import Plane
from support.elsewhere import Elsewhere, below, mounts
from support.engines import eventually, running_nats

pytestmark = [pytest.mark.bpf, pytest.mark.engines, pytest.mark.asyncio]

# Enforces an empty snapshot on a cgroup, as an agent did whose state is lost.
LEFT = """
import pickle, sys
from pathlib import Path
from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath
from aegisflux.ports.datapath import Binding
top, root, instance, generation = sys.argv[1:5]
datapath = BpfDatapath(Path(top), instance)
datapath.open()
path = Path(top) / "left"
datapath.bind([Binding(path.stat().st_ino, str(path.relative_to(root)), 0)])
datapath.refresh_addresses()
datapath.flip(datapath.load(0, "active", pickle.loads(bytes.fromhex(generation))))
datapath.close()
"""


@pytest_asyncio.fixture
async def bench(tmp_path):
    async with running_nats(tmp_path / "nats") as lab:
        with mounts() as inside:
            found = Bench(tmp_path, lab, Plane())
            shell = Elsewhere(tmp_path)
            shell.env, shell.inside, found.agent = dict(found.agent.env), inside, shell
            with below(found.top, inside) as shell.scoped:
                try:
                    await found.enroll()
                    yield found
                finally:
                    await asyncio.to_thread(found.close)


async def test_a_shell_that_knows_nothing_finds_the_agent_and_ends_all(bench):
    web, left, agent = bench.cgroup("web"), bench.cgroup("left"), bench.agent
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        agent.start()
        await control.acked(1)
        await asyncio.to_thread(leave_behind, bench)
        assert await bench.refused(web)
        assert await bench.refused(left)
        agent.forget()
        status = await agent.status()
        assert (status["host_id"], status["datapath"]) == ("web1", "bpf")
        why = await agent.acall("why", "web", "udp", FORBIDDEN, "9")
        assert (why.returncode, "blocked" in why.stdout) == (1, True)
        assert FORBIDDEN in (await agent.acall("denied")).stdout
        doctor = await agent.acall("doctor")
        assert (doctor.returncode, str(bench.top) in doctor.stdout) == (0, True), doctor.stdout
        done = await agent.acall("panic", AEGISFLUX_AGENT_INSTANCE="another")
        assert done.returncode == 0, done.stderr
        assert f"of {bench.name} (host web1" in done.stderr
        assert "of lost (of no known agent)" in done.stderr
        assert await bench.is_open(web)
        assert await bench.is_open(left)
        assert (await agent.status())["panicked"]
        assert (await agent.acall("resume")).returncode == 0
        await eventually(lambda: bench.refused(web))
        agent.kill()
        done = await agent.acall("panic")
        assert (done.returncode, bench.name in done.stderr) == (0, True), done.stderr
        assert await bench.is_open(web), "nor does it need an agent"


async def test_one_of_several_can_be_named(bench):
    web, left, agent = bench.cgroup("web"), bench.cgroup("left"), bench.agent
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        agent.start()
        await control.acked(1)
        await asyncio.to_thread(leave_behind, bench)
        done = await agent.acall("panic", "--instance", "lost")
        assert f"still enforced: instance {bench.name}" in done.stderr
        assert await bench.is_open(left)
        assert await bench.refused(web)


def leave_behind(bench) -> None:
    generation = pickle.dumps(generation_of(rules(), 2**62)).hex()
    root = str(bench.top.parent)
    argv = [*bench.agent.inside, sys.executable, "-c", LEFT, str(bench.top), root, "lost", generation]
    subprocess.run(argv, env=bench.agent.env, check=True, timeout=30)
