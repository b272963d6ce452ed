"""The README's quick start as written: its own lines in its own order, in a namespace of their own."""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.netns import Host, Lab, cgroup_root, kill_cgroup

ROOT = Path(__file__).resolve().parents[2]
BPFFS = Path("/sys/fs/bpf/aegisflux")
INSTANCE = f"af{os.getpid()}-quickstart"
SHOWN_DIGEST = "sha256:98658bb879d5"
MARK = "---- next block"
pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.engines]


def blocks(kind: str) -> list[str]:
    """The fenced blocks of the quick start."""
    section = (ROOT / "README.md").read_text().split("\n## Quick start\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{kind}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


class Reader:
    """Somebody with terminals, who types what the README says."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host, self.folder = host, folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AEGISFLUX")}
        self.environ = clean | {
            "AEGISFLUX_DATA_DIR": str(folder / "data"),
            "AEGISFLUX_AGENT_STATE_DIR": str(folder / "state"),
            "AEGISFLUX_AGENT_INSTANCE": INSTANCE,
            "NO_COLOR": "1",
        }

    def left_running(self, name: str, lines: str) -> Path:
        """A terminal with something that goes on; what it shows."""
        shown = self.folder / name
        with shown.open("wb") as out:
            self.host.start(["bash", "-c", lines], cwd=ROOT, env=self.environ, stdout=out, stderr=out)
        return shown

    def typed(self, *commands: str) -> list[str]:
        """One terminal, block after block; what each showed."""
        lines = f"\necho '{MARK}'\n".join(commands)
        done = self.host.run(
            ["bash", "-c", f"exec 2>&1\n{lines}"], cwd=ROOT, env=self.environ, timeout=90, cgroup="reader"
        )
        return done.stdout.split(f"{MARK}\n")

    def waited(self, shown: Path, text: str) -> None:
        until = time.monotonic() + 40
        while text not in shown.read_text():
            assert time.monotonic() < until, f"no {text!r} in:\n{shown.read_text()}"
            time.sleep(0.05)


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Lab() as lab:
        host = lab.host("reader")
        with tempfile.TemporaryDirectory(prefix="afq") as name:
            try:
                yield Reader(host, Path(name))
            finally:
                kill_cgroup(host.cgroup)
                kill_cgroup(cgroup_root() / "quickstart")
                with suppress(OSError):
                    shutil.rmtree(BPFFS / INSTANCE)


WAIT = (
    "for _ in $(seq 100); do aegisflux inventory list --host demo-host --name bash | grep -q deb &&"
    " aegisflux graph reach quickstart >/dev/null 2>&1 && break; sleep 0.2; done\n"
)
STATUS = "aegisflux snapshot status 101"
SETTLED = f"for _ in $(seq 100); do {STATUS} | grep -q in_force && break; sleep 0.1; done\n"
LOOK_AGAIN = "for _ in $(seq 200); do aegisflux agent status | grep -q in_force && break; sleep 0.05; done\n"


def test_the_quick_start_works_as_written(reader: Reader) -> None:
    up, prepare, enroll, doctor, service, watch, post, call, why, promote, look, policy, panic, clean = (
        blocks("sh")
    )
    refused, explained = blocks("text")

    shown = reader.left_running("up", up)
    reader.waited(shown, "AegisFlux is up")
    running = reader.left_running("agent", prepare + enroll)
    reader.waited(running, "running as demo-host")
    if shutil.which("nats") is None:
        watch = watch.replace('nats sub "actions.seg.maps" -s "$NATS_URL"', "aegisflux bus watch")
    watched = reader.left_running("watch", prepare + watch)

    typed = reader.typed(
        prepare,
        doctor,
        service,
        post + LOOK_AGAIN,
        call,
        why,
        promote.replace(STATUS, SETTLED + STATUS),
        WAIT + look,
        policy,
        panic,
        clean,
    )
    prepared, examined, named, posted, called, answered, promoted, looked, planned, panicked, cleaned = typed

    assert '"status":"ok"' in prepared.replace(" ", "")
    assert "Traceback" not in examined
    assert '"name":"quickstart"' in named.replace(" ", "")
    assert "in_force" in posted
    assert refused in called
    assert explained in re.sub(r"sha256:\w+", SHOWN_DIGEST, answered)
    assert '"reason":"no_match"' in answered
    assert "198.51.100.1" in answered.split("\n")[-2], "the refused call is listed last"
    assert [json.loads(line)["version"] for line in promoted.splitlines()[:3]] == [1, 2, 3]
    assert "in_force" in promoted.splitlines()[-1]
    assert "CLIENT" in looked
    assert "blocked egress 198.51.100.1 tcp/443 (no_match)" in looked
    assert re.search(r"demo-host +exec ", looked)
    assert re.search(r"deb +bash ", looked)
    assert "service quickstart runs on demo-host" in looked
    assert "2 of 2 tests hold" in planned
    assert "aegisflux segment diff 1" in planned
    assert "0 of" in planned
    assert "rollout 1 observe: approved" in planned
    assert "> canary > waves > promoted" in planned
    assert "rollout 1 aborted: abort by admin" in planned
    assert "resumed" in panicked
    assert "withdraw" in cleaned
    reader.waited(watched, '"action":"rollback"')
    assert not (cgroup_root() / "quickstart").exists()
