"""An agent tells which software its host has, over a real NATS."""

import subprocess

import pytest

from aegisflux.wire import subjects
from aegisflux.wire.inventory import decode_inventory
from support.agent_process import AgentProcess, EnrollServer
from support.agents import Plane
from support.engines import eventually, running_nats

pytestmark = [pytest.mark.engines, pytest.mark.asyncio]


async def test_a_hosts_packages_lie_on_the_bus_as_its_package_manager_has_them(tmp_path):
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version}\n"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    expected = {tuple(line.split()[1:]) for line in listed.splitlines() if line.startswith("installed ")}
    async with running_nats(tmp_path / "nats") as lab, lab.control() as bus:
        await bus.ensure_streams()
        agent, server = AgentProcess(tmp_path, datapath="simulated"), EnrollServer(lab, Plane())
        try:
            done = agent.call("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=server.token())
            assert done.returncode == 0, done.stderr
            agent.start()
            message = await eventually(lambda: bus.last(subjects.inventory("web1")), 30)
            found = decode_inventory(message.payload)

            async def said():
                return f"{len(found.packages)} packages" in (await agent.acall("status")).stdout

            await eventually(said)
        finally:
            agent.close()
            server.close()
    assert found.host_id == "web1"
    assert {(one.name, one.version) for one in found.packages if one.type == "deb"} == expected
