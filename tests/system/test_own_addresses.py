"""An agent's process on the real kernel: an address that a container gets is its own at once."""

import asyncio
import os
import subprocess
import sys
import time

import pytest
import pytest_asyncio

from support.agent_bench import CONNECT, content, enrolled_bench
from support.agent_process import fleet
from support.engines import eventually
from support.netns import NETNS, enter

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.engines, pytest.mark.asyncio]
# What is added, and an address that is own by it.
ADDED = {
    "addr add 10.251.0.1/32 dev lo": "10.251.0.1",
    "route add local 10.252.0.0/16 dev lo": "10.252.7.9",
}


@pytest_asyncio.fixture
async def bench(tmp_path):
    async with enrolled_bench(tmp_path) as found:
        yield found


@pytest.fixture
def container(bench):
    """A network namespace with a process of the service in it."""
    name = f"af{os.getpid()}-0-own"
    subprocess.run(["ip", "netns", "add", name], check=True)
    process = None
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        web = bench.cgroup("web")
        process = subprocess.Popen(["sleep", "600"], preexec_fn=lambda: enter(name, web))  # noqa: PLW1509
        yield name
    finally:
        if process is not None:
            process.kill()
            process.wait()
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


async def connected(bench, name, address, until="-"):
    """How the service's connect ends, tried again until it ends so."""
    argv = [sys.executable, "-I", "-S", "-c", CONNECT, bench.top / "web" / "cgroup.procs", address, until]
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), stdout=subprocess.PIPE, preexec_fn=lambda: enter(name, None)
    )
    words, _ = await process.communicate()
    return words.split()[0].decode()


async def test_what_is_added_in_a_container_is_own_before_the_next_reading(bench, container):
    """A process of its own takes its time to start here; `own_address_ms` of the bench is the figure."""
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        bench.agent.start()
        await control.acked(1)
        for command, address in ADDED.items():
            await eventually(lambda address=address: refused(bench, container, address), 20)
            waiting = asyncio.create_task(connected(bench, container, address, "open"))
            subprocess.run(["ip", "-n", container, *command.split()], check=True)
            began = time.monotonic()
            assert await waiting == "open"
            assert time.monotonic() - began < 3, "a reading comes every 10 s"
        assert (NETNS / container).exists()


async def refused(bench, name, address):
    return await connected(bench, name, address) == "refused"
