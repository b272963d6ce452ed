"""`aegisflux up` as its users start it, on ports and in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.engines import free_base

UP = "AegisFlux is up"
AEGISFLUX = str(Path(sys.executable).parent / "aegisflux")


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, status: int, headers, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


class Up:
    """A running control plane."""

    def __init__(self, data: Path, port: int, **settings: str) -> None:
        self.data, self.port = data, port
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AEGISFLUX_")}
        self.environ = clean | {"AEGISFLUX_DATA_DIR": str(data), "AEGISFLUX_PORT_BASE": str(port)} | settings
        self.process: subprocess.Popen | None = None
        self.become: tuple[str, ...] = ()
        self.log = data.parent / "up.log"

    def start(self) -> None:
        """Start and wait until it is ready."""
        told = self.log.read_text().count(UP) if self.log.exists() else 0
        with self.log.open("ab") as log:
            argv = [*self.become, AEGISFLUX, "up"]
            self.process = subprocess.Popen(argv, env=self.environ, stdout=log, stderr=log)
        try:
            self.until(lambda: self.log.read_text().count(UP) > told, 40)
            self.wait_ready()
        except BaseException:
            self.end()
            raise

    def wait_ready(self, seconds: float = 40) -> None:
        """Until /readyz answers 200."""
        self.until(lambda: self.call("GET", "/readyz").status == 200, seconds)

    def until(self, check, seconds: float = 20):
        """The first true answer of a check."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = check()
            except OSError:
                answer = None
            if answer:
                return answer
            assert self.process is None or self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"not true within {seconds} s\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit status."""
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(40)

    def end(self) -> None:
        """End it, whatever it takes: one that goes on restarts its services in a folder that is gone."""
        assert self.process
        children = [json.loads(path.read_text())["pid"] for path in (self.data / "run").glob("*.pid")]
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            for pid in children:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def pid(self, child: str) -> int:
        """The process of a child."""
        return json.loads((self.data / "run" / f"{child}.pid").read_text())["pid"]

    @property
    def admin(self) -> str:
        return (self.data / "secrets" / "admin-token").read_text().strip()

    def call(self, method: str, path: str, body=None, token: str | None = "admin", **headers: str) -> Answer:
        """One request; `token` "admin" is the first admin's."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if token is not None:
            headers["Authorization"] = "Bearer " + (self.admin if token == "admin" else token)
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def curl(self, method: str, path: str, body=None) -> tuple[int, str, str]:
        """The same with curl, as a user types it: status, content type, text."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        line = f"curl -s -w '\\n%{{http_code}} %{{content_type}}' -X {method} 'localhost:{self.port}{path}'"
        line += ' -H "Authorization: Bearer $TOKEN"'
        if data is not None:
            line += " -H 'Content-Type: application/json' -d @-"
        done = subprocess.run(
            ["bash", "-c", line], input=data or b"", capture_output=True, timeout=40, check=True,
            env=self.environ | {"TOKEN": self.admin},
        )  # fmt: skip
        text, _, end = done.stdout.decode().rpartition("\n")
        status, _, kind = end.partition(" ")
        return int(status), kind, text

    def run(self, *argv: str, **environ: str) -> subprocess.CompletedProcess:
        """A command with this control plane's settings."""
        return subprocess.run(
            argv, env=self.environ | environ, capture_output=True, text=True, timeout=60, check=False
        )

    def exports(self) -> dict[str, str]:
        """What `eval "$(aegisflux env)"` sets."""
        script = f'eval "$({AEGISFLUX} env)" && env -0'
        done = self.run("bash", "-c", script)
        assert done.returncode == 0, done.stderr
        pairs = (line.partition("=") for line in done.stdout.split("\0") if line)
        return {name: value for name, _, value in pairs if name.startswith(("AEGISFLUX_", "NATS_"))}


@contextmanager
def running_up(folder: Path, **settings: str):
    """Started, and ended however the test ends."""
    up = Up(folder / "data", free_base(), **settings)
    try:
        up.start()
        yield up
    finally:
        if up.process and up.process.poll() is None:
            up.end()
