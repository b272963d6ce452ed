"""Runs of script/demo, what they tell, and what they could leave behind."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from aegisflux.adapters.engines.postgres import PostgresEngine
from tests.support import leftovers
from tests.support.netns import cgroup_root

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120
BPFFS = Path("/sys/fs/bpf/aegisflux")
TITLES = [
    "A fleet of five hosts",
    "aegisflux up: NATS, PostgreSQL and the orchestrator",
    "Enrolment: one token, one host, one key",
    "Traffic before any snapshot: everybody reaches everybody",
    "The database: observe first, then enforce",
    "What the hosts told meanwhile: nobody wrote any of this down",
    "A canary: web version 1 on web-1 only",
    "Promotion: all hosts of the service",
    "Bad snapshots are refused, and say why",
    "An attacker on the bus: a tampered and a replayed manifest for web-1",
    "A mistake, and the way back",
    "The control plane is killed (kill -9, every process)",
    "Panic on web-1, without any network",
    "The control plane comes back",
    "All hosts converge again",
    "Withdraw all of it, and learn from what the hosts did",
    "Plan it, and try it on what was recorded: nobody is touched",
    "The rollout: beside, then a canary, then all, by evidence alone",
    "A harmful change: caught by simulation; pushed by force, taken back by itself",
    "What the traffic saw all along",
]
# Without packets there is nothing to learn from.
TRAFFIC_ONLY = TITLES[-4:-1]


@contextmanager
def short_folder() -> Iterator[Path]:
    """A short path: sockets live below it."""
    with tempfile.TemporaryDirectory(prefix="afd") as name:
        Path(name).chmod(0o711)
        yield Path(name)


class Demo:
    """One run of demo/run.py, and what it could leave behind."""

    def __init__(
        self, folder: Path, *arguments: str, under: tuple[str, ...] = (), code: str | None = None
    ) -> None:
        self.folder = folder
        script = [str(ROOT / "demo" / "run.py")] if code is None else ["-c", code, str(ROOT)]
        argv = [*under, sys.executable, *script, *arguments]
        environment = {**os.environ, "TMPDIR": str(folder), "NO_COLOR": "1"}
        if under:  # what was found out about us is not true of it
            environment = {k: v for k, v in environment.items() if not k.startswith("AEGISFLUX_CAN_")}
        self.process = subprocess.Popen(
            argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )

    def told(self) -> tuple[int, str, str]:
        """Exit code, and what it said on stdout and stderr."""
        out, err = self.process.communicate(timeout=LIMIT + 20)
        return self.process.returncode, out, err

    def leftovers(self) -> list[str]:
        mine = f"demo{self.process.pid}-"
        found = [str(p) for p in cgroup_root().glob(f"aegisflux-{mine}*")]
        found += [str(p) for p in Path("/run/netns").glob(f"{mine}*")]
        found += [str(p) for p in BPFFS.glob(f"{mine}*")] if BPFFS.is_dir() else []
        found += [str(p) for p in (*self.folder.iterdir(), *leftovers.below(self.folder))]
        return found + [f"process {p.pid}: {p.info['cmdline']}" for p in self._processes()]

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["cmdline", "environ"]):
            if process.pid != os.getpid() and (process.info["environ"] or {}).get("TMPDIR") == str(
                self.folder
            ):
                yield process


def sockets(text: str) -> Path:
    """The folder of PostgreSQL's sockets, from what the account said of its data."""
    data = re.search(r"data in ([^\s\"]+)", text)
    assert data, text
    return PostgresEngine(Path(data[1]) / "postgres").socket_dir


def ends_well(folder: Path, world: str, under: tuple[str, ...] = ()) -> None:
    """The whole story is told, everything in it is as expected, and nothing is left behind."""
    began = time.monotonic()
    demo = Demo(folder, "-o", "json", under=under)
    code, text, complaints = demo.told()
    seconds = time.monotonic() - began
    assert complaints == ""
    told = json.loads(text)
    facts = [(step["title"], fact) for step in told["steps"] for fact in step["facts"]]
    failed = [f"{title}: {fact['claim']}: {fact['seen']}" for title, fact in facts if not fact["ok"]]
    assert (code, failed, told["ended"]) == (0, [], None), text[-3000:]
    assert told["datapath"] == world
    titles = [step["title"] for step in told["steps"]]
    assert titles == (TITLES if world == "bpf" else [title for title in TITLES if title not in TRAFFIC_ONLY])
    assert all(step["facts"] for step in told["steps"][1:])
    assert seconds < LIMIT
    assert demo.leftovers() == []
    assert not sockets(text).exists()
