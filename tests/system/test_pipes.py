"""A pipe that nobody reads any more ends a command in silence; a stderr that takes nothing stops none."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer

import pytest

AEGISFLUX = str(Path(sys.executable).parent / "aegisflux")
FOUND = {
    "host_id": "web1", "serial": 1, "connected": True, "datapath": "bpf", "panicked": False, "services": [],
    "failures": {}, "loss": {}, "checks": [], "next": "",
    "flow": "x" * 200_000, "verdict": "allowed", "reason": "rule",
    "direction": "egress", "peer_port": 1, "rule": "r" * 200_000, "proto": "tcp", "peer": "10.0.0.1",
    "boot_seconds": 1.0, "service_id": 1, "troubles": ["t" * 200_000],
}  # fmt: skip
COMMANDS = (
    "--help", "--version", "agent --help", "env --help", "agent status", "agent status -o json",
    "agent why 1 tcp 10.0.0.1 22", "agent denied", "agent doctor", "agent doctor -o json",
)  # fmt: skip


class Answer(StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(json.dumps(FOUND).encode() + b"\n")


@pytest.fixture
def state(tmp_path):
    """The state folder of an agent that answers everything with a long text."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    (folder / "identity").touch()
    with ThreadingUnixStreamServer(str(folder / "agent.sock"), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder
        server.shutdown()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_seen_enough_ends_the_command(command, state):
    env = os.environ | {
        "AEGISFLUX_AGENT_STATE_DIR": str(state),
        "AEGISFLUX_AGENT_CONFIG": str(state / "none"),
        "AEGISFLUX_AGENT_DATAPATH": "simulated",
    }
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [AEGISFLUX, *command.split()],
        env=env,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(writing)
    said = [line for line in done.stderr.decode().splitlines() if not line.startswith("warning: ")]
    assert (done.returncode, said) == (0, [])
