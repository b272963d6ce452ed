"""The fleet's own limits, for what is given to hosts by hand: no snapshot is enforced on a host that is
marked, and no lease is longer than the fleet wants. Rollouts ask all guardrails, at each of their turns.

Taking enforcement back (rollback, withdraw, panic) is never held.
"""

from collections.abc import Collection

from aegisflux.domain.errors import Conflict
from aegisflux.domain.guardrails import Wave, never_block, ttl
from aegisflux.domain.manifest import HostId
from aegisflux.domain.snapshot import Mode
from aegisflux.ports.store import Queries
from aegisflux.services.orchestrator.core import Core


async def check(core: Core, db: Queries, hosts: Collection[HostId], mode: Mode, ttl_seconds: int) -> None:
    """Raises Conflict with all that does not hold."""
    limits = core.options.limits
    wave = Wave(
        hosts=frozenset(hosts),
        labels={row["host_id"]: row["labels"] for row in await db.rows("host_labels")},
        members={},
        ttl_seconds=ttl_seconds,
        now=core.now(),
        author="",
        enforces=mode == "enforce",
    )
    held = [str(one) for guardrail in (never_block, ttl) if (one := guardrail(wave, limits))]
    if held:
        raise Conflict(f"held by a guardrail of this fleet (settings, limits): {'; '.join(held)}")


async def spared(core: Core, db: Queries, hosts: Collection[HostId]) -> set[HostId]:
    """Those of the hosts on which nothing is ever enforced."""
    marks = core.options.limits.marks
    if not marks:
        return set()
    rows = await db.rows("labels_of", list(hosts))
    return {r["host_id"] for r in rows if marks & set(r["labels"].items())}
