"""What can be said of a host without the network: its state folder, its identity, its kernel."""

from pathlib import Path
from typing import NamedTuple

from aegisflux.agent import remember
from aegisflux.agent.cgroups import own_cgroup, v2_root
from aegisflux.agent.identity import read_identity
from aegisflux.agent.state import FileStore
from aegisflux.domain.errors import NotFound, Unavailable
from aegisflux.ports.datapath import Datapath


class Finding(NamedTuple):
    """One line; `required` ones make the exit status 1."""

    name: str
    ok: bool
    detail: str
    required: bool


def examine(state: Path, datapath: Datapath) -> list[Finding]:
    """All checks of this host."""
    found = [*_state(state), *_cgroups()]
    found += [Finding(check.name, check.ok, check.detail, check.required) for check in datapath.doctor()]
    return found


def _state(state: Path) -> list[Finding]:
    try:
        store = FileStore(state)
        identity, _ = read_identity(store)
        accepted, panic = remember.read_accepted(store), remember.read_panic(store)
    except NotFound as error:
        return [Finding("enrolment", False, str(error), True)]
    except Unavailable as error:
        return [Finding("state", False, str(error), True)]
    serial = accepted.trusted.serial if accepted else 0
    return [
        Finding(
            "enrolment", True, f"{identity.host_id}, control plane {', '.join(identity.nats_urls)}", True
        ),
        Finding("state", True, f"{state}, last accepted serial {serial}", True),
        Finding("panic", panic is None, "no" if panic is None else f"nothing is enforced: {panic.why}", True),
    ]


def _cgroups() -> list[Finding]:
    try:
        root = v2_root(Path("/proc/self/mountinfo").read_text())
    except Unavailable as error:
        return [Finding("cgroup v2", False, str(error), True)]
    own = own_cgroup(Path("/proc/self/cgroup").read_text())
    where = own or "the root cgroup (so the agent's own traffic is not exempt)"
    return [Finding("cgroup v2", True, f"{root}; this process lives in {where}", True)]
