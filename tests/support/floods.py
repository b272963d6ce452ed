"""An attack in a process of its own, and what others feel of it meanwhile."""

import http.client
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.up import Up

REPOSITORY = Path(__file__).resolve().parents[2]
MEBIBYTE = 1 << 20


@dataclass
class Felt:
    """Seconds that each answer took, by what was asked, and the most memory of the service in MiB."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    memory: int = 0

    def add(self, what: str, taken: float, status: object, expected: int) -> None:
        """Note an answer."""
        self.seconds.setdefault(what, []).append(taken)
        if status != expected:
            self.wrong.append(f"{what}: {status}")

    def median(self, what: str) -> float:
        """The median of what was asked."""
        found = sorted(self.seconds[what])
        return found[len(found) // 2]


def ask(port: int, method: str, path: str, body: str | None = None, token: str = "") -> tuple[object, float]:
    """Status, or what went wrong, of one request on a connection of its own, and the seconds that it took."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, body=body, headers=headers)
        status: object = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        status = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return status, time.monotonic() - began


@contextmanager
def attack(name: str, port: int, seconds: float, host: str = "127.0.0.1", token: str = ""):
    """Run an attack beside the block; yields its process."""
    argv = [sys.executable, "-m", "bench.lib.attacks_http", name, "--host", host, "--port", str(port)]
    process = subprocess.Popen(
        [*argv, "--seconds", str(seconds)], cwd=REPOSITORY, env=os.environ | {"ATTACK_TOKEN": token},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def felt_during(
    up: Up, name: str, seconds: float, *, offset: int = 0, host: str = "127.0.0.1", token: str = "",
    others: tuple[tuple[str, int, str, str], ...] = (),
) -> tuple[Felt, dict]:  # fmt: skip
    """What /healthz, an operator's panic, an admin's write and `others` (name, port offset, path, token)
    feel of an attack on the service at an offset of the ports; and what the attack says of itself."""
    service = {0: "orchestrator", 5: "ingest"}[offset]
    process = psutil.Process(up.pid(service))
    felt = Felt()
    with attack(name, up.port + offset, seconds, host, token) as running:
        time.sleep(0.6)
        while running.poll() is None:
            status, taken = ask(up.port + offset, "GET", "/healthz")
            felt.add("healthz", taken, status, 200)
            status, taken = ask(up.port, "POST", "/api/v1/panic", '{"fleet": true}', up.admin)
            felt.add("panic", taken, status, 200)
            status, taken = ask(up.port, "POST", "/api/v1/hosts/tokens", "{}", up.admin)
            felt.add("write", taken, status, 201)
            for what, at, path, bearer in others:
                status, taken = ask(up.port + at, "GET", path, token=bearer)
                felt.add(what, taken, status, 200)
            felt.memory = max(felt.memory, process.memory_info().rss // MEBIBYTE)
        told = json.loads(running.stdout.read() or "{}")
    return felt, told


def counters(up: Up, name: str, offset: int = 0) -> dict[str, float]:
    """The series of a metric by their labels."""
    connection = http.client.HTTPConnection("127.0.0.1", up.port + offset, timeout=15)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {up.admin}"})
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {
        line.partition(" ")[0].removeprefix(name): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(name + "{")
    }
