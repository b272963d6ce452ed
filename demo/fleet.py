"""A small real fleet: a namespace and a cgroup a host, joined by a bridge, the control plane in the hub.

Everything lives below one cgroup and one temporary folder, and pins have our names; `close` removes it all.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import leftovers
from tests.support.netns import Host, Lab, cgroup_root
from tests.support.probes import echo_argv

from demo import product
from demo.logs import drop_postgres, tail
from demo.talking import Talking, finish

ROOT = product.ROOT
TALKER = (sys.executable, "-S", "-m", "demo.talker")
Popen = subprocess.Popen


@dataclass(slots=True)
class Machine:
    """A host of the story. `folder` holds what its agent keeps, `pins` names its datapath."""

    name: str
    address: str
    folder: Path
    host: Host
    agent: "Popen[bytes] | None" = None
    environment: dict[str, str] = field(default_factory=dict)
    talking: Talking | None = None
    started: "list[Popen[bytes]]" = field(default_factory=list)

    @property
    def pins(self) -> str:
        return self.host.netns

    @property
    def attach(self) -> Path:
        """The cgroup that stands for the whole of the host."""
        return self.host.cgroup

    def run(
        self, argv: Sequence[str], timeout: float = 20, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end, in a cgroup of no service."""
        env = product.clean_environment() | self.environment
        return self.host.run(argv, "admin.slice", timeout, env=env, cwd="/", input=stdin)

    def beside(self, name: str) -> "Machine":
        """The same machine with another agent's state folder."""
        other = Machine(name, self.address, self.folder / name, self.host)
        other.folder.mkdir(mode=0o700, exist_ok=True)
        other.environment = product.agent_settings(
            other.folder / "agent", "bpf", self.attach, f"{self.pins}-{name}"
        )
        return other

    def start_agent(self, argv: Sequence[str]) -> None:
        """Start the host's agent in a cgroup of its own."""
        self.agent = _started(self.host, argv, "agent.service", self.folder / "agent.log", self.environment)

    def asked(self, do: str) -> list[dict[str, Any]]:
        """What the running agent answers over its own socket; empty when none does."""
        return product.ask(self.folder / "agent", do)

    def ask(self, do: str) -> dict[str, Any] | None:
        return next(iter(self.asked(do)), None)

    def tail_of_log(self) -> str:
        return tail(self.folder / "agent.log")

    def serve(self, service: str, *ports: int) -> None:
        """Start a TCP and UDP echo server of a service, and wait until it listens."""
        server = self.host.start(echo_argv(*ports), f"{service}.service", stdout=subprocess.PIPE)
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        self.started.append(server)

    def program(self, service: str) -> Talking:
        """Start a program of a service, that the story can ask to talk."""
        process = self.host.start(
            TALKER,
            f"{service}.service",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        )
        self.started.append(process)
        return Talking(process, f"{service} on {self.name}")

    def reap(self) -> None:
        """Let go of processes that have ended."""
        for process in (*self.started, *([self.agent] if self.agent else [])):
            finish(process)


class RealFleet:
    """The hosts by name, in the order of `names`; the control plane's machine is `hub`."""

    datapath = "bpf"
    words = "each: a network namespace and a cgroup, its own agent process, real programs and servers"

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.machines = names, dict[str, Machine]()
        self.lab = Lab("demo")
        self.folder = Path(tempfile.mkdtemp(prefix="aegisflux-demo-"))
        self.folder.chmod(0o711)
        self.control: Popen[bytes] | None = None
        self.port_base = 0

    def open(self) -> None:
        """Build namespaces, links and cgroups."""
        self.lab.__enter__()
        self.hub = self._machine("hub", self.lab.hub)
        for name in self.names:
            self.machines[name] = self._machine(name, self.lab.host(name))

    @property
    def netns(self) -> str | None:
        """Where the control plane's ports are."""
        return self.lab.hub.netns

    @property
    def desk(self) -> Machine:
        """Where somebody asks the control plane."""
        return self.hub

    @property
    def control_address(self) -> str:
        """Where hosts reach the control plane."""
        return self.lab.hub.v4

    def tail_of_log(self) -> str:
        return tail(self.folder / "control.log")

    def forger(self, secrets: Path, url: str) -> Talking:
        """Start the attacker on the bus."""
        process = self.lab.hub.start(
            (sys.executable, "-m", "demo.forge", str(secrets), url),
            "forger",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        return Talking(process, "the attacker on the bus")

    def stop_agent(self, host: str, number: int) -> None:
        """Send a signal to the agent of a host."""
        agent = self.machines[host].agent
        assert agent is not None
        agent.send_signal(number)

    def start_control(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the control plane in a cgroup of its own in the hub."""
        log = self.folder / "control.log"
        self.control = _started(self.lab.hub, argv, "control.service", log, environment)

    def kill_control(self) -> int:
        """kill -9 every process of the control plane at once; how many there were."""
        path = self.lab.hub.below("control.service")
        count = sum(len(p.read_text().split()) for p in path.rglob("cgroup.procs"))
        (path / "cgroup.kill").write_text("1")
        assert self.control is not None
        self.control.wait(10)
        return count

    def close(self) -> None:
        """End everything and remove it; safe to repeat, and after a failure at any place."""
        try:
            if self.control is not None and self.control.poll() is None:
                self.control.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self.control.wait(12)
        finally:
            self.lab.close()
            for machine in self.machines.values():
                machine.reap()
                leftovers.remove([leftovers.PINS / machine.pins])
            drop_postgres(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            leftovers.remove(leftovers.below(self.folder))

    def leftovers(self) -> list[str]:
        """What of ours is still on this machine: for the last expectation."""
        found = [str(p) for p in cgroup_root().glob(f"aegisflux-{self.lab.name}*")]
        found += [str(p) for p in Path("/run/netns").glob(f"{self.lab.name}-*")]
        found += [str(p) for p in leftovers.PINS.glob(f"{self.lab.name}-*")]
        return found + ([str(self.folder)] if self.folder.exists() else [])

    def _machine(self, name: str, host: Host) -> Machine:
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        machine = Machine(name, host.v4, folder, host)
        machine.environment = product.agent_settings(folder / "agent", "bpf", host.cgroup, host.netns)
        return machine


def _started(
    host: Host, argv: Sequence[str], cgroup: str, log: Path, environment: Mapping[str, str]
) -> "Popen[bytes]":
    with log.open("ab") as output:
        return host.start(
            argv,
            cgroup,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=product.clean_environment() | dict(environment),
            cwd="/",
            start_new_session=True,
        )
