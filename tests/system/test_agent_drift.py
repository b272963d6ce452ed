"""What somebody else takes from an agent's kernel comes back; upgrades and moves open nothing."""

import asyncio
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.mapping import FAILSAFE_SIZE
from aegisflux.adapters.datapath.bpf.pins import ORDER, TRACEPOINTS
from aegisflux.wire.layout import LAYOUT
from support.agent_bench import FORBIDDEN, content, enrolled_bench
from support.agent_process import fleet
from support.engines import eventually

pytestmark = [pytest.mark.bpf, pytest.mark.engines, pytest.mark.asyncio]


@pytest_asyncio.fixture
async def bench(tmp_path):
    async with enrolled_bench(tmp_path) as found:
        yield found


@contextmanager
def pinned_map(bench, name):
    fd = libbpf.obj_get(f"/sys/fs/bpf/aegisflux/{bench.name}/v{LAYOUT}/maps/{name}")
    try:
        yield fd
    finally:
        os.close(fd)


def without_tables(bench) -> None:
    with pinned_map(bench, "generations") as fd:
        libbpf.delete(fd, bytes(4))


def without_binding(bench) -> None:
    """And sockets must ask again whose they are, as after any change of the map."""
    with pinned_map(bench, "cgroups") as fd:
        assert libbpf.delete(fd, (bench.top / "web").stat().st_ino.to_bytes(8, "little"))


def with_another_binding(bench) -> None:
    with pinned_map(bench, "cgroups") as fd:
        libbpf.update(
            fd, (bench.top / "web").stat().st_ino.to_bytes(8, "little"), (200).to_bytes(4, "little")
        )


def without_programs(bench) -> None:
    """Both ways: unpinned, and detached under its pin."""
    links = Path(f"/sys/fs/bpf/aegisflux/{bench.name}/v{LAYOUT}/links")
    (links / "aegis_connect4").unlink()
    fd = libbpf.obj_get(str(links / "aegis_egress"))
    libbpf.lib().bpf_link_detach(fd)
    os.close(fd)


def without_pins(bench) -> None:
    shutil.rmtree(f"/sys/fs/bpf/aegisflux/{bench.name}")


@pytest.mark.parametrize(
    "fault", [without_tables, without_binding, with_another_binding, without_programs, without_pins]
)
async def test_drift_in_the_kernel_is_repaired(bench, fault):
    """Somebody else takes away what judges."""
    web = bench.cgroup("web")
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        bench.agent.start()
        await control.acked(1)
        assert await bench.refused(web)
        fault(bench)
        await eventually(lambda: bench.refused(web), 5)
        await eventually(lambda: _drifted(control))
        assert set(os.listdir(f"/sys/fs/bpf/aegisflux/{bench.name}/v{LAYOUT}/links")) == {
            *ORDER,
            *TRACEPOINTS,
        }
        await asyncio.sleep(1.2)
        lost = (await control.heartbeat()).loss["drift"]
        await asyncio.sleep(1.2)
        assert (await control.heartbeat()).loss["drift"] == lost, "repaired once"


async def test_drift_of_the_lists_is_repaired(bench):
    """The literal path that is bound at its birth, and what no snapshot can deny."""
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        bench.agent.start()
        await control.acked(1)
        with pinned_map(bench, "literals") as literals, pinned_map(bench, "failsafes") as failsafes:
            (key,) = libbpf.keys(literals, 256)
            rules = libbpf.lookup(failsafes, bytes(4), FAILSAFE_SIZE)
            libbpf.delete(literals, key)
            libbpf.update(failsafes, bytes(4), bytes(FAILSAFE_SIZE))
            await eventually(lambda: libbpf.keys(literals, 256) == [key], 5)
            await eventually(lambda: libbpf.lookup(failsafes, bytes(4), FAILSAFE_SIZE) == rules, 5)


async def test_a_cgroup_that_somebody_else_mapped_is_let_go(bench):
    other = bench.cgroup("other")
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        bench.agent.start()
        await control.acked(1)
        with pinned_map(bench, "cgroups") as fd:
            libbpf.update(fd, other.stat().st_ino.to_bytes(8, "little"), bytes(4))
        await eventually(lambda: bench.is_open(other), 5)
        with pinned_map(bench, "cgroups") as fd:
            found = {int.from_bytes(key, "little") for key in libbpf.keys(fd, 8)}
            assert other.stat().st_ino not in found


