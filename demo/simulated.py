"""The fleet where no kernel enforces: real control plane, real agents, datapaths in Python, no traffic.

A "connection" is what both agents say: EPERM where the caller's host refuses, silent where the peer's.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tests.support import leftovers

from demo import product
from demo.logs import drop_postgres, tail
from demo.talking import Talking, finish

ROOT = product.ROOT
Popen = subprocess.Popen


@dataclass(slots=True)
class SimulatedMachine:
    """A host that is an agent and an address."""

    name: str
    address: str
    folder: Path
    fleet: "SimulatedFleet"
    agent: "Popen[bytes] | None" = None
    environment: dict[str, str] = field(default_factory=dict)

    def run(
        self, argv: Sequence[str], timeout: float = 20, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end with the settings of this host's agent."""
        env = product.clean_environment() | self.environment
        return subprocess.run(
            argv, env=env, input=stdin, timeout=timeout, capture_output=True, text=True, check=False, cwd="/"
        )

    def beside(self, name: str) -> "SimulatedMachine":
        """The same machine with another agent's state folder."""
        return self.fleet.machine(name, self.address, self.folder / name)

    def start_agent(self, argv: Sequence[str]) -> None:
        self.agent = _started(argv, self.folder / "agent.log", self.environment)

    def serve(self, service: str, *ports: int) -> None:
        """Nothing listens: the verdicts are asked for."""

    def program(self, service: str) -> "SimulatedProgram":
        return SimulatedProgram(self.fleet, self, service)

    def asked(self, do: str, **question: Any) -> list[dict[str, Any]]:
        """What the running agent answers over its own socket; empty when none does."""
        return product.ask(self.folder / "agent", do, **question)

    def ask(self, do: str) -> dict[str, Any] | None:
        return next(iter(self.asked(do)), None)

    def tail_of_log(self) -> str:
        return tail(self.folder / "agent.log")


@dataclass(slots=True)
class SimulatedProgram:
    """A program of a service, as far as verdicts go."""

    fleet: "SimulatedFleet"
    machine: SimulatedMachine
    service: str

    def attempt(self, proto: str, address: str, port: int) -> dict[str, Any]:
        """See `Attempts.attempt`."""
        began = time.monotonic()
        word = self._word(proto, address, port)
        ended = time.monotonic()
        return {"word": word, "at": ended, "ms": (ended - began) * 1000}

    def until(
        self, words: tuple[str, ...], proto: str, address: str, port: int, within: float = 8.0
    ) -> dict[str, Any]:
        """See `Attempts.until`."""
        limit = time.monotonic() + within
        while True:
            found = self.attempt(proto, address, port)
            if found["word"] in words or time.monotonic() > limit:
                return found
            time.sleep(0.01)

    def _word(self, proto: str, address: str, port: int) -> str:
        peer = next(m for m in self.fleet.machines.values() if m.address == address)
        if not _allowed(self.machine, self.service, "egress", proto, address, port):
            return "EPERM"
        served = self.fleet.served.get(peer.name, "")
        if not _allowed(peer, served, "ingress", proto, self.machine.address, port):
            return "silent"
        return "connected" if proto == "tcp" else "answered"


def _allowed(
    machine: SimulatedMachine, service: str, direction: str, proto: str, peer: str, port: int
) -> bool:
    question = {"service": service, "direction": direction, "proto": proto, "peer": peer, "port": port}
    found = machine.asked("why", **question)
    return not found or found[0]["verdict"] != "blocked"


class SimulatedFleet:
    """As `fleet.RealFleet`, on this machine's loopback."""

    datapath = "simulated"
    words = "each: a real agent process with a simulated datapath; nothing is enforced"
    netns: str | None = None
    control_address = "127.0.0.1"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.machines: dict[str, SimulatedMachine] = {}
        self.served = {"db": "db", "batch": "batch", "web-1": "web", "web-2": "web"}
        self.folder = Path(tempfile.mkdtemp(prefix="aegisflux-demo-"))
        self.control: Popen[bytes] | None = None
        self.port_base = 10_000 + os.getpid() % 2_000 * 10
        self._others: list[Popen[bytes]] = []

    @property
    def desk(self) -> "SimulatedMachine":
        """Where somebody asks the control plane."""
        return self.machines["web-1"]

    def open(self) -> None:
        """Give each host an address of the documentation's range."""
        for number, name in enumerate(self.names, 2):
            self.machines[name] = self.machine(name, f"192.0.2.{number}", self.folder / name)

    def machine(self, name: str, address: str, folder: Path) -> SimulatedMachine:
        """A host with settings of its own."""
        folder.mkdir(mode=0o700, exist_ok=True)
        settings = product.agent_settings(folder / "agent", "simulated", None, name)
        if served := self.served.get(name):
            settings["AEGISFLUX_AGENT_SIMULATED_CGROUPS"] = f"system.slice/{served}.service"
        return SimulatedMachine(name, address, folder, self, None, settings)

    def start_control(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.control = _started(argv, self.folder / "control.log", environment)

    def kill_control(self) -> int:
        """kill -9 every process of the control plane; how many there were."""
        assert self.control is not None
        tree = _tree(self.control.pid)
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.control.wait(10)
        psutil.wait_procs(tree, 10)
        return len(tree)

    def forger(self, secrets: Path, url: str) -> Talking:
        """Start the attacker on the bus."""
        argv = (sys.executable, "-m", "demo.forge", str(secrets), url)
        pipe = subprocess.PIPE
        process = Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd=ROOT)
        self._others.append(process)
        return Talking(process, "the attacker on the bus")

    def stop_agent(self, host: str, number: int) -> None:
        """A simulated datapath lives in its agent: stopping that would stop the verdicts."""

    def tail_of_log(self) -> str:
        return tail(self.folder / "control.log")

    def close(self) -> None:
        """End everything and remove it; safe to repeat."""
        if self.control is not None and self.control.poll() is None:
            self.control.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.control.wait(12)
            if self.control.poll() is None:
                self.kill_control()
        agents = [m.agent for m in self.machines.values() if m.agent is not None]
        for process in (*agents, *self._others):
            finish(process)
        self._others.clear()
        self.machines.clear()
        drop_postgres(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        leftovers.remove(leftovers.below(self.folder))

    def leftovers(self) -> list[str]:
        notes = [str(path) for path in leftovers.below(self.folder)]
        return [*notes, str(self.folder)] if self.folder.exists() else notes


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _started(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> "Popen[bytes]":
    with log.open("ab") as output:
        return Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=product.clean_environment() | dict(environment),
            cwd="/",
            start_new_session=True,
        )
