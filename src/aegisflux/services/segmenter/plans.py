"""Plans: made from a proposal or a policy, kept with the digest that an approval is bound to."""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from aegisflux.domain.decided import PLAN, made_text, with_made
from aegisflux.domain.errors import Conflict, Forbidden, Invalid, NotFound
from aegisflux.domain.guardrails import Limits, within
from aegisflux.domain.plan import Plan, Strategy, plan, stale
from aegisflux.domain.policy import Policy
from aegisflux.domain.policy_compile import Inventory
from aegisflux.domain.rights import policy_text
from aegisflux.domain.roles import may_approve
from aegisflux.domain.segment.recorded import digest_of
from aegisflux.domain.segment.replay import MOST_NAMED, fresh_cuts, replay, without_calls_of
from aegisflux.domain.snapshot import MapSnapshot
from aegisflux.ports.clock import Clock
from aegisflux.ports.store import Store
from aegisflux.runtime import places
from aegisflux.runtime.access import Who
from aegisflux.runtime.again import again
from aegisflux.runtime.believed import doubt_of
from aegisflux.runtime.beside import beside
from aegisflux.runtime.jobs import computed
from aegisflux.runtime.register import Believer
from aegisflux.services.segmenter.operations import Told
from aegisflux.services.segmenter.proposals import DAY, LEAST_PERIOD, Asked, Proposals
from aegisflux.wire import policyfile

_encode = msgspec.json.Encoder(order="sorted").encode


