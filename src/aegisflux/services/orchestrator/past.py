"""What a service had, as `domain.undo` asks for it."""

from collections.abc import Iterable

from aegisflux.domain.rollout import Rollout
from aegisflux.domain.undo import Content, Past
from aegisflux.ports.store import Queries
from aegisflux.services.orchestrator import guard, posted, state
from aegisflux.services.orchestrator.core import Core


async def withheld_from(db: Queries, service_id: int) -> frozenset[str]:
    """The hosts from which a service was withdrawn by name, and that nobody gave it again."""
    return frozenset(row["host_id"] for row in await db.rows("withheld", [service_id]))


async def past_of(
    core: Core, db: Queries, rollout: Rollout, hosts: Iterable[str] = (), versions: Iterable[int] = ()
) -> Past:
    """What the service had, with these further hosts and versions. Rows without their MAC lead nowhere."""
    rows = await db.rows("had", rollout.service_id)
    had = {
        row["host_id"]: tuple(row["versions"]) for row in rows if state.had_is_believed(core.register, row)
    }
    given = {one.version for one in rollout.hosts.values()}
    named = {*versions, *rollout.promotions, *given, *(one for of in had.values() for one in of)}
    rows = await db.rows("contents_named", rollout.service_id, sorted(named))
    contents = {
        row["version"]: Content(row["rules_digest"], row["mode"] == "enforce")
        for row in rows
        if posted.is_believed(core.register, row)
    }
    return Past(
        contents=contents,
        promoted=frozenset(contents[one].rules for one in rollout.promotions if one in contents),
        had=had,
        withheld=await withheld_from(db, rollout.service_id),
        spared=frozenset(await guard.spared(core, db, {*hosts, *rollout.hosts})),
    )
