"""`aegisflux up` as its users start it, in a folder and a cgroup of its own, and its API."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.netns import Lab, enter

COMMAND: Final = str(Path(sys.executable).parent / "aegisflux")
CONTROL: Final = "control"


class Plane:
    """The control plane on this machine's loopback, below a lab's cgroup; it ends with the block."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.data, self.port = folder / "control", _free_pair()
        self._cgroup = lab.cgroup / CONTROL
        self._line: http.client.HTTPConnection | None = None
        self._token = ""

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        argv = [COMMAND, "up", "--data-dir", str(self.data), "--port-base", str(self.port)]
        with (self.folder / "up.log").open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                preexec_fn=lambda: enter(None, self._cgroup),  # noqa: PLW1509
            )
        try:
            until(self._ready, 60, lambda: (self.folder / "up.log").read_text()[-2000:])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._token = (self.data / "secrets" / "admin-token").read_text().strip()
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        (self._cgroup / "cgroup.kill").write_text("1")
        self._process.wait()

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One request over a connection that is kept; RuntimeError with the answer when it is no 2xx."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        for attempt in (0, 1):
            line = self._line or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            self._line = line
            try:
                line.request(method, path, data, self._headers())
                answer = line.getresponse()
                text = answer.read()
                break
            except (OSError, http.client.HTTPException):
                self._line = None
                if attempt:
                    raise
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500].decode(errors='replace')}")
        return json.loads(text) if text.startswith((b"{", b"[")) else text.decode()

    def token(self, label: str, host: str) -> str:
        """An enrolment token of one host."""
        asked = {"labels": {"role": label}, "host_id": host}
        return str(self.call("POST", "/api/v1/hosts/tokens", asked)["token"])

    def service(self, number: int, label: str, selector: str) -> None:
        """Register a service that hosts with this label run."""
        body = {"id": number, "name": label, "selectors": [selector], "host_labels": {"role": label}}
        self.call("POST", "/api/v1/services", body)

    def metric(self, name: str) -> float:
        """A counter without labels."""
        found = re.search(rf"^{name} (\S+)$", str(self.call("GET", "/metrics")), re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def in_force(self, service: int, version: int) -> int:
        """How many hosts' acks of a version are stored."""
        hosts = self.call("GET", f"/seg/maps/{service}/status")["hosts"]
        return sum(h["state"] == "in_force" and h["observed"]["version"] == version for h in hosts)

    def kill(self, command: str) -> int:
        """kill -9 of the process of ours whose command line holds this; its id."""
        for pid in map(int, (self._cgroup / "cgroup.procs").read_text().split()):
            with suppress(OSError):
                if command in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode():
                    os.kill(pid, signal.SIGKILL)
                    return pid
        raise RuntimeError(f"no process {command} below {self._cgroup}")

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}

    def _ready(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"aegisflux up ended: {(self.folder / 'up.log').read_text()[-2000:]}")
        with suppress(OSError, RuntimeError, http.client.HTTPException):
            self.call("GET", "/readyz")
            return True
        return False


def clean_environment() -> dict[str, str]:
    """Ours without settings of an AegisFlux that somebody runs here."""
    return {name: text for name, text in os.environ.items() if not name.startswith("AEGISFLUX_")}


def until(look: Callable[[], Any], seconds: float, why: Callable[[], str] = str, every: float = 0.02) -> Any:
    """Poll until there is something, and give it; RuntimeError with `why` after `seconds`."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = look()
        if found:
            return found
        time.sleep(every)
    raise RuntimeError(f"not within {seconds:g} s: {why()}")


def _free_pair() -> int:
    """A port that was free a moment ago, and so was the next."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            with suppress(OSError):
                two.bind(("127.0.0.1", port + 1))
                if port < 65_000:
                    return port
