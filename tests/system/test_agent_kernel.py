"""The agent as a process over the real kernel: what it promises is seen by connects, not by its own word."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.netns import cgroup_root, kill_cgroup

from support.agent_process import AgentProcess, EnrollServer, fleet
from support.agents import Plane, body, edges
from support.engines import eventually, running_nats

pytestmark = [pytest.mark.bpf, pytest.mark.engines, pytest.mark.asyncio]
FAST = {"heartbeat_seconds": "0.5", "tick_seconds": "0.2", "refresh_seconds": "2", "drift_seconds": "0.5"}
ALLOWED, FORBIDDEN = "127.0.0.1", "192.0.2.1"

# Joins the cgroup, then says how a connect by a new UDP socket ends. EPERM is the connect hook's word.
CONNECT = """
import errno, socket, sys, time
procs, address, until = sys.argv[1:4]
open(procs, "w").write("0")
begin = time.monotonic()
tries = 0
while True:
    tries += 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect((address, 9))
            word = "open"
        except OSError as error:
            word = "refused" if error.errno == errno.EPERM else "open"
    if word == until or until == "-" or time.monotonic() - begin > 5:
        break
print(word, tries, (time.monotonic() - begin) * 1000)
"""


class Bench:
    """An agent's process with programs attached at a cgroup of its own, and the other end of its bus."""

    def __init__(self, directory: Path, lab, plane: Plane) -> None:
        self.name = f"aegisflux-agent-{os.getpid()}-{directory.name[-1]}"
        self.top = cgroup_root() / self.name
        self.plane, self.lab = plane, lab
        self.top.mkdir()
        self.agent = AgentProcess(
            directory, datapath="bpf", attach_cgroup=str(self.top), instance=self.name, **FAST
        )
        self.enrolment = EnrollServer(lab, plane)

    async def enroll(self) -> None:
        token = self.enrolment.token()
        done = await self.agent.acall("enroll", "--host-id", "web1", AEGISFLUX_ENROLL_TOKEN=token)
        assert done.returncode == 0, done.stderr

    def cgroup(self, name: str) -> Path:
        path = self.top / name
        path.mkdir(exist_ok=True)
        return path

    def service(self, content, *selectors: str, **changes):
        wanted = tuple(f"cgroup:{self.name}/{s}" for s in selectors or ("web",))
        return self.plane.service(content, selectors=wanted, **changes)

    def connect(self, cgroup: Path, address: str, until: str = "-") -> tuple[str, int, float]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CONNECT, str(cgroup / "cgroup.procs"), address, until],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        word, tries, ms = done.stdout.split()
        return word, int(tries), float(ms)

    async def refused(self, cgroup: Path, address: str = FORBIDDEN) -> bool:
        return (await asyncio.to_thread(self.connect, cgroup, address))[0] == "refused"

    async def is_open(self, cgroup: Path, address: str = FORBIDDEN) -> bool:
        return not await self.refused(cgroup, address)

    def close(self) -> None:
        if self.agent.process is not None:
            self.agent.process.send_signal(signal.SIGCONT)
        self.agent.call("panic")
        self.agent.kill()
        self.enrolment.close()
        kill_cgroup(self.top)


@pytest_asyncio.fixture
async def bench(tmp_path):
    async with running_nats(tmp_path / "nats") as lab:
        found = Bench(tmp_path, lab, Plane())
        try:
            await found.enroll()
            yield found
        finally:
            await asyncio.to_thread(found.close)


def content(bench, version=1, allow=(), **fields):
    return bench.plane.content(body(version, edges=edges(*allow), **fields))


async def test_a_post_ends_as_a_verdict_and_panic_ends_it(bench):
    web = bench.cgroup("web")
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        bench.agent.start()
        await control.acked(1)
        assert await bench.refused(web)
        assert await bench.is_open(web, ALLOWED), "loopback is the failsafe's"
        assert await bench.is_open(bench.cgroup("other")), "a cgroup of no service"
        denied = await bench.agent.acall("denied")
        assert FORBIDDEN in denied.stdout
        await control.desire(bench.service(content(bench, 2, ["192.0.2.0/24 udp/9"])))
        await control.acked(2)
        assert await bench.is_open(web)
        await control.desire(bench.service(content(bench, 3)))
        await control.acked(3)
        assert (await bench.agent.acall("panic")).returncode == 0
        assert await bench.is_open(web)
        await bench.agent.acall("resume")
        await eventually(lambda: bench.refused(web))


async def test_enforcement_outlives_the_agent_and_panic_needs_none(bench):
    web = bench.cgroup("web")
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        bench.agent.start()
        await control.acked(1)
        bench.agent.kill()
        assert await bench.refused(web)
        await bench.lab.process.stop()
        bench.agent.start()
        await eventually(bench.agent.status)
        assert await bench.refused(web), "without any control plane"
        bench.agent.kill()
        assert (await bench.agent.acall("panic")).returncode == 0
        assert await bench.is_open(web)
        await bench.lab.process.start()


async def test_panic_while_the_agent_is_stopped(bench):
    web = bench.cgroup("web")
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        bench.agent.start()
        await control.acked(1)
        bench.agent.process.send_signal(signal.SIGSTOP)
        assert await bench.refused(web)
        done = await bench.agent.acall("panic")
        assert done.returncode == 0, done.stderr
        assert await bench.is_open(web)
        bench.agent.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.6)
        assert await bench.is_open(web), "the agent that wakes up respects it"


