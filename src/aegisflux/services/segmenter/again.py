"""Proposals and plans computed once more from what they were made of: is the answer that was kept the answer?

Made of recorded flows, which the store lets go of in time, and of what was kept beside the answer.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from aegisflux.domain import snapshot as snapshots
from aegisflux.domain.errors import Conflict, NotFound
from aegisflux.domain.plan import plan
from aegisflux.domain.policy_compile import Inventory
from aegisflux.domain.segment.recorded import digest_of
from aegisflux.domain.snapshot import MapSnapshot
from aegisflux.ports.store import Store
from aegisflux.runtime.beside import beside
from aegisflux.runtime.jobs import computed
from aegisflux.services.segmenter.operations import Told
from aegisflux.services.segmenter.plans import PlanAsked, digest_of_plan
from aegisflux.services.segmenter.proposals import Asked, Proposals
from aegisflux.wire import policyfile
from aegisflux.wire.canonical import unpacked


class Again:
    """Every method raises NotFound, or Conflict that says what is another one, or gone."""

    def __init__(self, store: Store, proposals: Proposals) -> None:
        self._store, self._proposals = store, proposals

    async def check(self, kind: Literal["plan", "proposal"], number: int) -> None:
        """Raise NotFound where there is no proposal, or plan, of that number."""
        query = "is_plan" if kind == "plan" else "is_proposal"
        if await self._store.row(query, number) is None:
            raise NotFound(f"there is no {kind} {number}")

    async def proposal(self, number: int, told: Told) -> None:
        """Compute a proposal once more."""
        kept = await self._proposals.one(number)
        found, digest, _ = await self._proposals.computed(kept.asked, told)
        if digest != kept.flows_digest:
            raise Conflict(_flows(f"proposal {number}", kept.flows_digest, digest))
        if found != kept.proposal:
            raise Conflict(
                f"proposal {number}: the same flows give another one now: this version learns otherwise"
            )

    async def plan(self, number: int, told: Told) -> None:
        """Compute a plan once more, with the inventory and the snapshots in force that it was made with."""
        row = await self._store.row("plan_inputs", number)
        if row is None:
            raise NotFound(f"there is no plan {number}")
        if row["inputs"] is None:
            raise Conflict(f"plan {number} was made before its inputs were kept")
        asked = msgspec.convert(row["asked"], PlanAsked)
        window = Asked(since=asked.since, until=asked.until, period_seconds=asked.period_seconds)
        recorded = await self._proposals.read(window, told)
        digest = await beside(digest_of, recorded)
        if digest != row["flows_digest"]:
            raise Conflict(_flows(f"plan {number}", row["flows_digest"], digest))
        policy = (await beside(policyfile.read_stored, row["policy"])).policy
        inventory = msgspec.convert(row["inputs"]["inventory"], Inventory)
        told(f"judging {len(recorded.flows)} recorded flows by {len(policy.rules)} rules", 0.6)
        in_force = await self._in_force(number, inventory, row["inputs"]["in_force"])
        strategy, author, at = asked.strategy, row["created_by"], row["created_at"]
        found = await computed(plan, policy, inventory, in_force, recorded, strategy, author, at)
        if (now := digest_of_plan(found)) != row["digest"]:
            raise Conflict(
                f"plan {number}: expected the digest {row['digest']}, got {now}: this version plans otherwise"
            )

    async def _in_force(
        self, number: int, inventory: Inventory, versions: Mapping[str, Any]
    ) -> dict[str, MapSnapshot]:
        found = {}
        for name, version in versions.items():
            row = await self._store.row("snapshot", inventory.services[name].id, version)
            if row is None:
                raise Conflict(f"plan {number}: version {version} of {name}, which was in force, is gone")
            found[name] = snapshots.decode(unpacked(row["snapshot"]))
        return found


def _flows(what: str, then: str, now: str) -> str:
    said = f"{what}: expected flows with the digest {then}, got {now}"
    return f"{said}: the store let go of some, or got late ones"
