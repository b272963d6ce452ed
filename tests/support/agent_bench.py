"""An agent's process on the real kernel, below a cgroup of its own; what it promises is seen by connects."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.agent_process import AgentProcess, EnrollServer
from support.agents import Plane, body, edges
from support.engines import running_nats
from tests.support.netns import cgroup_root, kill_cgroup

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
        self.agent.call("panic", "--instance", self.name)
        self.agent.close()
        self.enrolment.close()
        kill_cgroup(self.top)


def content(bench, version=1, allow=(), **fields):
    return bench.plane.content(body(version, edges=edges(*allow), **fields))


@asynccontextmanager
async def enrolled_bench(directory: Path) -> AsyncIterator[Bench]:
    """A bench on a NATS of its own, whose agent is enrolled and not started; it is closed in any case."""
    async with running_nats(directory / "nats") as lab:
        bench = Bench(directory, lab, Plane())
        try:
            await bench.enroll()
            yield bench
        finally:
            await asyncio.to_thread(bench.close)
