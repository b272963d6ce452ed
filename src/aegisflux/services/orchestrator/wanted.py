"""What each host's manifest is to have: its snapshots, what is judged beside, and what it is to look for."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec

from aegisflux.domain.manifest import ActiveRef, CandidateRef, ServiceState
from aegisflux.domain.manifest_room import Wanted
from aegisflux.domain.rollout import runs
from aegisflux.ports.store import Row
from aegisflux.services.orchestrator.core import Core


async def wanted_of(core: Core, dirty: Iterable[Row]) -> dict[str, Wanted]:
    """The services of each of these hosts, as the store has them now."""
    labels = {row["host_id"]: row["labels"] for row in dirty}
    assigned = await _assigned(core, list(labels))
    beside = await _beside(core, list(labels), assigned)
    named, everywhere = await _offered(core)
    found = {}
    for host, given in labels.items():
        known = assigned[host].keys() | beside[host].keys()
        found[host] = Wanted(
            tuple(assigned[host].values()),
            tuple(beside[host].values()),
            tuple(s for wants, s in named if s.service_id not in known and runs(wants, given)),
            tuple(s for s in everywhere if s.service_id not in known),
        )
    return found


def measure() -> Callable[[ServiceState], int]:
    """How long a service is in a manifest; one that is only offered is measured once for all hosts."""
    offered: dict[int, int] = {}

    def bytes_of(service: ServiceState) -> int:
        if service.active or service.candidate:
            return len(msgspec.msgpack.encode(service))
        if service.service_id not in offered:
            offered[service.service_id] = len(msgspec.msgpack.encode(service))
        return offered[service.service_id]

    return bytes_of


async def _offered(core: Core) -> tuple[list[tuple[dict[str, str], ServiceState]], list[ServiceState]]:
    """Services that hosts look for: those for hosts with labels, and those for every host."""
    named, everywhere = [], []
    for row in await core.store.rows("offered"):
        service = ServiceState(row["id"], row["name"], tuple(row["selectors"]))
        if row["host_labels"]:
            named.append((row["host_labels"], service))
        else:
            everywhere.append(service)
    return named, everywhere


async def _assigned(core: Core, hosts: list[str]) -> dict[str, dict[int, ServiceState]]:
    found: dict[str, dict[int, ServiceState]] = defaultdict(dict)
    confirm = core.options.confirm_seconds
    for row in await core.store.rows("active_of", hosts):
        trial = 0 if row["copy_of"] is not None else confirm  # what comes back was good before
        active = ActiveRef(row["version"], row["digest"], row["lease_until"], trial, row["preflight"])
        found[row["host_id"]][row["service_id"]] = ServiceState(
            row["service_id"], row["name"], tuple(row["selectors"]), active
        )
    return found


async def _beside(
    core: Core, hosts: list[str], assigned: dict[str, dict[int, ServiceState]]
) -> dict[str, dict[int, ServiceState]]:
    """What is judged beside nothing; a candidate of a service that is assigned goes there."""
    found: dict[str, dict[int, ServiceState]] = defaultdict(dict)
    for row in await core.store.rows("candidates_of", hosts):
        host, number = row["host_id"], row["service_id"]
        candidate = CandidateRef(row["version"], row["digest"])
        if number in assigned[host]:
            assigned[host][number] = msgspec.structs.replace(assigned[host][number], candidate=candidate)
        else:
            found[host][number] = ServiceState(
                number, row["name"], tuple(row["selectors"]), candidate=candidate
            )
    return found