class PlanAsked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Plan a proposal by its number, or a policy by its text; one of both.

    since, until, period_seconds: the flows that are replayed; of a proposal's own window when absent, else of
    the last 7 days
    """

    proposal: Annotated[int, Meta(ge=1)] | None = None
    policy: Annotated[str, Meta(max_length=policyfile.MAX_BYTES)] | None = None
    strategy: Strategy = field(default_factory=Strategy)
    since: datetime | None = None
    until: datetime | None = None
    period_seconds: Annotated[int, Meta(ge=LEAST_PERIOD, le=DAY)] = DAY


class KeptPlan(Struct, frozen=True, kw_only=True):
    """A plan as it was kept. `stale`: why it cannot be carried out any more; empty: it can."""

    id: int
    created_at: int
    created_by: str
    proposal: int | None
    policy: str
    asked: PlanAsked
    inventory_digest: str
    flows_digest: str
    digest: str
    approved_by: str | None
    approved_at: int | None
    accepted: bool
    stale: tuple[str, ...]
    plan: Plan


class Plans:
    """Made, approved, kept and read; every method raises Unavailable, or a refusal."""

    def __init__(
        self, store: Store, proposals: Proposals, clock: Clock, limits: Limits, believer: Believer
    ) -> None:
        self._store, self._proposals, self._clock = store, proposals, clock
        self._limits, self._believer = limits, believer

    async def settled(self, asked: PlanAsked) -> tuple[PlanAsked, Policy, Asked]:
        """With its window said, its policy and its flows; raises Invalid or NotFound."""
        if (asked.proposal is None) == (asked.policy is None):
            both = "neither" if asked.proposal is None else "both"
            raise Invalid("", "a proposal or a policy, one of both", both)
        if asked.proposal is not None:
            policy = await self._proposals.policy(asked.proposal)
            window = (await self._proposals.one(asked.proposal)).asked
        else:
            assert asked.policy is not None
            policy = await beside(policyfile.read, asked.policy)
            window = Asked(period_seconds=asked.period_seconds)
        if asked.since or asked.until:
            window = Asked(since=asked.since, until=asked.until, period_seconds=asked.period_seconds)
        window = self._proposals.settled(msgspec.structs.replace(window, scope=()))
        told = {"since": window.since, "until": window.until, "period_seconds": window.period_seconds}
        asked.strategy.limits.check_labels("strategy.limits.never_block")
        strategy = msgspec.structs.replace(asked.strategy, limits=within(asked.strategy.limits, self._limits))
        return msgspec.structs.replace(asked, strategy=strategy, **told), policy, window

    @again
    async def make(self, asked: PlanAsked, policy: Policy, window: Asked, who: Who, told: Told) -> int:
        """Compile, compare, replay, keep; the number of the plan. Raises a refusal by the path of a rule."""
        now, name = int(self._clock.now()), who.principal.name
        recorded = await self._proposals.read(window, told)
        here = await places.read(self._store)
        told(f"judging {len(recorded.flows)} recorded flows by {len(policy.rules)} rules", 0.6)
        with policyfile.lines_of(asked.policy):
            found = await computed(
                plan, policy, here.inventory, here.in_force, recorded, asked.strategy, name, now
            )
        body, digest = msgspec.to_builtins(found), digest_of_plan(found)
        versions = {service: snapshot.version for service, snapshot in here.in_force.items()}
        inputs = {"inventory": msgspec.to_builtins(here.inventory), "in_force": versions}
        kept = msgspec.to_builtins(msgspec.structs.replace(asked, policy=None))
        text = await beside(policyfile.write, policy)
        async with self._store.change() as db:
            values = (
                now,
                name,
                asked.proposal,
                text,
                kept,
                here.digest,
                digest_of(recorded),
                digest,
                body,
                inputs,
                who.principal.key,
            )
            row = await db.row("add_plan", *values)
            assert row is not None
            kept_row = await db.row("plan", row["id"])
            assert kept_row is not None
            what, reason = f"plan/{row['id']}", with_made(policy_text(text), made_text(kept_row, PLAN))
            await db.audit(who.did("segment.plan", what, after=digest, reason=reason))
        number: int = row["id"]
        return number

    async def one(self, number: int) -> KeptPlan:
        """A plan; raises NotFound."""
        row = await self._store.row("plan", number)
        if row is None:
            raise NotFound(f"there is no plan {number}; see aegisflux segment plans")
        here = await places.read(self._store)
        rest = {name: row[name] for name in KeptPlan.__struct_fields__ if name in row.keys()}  # noqa: SIM118
        rest["asked"] = msgspec.convert(row["asked"], PlanAsked)
        made = msgspec.convert(row["body"], Plan)
        return KeptPlan(**rest, stale=await beside(_stale, row, made, here), plan=made)

    async def all(self, before: int, limit: int) -> list[Mapping[str, Any]]:
        """Plans in short, newest first."""
        return [dict(row) for row in await self._store.rows("plans", before, limit)]

    @again
    async def approve(self, number: int, digest: str, accept_blocked: bool, who: Who) -> None:
        """Say yes to the plan of this digest; `accept_blocked`: also to what it would have cut. Raises
        NotFound; Conflict when it is another one, when what it rests on has changed, or when flows appeared
        since that it would cut; Forbidden for its author."""
        row = await self._store.row("plan", number)
        if row is None:
            raise NotFound(f"there is no plan {number}")
        if doubt := await doubt_of(self._believer, self._store, "plan", row):
            raise Conflict(f"plan {number}: it is not as the audit log says: {doubt}, and plan again")
        if not may_approve(who.principal, row["author"], row["created_by"]):
            raise Forbidden(
                f"plan {number}: {who.principal.name} made it; another approver has to approve it"
            )
        if row["digest"] != digest:
            raise Conflict(f"plan {number}: expected its digest {row['digest']}, got {digest}")
        made, here = msgspec.convert(row["body"], Plan), await places.read(self._store)
        if accept_blocked and made.replay.cut:
            raise Conflict(f"plan {number}: it would cut more kinds of flows than it names: narrow it")
        why = await beside(_stale, row, made, here) or await self._appeared(row, made, here)
        if why:
            raise Conflict(f"plan {number}: {'; '.join(why)}: plan again")
        async with self._store.change() as db:
            by = who.principal
            await db.run("approve_plan", number, by.name, int(self._clock.now()), by.key)
            await db.run("accept_plan", number, accept_blocked)
            reason = "what it would have cut is meant to be cut" if accept_blocked else ""
            after = f"{digest} by {by.key}"
            await db.audit(who.did("segment.approve", f"plan/{number}", after=after, reason=reason))

    async def _appeared(self, row: Mapping[str, Any], made: Plan, here: places.Now) -> tuple[str, ...]:
        """Kinds of flows that it would cut, first seen since it was made; not what suspected hosts began."""
        asked = msgspec.convert(row["asked"], PlanAsked)
        now = datetime.fromtimestamp(int(self._clock.now()), UTC)
        if asked.until is None or asked.until >= now:
            return ()
        window = self._proposals.settled(Asked(since=asked.until, until=now))
        suspected = frozenset(found["host_id"] for found in await self._store.rows("suspicions"))
        recorded = without_calls_of(await self._proposals.read(window, lambda _step, _share: None), suspected)
        if not len(recorded.flows):
            return ()
        snapshots = {one.service: one.snapshot for one in made.services}
        found = fresh_cuts(made.replay, await computed(replay, recorded, snapshots, here.inventory))
        more = (f"and {len(found) - MOST_NAMED} more",) if len(found) > MOST_NAMED else ()
        said = (f"{one.rule} appeared since, and it would cut it" for one in found[:MOST_NAMED])
        return (*said, *more)

    async def inventory(self) -> Inventory:
        """What names mean now."""
        return (await places.read(self._store)).inventory

    async def in_force(self) -> Mapping[str, MapSnapshot]:
        """What is in force of each service."""
        return (await places.read(self._store)).in_force


def digest_of_plan(made: Plan) -> str:
    """`sha256:` and the digest of all of it."""
    return "sha256:" + sha256(_encode(msgspec.to_builtins(made))).hexdigest()


def _stale(row: Mapping[str, Any], made: Plan, here: places.Now) -> tuple[str, ...]:
    if row["inventory_digest"] == here.digest:
        return ()
    return stale(made, policyfile.read_stored(row["policy"]).policy, here.inventory, here.in_force)
