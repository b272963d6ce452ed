"""What can be said of a host without the network: whether its kernel can do it, and how its agent is."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from aegisflux.agent import remember
from aegisflux.agent.cgroups import CgroupTree
from aegisflux.agent.control import SOCKET, ask
from aegisflux.agent.failsafes import absent_failsafes
from aegisflux.agent.identity import IDENTITY, read_identity
from aegisflux.agent.parts import AgentSettings
from aegisflux.agent.state import FileStore
from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.ports.datapath import Datapath
from aegisflux.runtime.cgroupfs import own_cgroup, v2_root

ATTACHED: Final = "programs attached"
ENROL: Final = "aegisflux hosts token (on the control plane), then here: aegisflux agent enroll"
RUN: Final = "aegisflux agent run"
CLOCK: Final = "aegisflux agent reset-clock"
CLOCK_SECONDS: Final = 60


class Finding(NamedTuple):
    """One line: of the `host`, whether it can run an agent, or of its `agent`. `required` ones make the exit
    status 1."""

    name: str
    ok: bool
    detail: str
    required: bool
    about: Literal["host", "agent"] = "host"


def examine(
    state: Path, make_datapath: Callable[[], Datapath], settings: AgentSettings | None = None
) -> list[Finding]:
    """All checks: of the host first, then of its agent. What an agent that runs says of itself counts;
    `settings` are those that one would begin with."""
    status = _status(state)
    agent = [*_agent(state, status), *_failsafe(status, settings or AgentSettings())]
    running = any(found.name == "running" and found.ok for found in agent)
    found = [_permitted(), _cgroups()]
    try:
        checks = make_datapath().doctor()
    except AegisError as error:
        return [*found, Finding("datapath", False, str(error), True), *agent]
    for check in checks:
        if check.name == ATTACHED:  # nothing is, before an agent ran and after a panic
            agent.append(
                Finding(check.name, check.ok, check.detail, running and not _panicked(agent), "agent")
            )
        elif check.name not in {one.name for one in found}:
            found.append(Finding(check.name, check.ok, check.detail, check.required))
    return [*found, *agent]


def next_step(findings: list[Finding]) -> str | None:
    """The command that leads on, None when there is nothing to do."""
    failed = [found for found in findings if not found.ok and found.required]
    if first := next((found for found in failed if found.about == "host"), None):
        return f"see to {first.name}: {first.detail}"
    bad = {found.name for found in findings if not found.ok and found.about == "agent"}
    steps = {
        "enrolment": ENROL,
        "panic": "aegisflux agent resume",
        "clock": CLOCK,
        "running": RUN,
        ATTACHED: RUN,
    }
    return next((step for name, step in steps.items() if name in bad), None)


def _permitted() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", True, "yes", True)
    return Finding("root", False, f"user {os.geteuid()}: the agent must load programs; run as root", True)


def _status(state: Path) -> dict[str, Any] | str:
    """What the running agent says, or why none answers."""
    try:
        (status,) = ask(state / SOCKET, {"do": "status"}, 5.0)
    except (AegisError, ValueError, OSError) as error:
        return str(error)
    return status


def _failsafe(status: dict[str, Any] | str, settings: AgentSettings) -> list[Finding]:
    """Lines that are wrong, and those whose cgroup is not there: those of the agent that runs, which may have
    been started with other settings than this command finds."""
    if isinstance(status, str):
        refused: Sequence[str] = settings.failsafe_refused
        away: Sequence[str] = ()
        with suppress(AegisError, OSError):
            away = absent_failsafes(settings, CgroupTree().exists)
    else:
        refused, away = status.get("failsafe_refused", ()), status.get("failsafe_absent", ())
    found = [Finding("failsafe", False, text, True, "agent") for text in refused]
    return [*found, *(Finding("failsafe", False, text, False, "agent") for text in away)]


def _agent(state: Path, status: dict[str, Any] | str) -> list[Finding]:
    try:
        if not (state / IDENTITY).exists():
            return [Finding("enrolment", False, f"no, in {state}", False, "agent")]
        store = FileStore(state)
        identity, _ = read_identity(store)
        accepted, panic = remember.read_accepted(store), remember.read_panic(store)
    except (AegisError, OSError) as error:
        return [Finding("state", False, str(error), True, "agent")]
    serial = accepted.trusted.serial if accepted else 0
    where = f"{identity.host_id}, control plane {', '.join(identity.nats_urls)}"
    calm = "no" if panic is None else f"nothing is enforced: {panic.why}"
    return [
        Finding("enrolment", True, where, True, "agent"),
        Finding("state", True, f"{state}, last accepted serial {serial}", True, "agent"),
        Finding("panic", panic is None, calm, True, "agent"),
        _clock(accepted),
        *_running(status, began=accepted is not None),
    ]


def _clock(accepted: remember.Accepted | None) -> Finding:
    """A wall clock that once was far ahead, or is behind now: leases end too soon, manifests have expired."""
    ahead = (accepted.trusted.clock_floor if accepted else 0) - int(time.time())
    detail = f"a time {ahead} s ahead of this clock was believed: set the clock, or believe it again"
    return Finding("clock", ahead <= CLOCK_SECONDS, detail if ahead > CLOCK_SECONDS else "ok", True, "agent")


def telemetry_text(found: dict[str, Any]) -> str:
    """What a running agent says of its telemetry, on one line."""
    sources = found.get("sources", {})
    said = [f"{len(sources)} sources"]
    said += [f"{name}: {text}" for name, text in sources.items() if text != "open"]
    said.append(f"{found.get('batches_waiting', 0)} batches wait in {found.get('spool_bytes', 0)} bytes")
    said += [f"inventory: {found['inventory']}"] if found.get("inventory") else []
    said += [f"lost {where}: {count}" for where, count in found.get("lost", {}).items()]
    return "; ".join(filter(None, [*said, found.get("trouble", "")]))


def _telemetry(found: dict[str, Any]) -> Finding:
    """Enforcement does not hang on it."""
    well = not found.get("lost") and not found.get("trouble")
    well = well and all(text == "open" for text in found.get("sources", {}).values())
    return Finding("telemetry", well, telemetry_text(found), False, "agent")


def _running(status: dict[str, Any] | str, *, began: bool) -> list[Finding]:
    """One that never ran is no finding; one that ran and does not is."""
    if isinstance(status, str):
        return [Finding("running", False, status if began else "never yet", began, "agent")]
    link = "connected" if status["connected"] else "not connected to the control plane"
    found = [Finding("running", True, link, True, "agent"), _troubles(status), _services(status)]
    return [*found, _telemetry(status["telemetry"])] if "telemetry" in status else found


def _troubles(status: dict[str, Any]) -> Finding:
    """A full disk, a second agent with this identity: the agent goes on, and somebody must act."""
    found = status.get("troubles", ())
    return Finding("troubles", not found, "; ".join(found) or "none", True, "agent")


def _services(status: dict[str, Any]) -> Finding:
    """Which services have a snapshot here that no cgroup is judged by."""
    services = status.get("services", ())
    idle = [s for s in services if s["state"] == "matches nothing"]
    names = ", ".join(f"{s['service_id']} {s.get('name', '')}".strip() for s in idle)
    detail = (
        f"matches nothing: service {names}: no cgroup of this host is selected and bound"
        if idle
        else "all match"
    )
    return Finding("services", not idle, detail, False, "agent")


def _panicked(agent: list[Finding]) -> bool:
    return any(found.name == "panic" and not found.ok for found in agent)


def _cgroups() -> Finding:
    try:
        root = v2_root()
    except Unavailable as error:
        return Finding("cgroup v2", False, str(error), True)
    own = own_cgroup()
    where = own or "the root cgroup; the agent moves to one of its own"
    return Finding("cgroup v2", True, f"{root}; this process lives in {where}", True)