@pytest.mark.parametrize(("on_expiry", "refused"), [("open", False), ("closed", True)])
async def test_a_lease_ends_while_the_agent_is_stopped(bench, on_expiry, refused):
    web, allow = bench.cgroup("web"), ["192.0.2.0/24 udp/9"] if on_expiry == "closed" else []
    async with fleet(bench.lab, bench.plane) as control:
        made = content(bench, 1, allow, on_expiry=on_expiry)
        await control.desire(bench.service(made, lease=int(time.time()) + 3))
        bench.agent.start()
        await control.acked(1)
        bench.agent.process.send_signal(signal.SIGSTOP)
        assert await bench.refused(web) is not refused
        await eventually(lambda: bench.refused(web) if refused else bench.is_open(web), 6)


async def test_what_is_not_confirmed_returns_in_the_kernel(bench):
    web = bench.cgroup("web")
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench, 1, ["192.0.2.0/24 udp/9"])))
        bench.agent.start()
        await control.acked(1)
        two = content(bench, 2)
        await control.desire(bench.service(two, confirm=2))
        await control.acked(2)
        assert await bench.refused(web)
        await eventually(lambda: bench.is_open(web), 6)
        await eventually(lambda: any(getattr(a, "reason", "") == "not_confirmed" for a in control.answers))
        three = content(bench, 3)
        await control.desire(bench.service(three, confirm=3))
        await control.acked(3)
        await control.confirm(three)
        await asyncio.sleep(3.5)
        assert await bench.refused(web), "a confirmed one stays"


async def test_a_trial_ends_although_the_agent_died_in_it(bench):
    web = bench.cgroup("web")
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench, 1, ["192.0.2.0/24 udp/9"])))
        bench.agent.start()
        await control.acked(1)
        await control.desire(bench.service(content(bench, 2), confirm=4))
        await control.acked(2)
        bench.agent.kill()
        assert await bench.refused(web)
        bench.agent.start()
        await eventually(lambda: bench.is_open(web), 10)


async def test_a_probe_from_inside_the_cgroup_ends_a_trial_at_once(bench):
    bench.cgroup("web")
    async with fleet(bench.lab, bench.plane) as control:
        bench.agent.start()
        with socket.create_server(("127.0.0.1", 0)) as server:
            good = f"127.0.0.1:{server.getsockname()[1]}"
            await control.desire(bench.service(content(bench), confirm=60, probes=(good,)))
            assert (await control.acked(1)).awaits_confirm
        began = time.monotonic()
        await control.desire(bench.service(content(bench, 2), confirm=60, probes=(f"{FORBIDDEN}:9",)))
        nack = await eventually(lambda: next((a for a in control.answers if hasattr(a, "reason")), None))
        assert (nack.reason, nack.version, time.monotonic() - began < 10) == ("not_confirmed", 2, True)
        assert f"probe {FORBIDDEN}:9" in nack.detail


async def test_a_restarted_glob_is_governed_within_50_ms(bench):
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench), "job@*"))
        bench.agent.start()
        await control.acked(1)
        gaps = []
        for number in range(10):
            path = bench.cgroup(f"job@{number}")
            word, _, ms = await asyncio.to_thread(bench.connect, path, FORBIDDEN, "refused")
            assert word == "refused"
            gaps.append(ms)
            path.rmdir()
        assert sorted(gaps)[len(gaps) // 2] <= 50, gaps


async def test_a_unit_of_a_literal_restarted_a_hundred_times_never_connects(bench):
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench), "web"))
        bench.agent.start()
        await control.acked(1)

        def restarts() -> list[str]:
            words = []
            for _ in range(100):
                path = bench.cgroup("web")
                words.append(bench.connect(path, FORBIDDEN)[0])
                path.rmdir()
            return words

        assert set(await asyncio.to_thread(restarts)) == {"refused"}


async def test_drift_in_the_kernel_is_repaired(bench):
    """Somebody else takes the slot's tables away."""
    from aegisflux.adapters.datapath.bpf import libbpf

    web = bench.cgroup("web")
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(content(bench)))
        bench.agent.start()
        await control.acked(1)
        fd = libbpf.obj_get(f"/sys/fs/bpf/aegisflux/{bench.name}/v1/maps/generations")
        try:
            libbpf.delete(fd, bytes(4))
        finally:
            os.close(fd)
        await eventually(lambda: bench.refused(web))
        await eventually(lambda: _drifted(control))


async def _drifted(control):
    beat = await control.heartbeat()
    return beat and beat.loss.get("drift", 0) > 0


async def test_it_stays_small(bench):
    allow = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}/32 tcp/{400 + n % 7}" for n in range(100_000)]
    made = await asyncio.to_thread(content, bench, 1, allow)
    async with fleet(bench.lab, bench.plane) as control:
        await control.desire(bench.service(made))
        bench.agent.start()
        await control.acked(1, 60)
        await asyncio.sleep(1)
        rss, peak = bench.agent.rss_mb(), bench.agent.rss_mb("VmHWM")
        assert rss <= 60, (rss, peak)
