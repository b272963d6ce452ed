"""script/demo tells its whole story, ends by itself, says so by its exit code, leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from tests.support.netns import cgroup_root

from aegisflux.adapters.engines.postgres import PostgresEngine

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 90
BPFFS = Path("/sys/fs/bpf/aegisflux")
REAL = [pytest.mark.bpf, pytest.mark.netns]
WORLDS = [pytest.param((), id="kernel", marks=REAL), pytest.param(("--simulated",), id="simulated")]
pytestmark = [pytest.mark.engines, pytest.mark.slow]


@pytest.fixture
def folder():
    """A short path: sockets live below it."""
    with tempfile.TemporaryDirectory(prefix="afd") as name:
        Path(name).chmod(0o711)
        yield Path(name)


class Demo:
    """One run of demo/run.py, and what it could leave behind."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        argv = [sys.executable, str(ROOT / "demo" / "run.py"), *arguments]
        environment = {**os.environ, "TMPDIR": str(folder), "NO_COLOR": "1"}
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
        found += [str(p) for p in self.folder.iterdir()]
        return found + [f"process {p.pid}: {p.info['cmdline']}" for p in self._processes()]

    def _processes(self):
        for process in psutil.process_iter(["cmdline", "environ"]):
            if process.pid != os.getpid() and (process.info["environ"] or {}).get("TMPDIR") == str(
                self.folder
            ):
                yield process


def sockets(text):
    """The folder of PostgreSQL's sockets, from what the account said of its data."""
    data = re.search(r"data in ([^\s\"]+)", text)
    assert data, text
    return PostgresEngine(Path(data[1]) / "postgres").socket_dir


@pytest.mark.parametrize("world", WORLDS)
def test_the_story_ends_well_and_leaves_nothing(folder, world):
    began = time.monotonic()
    demo = Demo(folder, "-o", "json", *world)
    code, text, complaints = demo.told()
    seconds = time.monotonic() - began
    assert complaints == ""
    told = json.loads(text)
    facts = [(step["title"], fact) for step in told["steps"] for fact in step["facts"]]
    failed = [f"{title}: {fact['claim']}: {fact['seen']}" for title, fact in facts if not fact["ok"]]
    assert (code, failed, told["ended"]) == (0, [], None), text[-3000:]
    assert told["datapath"] == ("simulated" if world else "bpf")
    assert seconds < LIMIT
    assert demo.leftovers() == []
    assert not sockets(text).exists()


@pytest.mark.bpf
@pytest.mark.netns
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_it_cleans_up_when_it_is_interrupted(folder, number):
    demo = Demo(folder)
    assert demo.process.stdout
    begun = ""
    for line in demo.process.stdout:
        begun += line
        if "Enrolment" in line:
            break
    demo.process.send_signal(number)
    code, text, complaints = demo.told()
    assert (code, complaints) == (1, ""), text
    assert "interrupted" in text or "terminated" in text
    assert demo.leftovers() == []
    assert not sockets(begun).exists()
