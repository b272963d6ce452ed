"""The product as its users meet it: commands, settings and files. Nothing of its inside is imported here."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
AEGISFLUX = str(Path(sys.executable).parent / "aegisflux")
LEASE_SECONDS = 15
API_PORT, NATS_PORT = 8081, 4222


def nats_port(base: int) -> int:
    """Where NATS listens."""
    return base + 1 if base else NATS_PORT


def api_port(base: int) -> int:
    """Where the orchestrator listens."""
    return base if base else API_PORT


def secrets(data: Path) -> Path:
    """Where the control plane keeps its keys."""
    return data / "secrets"


def admin_token(data: Path) -> str:
    """The first admin's token, as the start-up screen says where it is."""
    found = sorted(data.rglob("*admin*token*"))
    return found[0].read_text().strip() if found else ""


class Runs(Protocol):
    """A machine that runs commands."""

    def run(
        self, argv: Sequence[str], timeout: float = 20, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]: ...


def clean_environment() -> dict[str, str]:
    """Ours without settings of an AegisFlux that somebody runs here."""
    return {name: text for name, text in os.environ.items() if not name.startswith("AEGISFLUX_")}


def up(data: Path, address: str, shift: int, lease: int = LEASE_SECONDS) -> tuple[list[str], dict[str, str]]:
    """Command, settings of the control plane: at `address`, leases of `lease` seconds at most."""
    argv = [AEGISFLUX, "up", "--data-dir", str(data), "--port-base", str(shift)]
    settings = {"AEGISFLUX_LISTEN": address, "AEGISFLUX_LEASES_MAX_SECONDS": str(lease)}
    return argv, settings


def agent_settings(state: Path, datapath: str, cgroup: Path | None, instance: str) -> dict[str, str]:
    """Settings of one host's agent."""
    found = {"STATE_DIR": str(state), "DATAPATH": datapath, "INSTANCE": instance}
    found |= {"HEARTBEAT_SECONDS": "2", "TICK_SECONDS": "0.5", "TELEMETRY_FLOW_SECONDS": "1"}
    if cgroup is not None:
        found |= {"ATTACH_CGROUP": str(cgroup)}
    return {f"AEGISFLUX_AGENT_{name}": text for name, text in found.items()}


def ask(state: Path, do: str, **question: Any) -> list[dict[str, Any]]:
    """What a running agent answers on its socket; empty when none does."""
    found = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(5)
        try:
            line.connect(str(state / "agent.sock"))
            line.sendall(json.dumps({"do": do, **question}).encode() + b"\n")
            with line.makefile("rb") as answers:
                found = [json.loads(answer) for answer in answers]
        except (OSError, ValueError):
            return []
    return [answer for answer in found if "error" not in answer]


def agent(machine: Runs, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`aegisflux agent ...` on a host."""
    return machine.run([AEGISFLUX, "agent", *arguments], stdin=stdin)


def why(
    machine: Runs, service: str, proto: str, peer: str, port: int, *, ingress: bool = False
) -> dict[str, Any]:
    """`aegisflux agent why`: verdict, reason and rule from what the host's kernel holds."""
    direction = ["--ingress"] if ingress else []
    done = agent(machine, "why", service, proto, peer, str(port), *direction, "-o", "json")
    return _parsed(done)


def denied(machine: Runs) -> list[dict[str, Any]]:
    """`aegisflux agent denied`: refused flows, oldest first."""
    done = agent(machine, "denied", "-o", "jsonl")
    return [json.loads(line) for line in done.stdout.splitlines()]


def status(machine: Runs) -> dict[str, Any]:
    """`aegisflux agent status`."""
    return _parsed(agent(machine, "status", "-o", "json"))


def _parsed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"{' '.join(map(str, done.args))}: {done.stderr.strip() or done.stdout}") from None
    return found


def reason(found: dict[str, Any]) -> str:
    """A verdict in a few words."""
    rule = f" by {found['rule']}" if found.get("rule") else ""
    return f"{found['verdict']} ({found['reason']}{rule})"


def viewed(desk: Runs, data: Path, token: str, shift: int, *words: str) -> str:
    """What a command of a viewer prints; empty when it fails."""
    return _asked(desk, data, token, shift, *words).stdout


def viewer(desk: Runs, data: Path, token: str, shift: int, *words: str) -> Any:
    """The same for programs; an empty list when it fails."""
    done = _asked(desk, data, token, shift, *words, "-o", "json")
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout else []


def typed(desk: Runs, data: Path, token: str, shift: int, *words: str) -> subprocess.CompletedProcess[str]:
    """What a user types, and what comes of it."""
    return _asked(desk, data, token, shift, *words)


def _asked(desk: Runs, data: Path, token: str, shift: int, *words: str) -> subprocess.CompletedProcess[str]:
    settings = {"DATA_DIR": str(data), "PORT_BASE": str(shift), "TOKEN": token}
    named = [f"AEGISFLUX_{name}={text}" for name, text in settings.items()]
    return desk.run(["env", "NO_COLOR=1", *named, AEGISFLUX, *words])