async def _drifted(control):
    beat = await control.heartbeat()
    return beat and beat.loss.get("drift", 0) > 0


# The next version of the agent has another layout of its maps, and takes its time to load.
UPGRADED = """
import time
from aegisflux.adapters.datapath.bpf import pins
from aegisflux.adapters.datapath.bpf.generations import Generations
pins.LAYOUT += 1
load = Generations.load
def slowly(*args):
    time.sleep(1.5)
    return load(*args)
Generations.load = slowly
"""


async def test_an_upgrade_to_another_layout_opens_nothing(bench):
    """What was accepted judges in the new maps before the old programs go; no control plane is needed."""
    web, top = bench.cgroup("web"), Path(f"/sys/fs/bpf/aegisflux/{bench.name}")
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        bench.agent.start()
        await control.acked(1)
        await bench.lab.process.stop()
        bench.agent.kill()
        bench.agent.prelude = UPGRADED
        bench.agent.start()
        words, both = [], False
        while (top / f"v{LAYOUT}").exists():
            both = both or (top / f"v{LAYOUT + 1}" / "links" / "aegis_egress").exists()
            words.append((await asyncio.to_thread(bench.connect, web, FORBIDDEN))[0])
            assert len(words) < 500
        assert both
        assert set(words) == {"refused"}
        assert len(words) > 5
        assert await bench.refused(web), "in the new layout alone"
        await bench.lab.process.start()


async def test_what_an_upgrade_does_not_select_is_judged_on_and_told(bench):
    """Until its lease ends or it can be selected; what is selected is judged in the new maps alone."""
    given, top = bench.cgroup("given"), Path(f"/sys/fs/bpf/aegisflux/{bench.name}")
    inner, plain = bench.cgroup("given/inner"), bench.cgroup("plain")
    async with fleet(bench.lab, bench.plane) as control:
        second = bench.service(content(bench, service_id=102), "plain", name="second")
        await control.desire(bench.service(content(bench), "given/inner"), second)
        bench.agent.start()
        await eventually(lambda: sum(hasattr(a, "deadline") for a in control.answers) >= 2, 15)
        assert [await bench.refused(path) for path in (inner, plain)] == [True, True]
        bench.agent.kill()
        os.chown(given, 65534, 65534)
        bench.agent.prelude = UPGRADED
        bench.agent.start()
        await eventually(lambda: "below a directory that others than root write" in bench.agent.log(), 15)
        assert [await bench.refused(path) for path in (inner, plain)] == [True, True]
        with pinned_map(bench, "cgroups") as fd:
            held = {int.from_bytes(key, "little") for key in libbpf.keys(fd, 8)}
        assert (inner.stat().st_ino in held, plain.stat().st_ino in held) == (True, False)
        found = await bench.agent.acall("doctor")
        assert (found.returncode, f"{bench.name}/given/inner" in found.stdout) == (1, True)
        os.chown(given, 0, 0)
        await eventually(lambda: not (top / f"v{LAYOUT}").exists(), 15)
        assert [await bench.refused(path) for path in (inner, plain)] == [True, True]
        assert "trouble is over" in bench.agent.log()


JOINED = """
open({at!r} + "/cgroup.procs", "w").write("0")
"""


async def test_an_agent_among_its_services_moves_to_a_cgroup_of_its_own(bench):
    """As one does that was started in the root cgroup: there it could not be told from others."""
    web = bench.cgroup("web")
    bench.agent.prelude = JOINED.format(at=str(bench.top))
    made = bench.top / f"aegisflux-agent-{bench.name}"
    async with fleet(bench.lab, bench.plane) as control:
        everything = content(bench)
        await control.desire(bench.service(everything, "**"))
        bench.agent.start()
        await control.acked(1)
        cgroup = Path(f"/proc/{bench.agent.process.pid}/cgroup").read_text()
        assert f"0::/{bench.name}/{made.name}\n" in cgroup
        assert await bench.refused(web)
        assert await bench.is_open(made), "its own traffic is exempt, whatever selects it"
        bench.agent.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(bench.agent.process.wait, 10)
        assert not made.exists()
        assert await bench.refused(web)
