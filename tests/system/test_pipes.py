"""A pipe that nobody reads any more ends a command in silence; a stderr that takes nothing stops none."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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

ROWS = [
    {"id": 1, "name": "n" * 1000, "host_id": "h", "host_labels": {"a": "b"}, "labels": {}} for _ in range(200)
]
ASKING = (
    "service list", "service list -o json", "service list -o yaml", "service list -o csv", "hosts list",
    "token list", "keys list", "snapshot list", "snapshot show 1", "audit list", "audit list -o jsonl",
    "rollout list -o json", "segment plans", "inventory hosts",
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


class Api(BaseHTTPRequestHandler):
    """Answers everything with many rows, in the form of the route."""

    def do_GET(self) -> None:
        bare = self.path.startswith(("/api/v1/services", "/api/v1/hosts", "/api/v1/tokens", "/seg/maps"))
        body = json.dumps(ROWS if bare else {"items": ROWS, "more": False} | ROWS[0]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def api():
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("command", ASKING)
def test_a_command_that_asks_ends_too(command, api):
    names = ("URL", "ENRICH_URL", "SEGMENTER_URL", "INGEST_URL")
    env = os.environ | {f"AEGISFLUX_{name}": api for name in names} | {"AEGISFLUX_TOKEN": "x"}
    argv = [AEGISFLUX, *command.split()]
    heard = subprocess.run(argv, env=env, capture_output=True, check=False, timeout=60)
    assert heard.stdout, f"it prints nothing that one could stop reading: {heard.stderr.decode()}"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(argv, env=env, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writing)
    said = [line for line in done.stderr.decode().splitlines() if not line.startswith("warning: ")]
    assert (done.returncode, said) == (0, [])
