"""Proposals: flows of a window read from the store, mined beside the event loop, and kept."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from aegisflux.domain.errors import Invalid, NotFound, OverLimit
from aegisflux.domain.manifest import HostId
from aegisflux.domain.policy import Policy
from aegisflux.domain.segment.export import policy_of
from aegisflux.domain.segment.flows import HOURS
from aegisflux.domain.segment.propose import Proposal, Recorded, propose
from aegisflux.domain.segment.recorded import MOST_RECORDS, MOST_SLOTS, Recorder, digest_of
from aegisflux.domain.snapshot import TTL_MAX, TTL_MIN, Mode
from aegisflux.ports.clock import Clock
from aegisflux.ports.facts import Facts
from aegisflux.ports.store import Store
from aegisflux.runtime.access import Who
from aegisflux.runtime.again import again
from aegisflux.runtime.beside import beside
from aegisflux.runtime.jobs import computed
from aegisflux.services.segmenter.operations import Told

DAY: Final = 86_400
LEAST_PERIOD: Final = 10
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
WEEK: Final = timedelta(days=7)
PARTS: Final = 14  # in which a window is read


class Asked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to learn from.

    since, until: the window; the last 7 days when absent
    scope: services; only flows that touch one of them teach. Empty: all
    suspicious: hosts whose flows do not teach; marked: nor do those of hosts that are suspected now
    before: the proposal whose names of groups are kept; the last one of this scope when absent, 0: none
    period_seconds: what counts as a day of habits; shorter than a day only to try things out
    mode, ttl_seconds: of the policy that the proposal is exported to
    """

    since: datetime | None = None
    until: datetime | None = None
    scope: Annotated[tuple[str, ...], Meta(max_length=10_000)] = ()
    suspicious: Annotated[tuple[HostId, ...], Meta(max_length=10_000)] = ()
    marked: bool = True
    before: Annotated[int, Meta(ge=0, le=1 << 62)] | None = None
    period_seconds: Annotated[int, Meta(ge=LEAST_PERIOD, le=DAY)] = DAY
    mode: Mode = "enforce"
    ttl_seconds: Annotated[int, Meta(ge=TTL_MIN, le=TTL_MAX)] = DAY


class Kept(Struct, frozen=True, kw_only=True):
    """A proposal as it was kept: who asked for what and when, and the flows it rests on."""

    id: int
    created_at: int
    created_by: str
    asked: Asked
    flows: int
    flows_digest: str
    proposal: Proposal


class Proposals:
    """Made, kept and read; every method raises Unavailable, or a refusal."""

    def __init__(self, store: Store, facts: Facts, clock: Clock) -> None:
        self._store, self._facts, self._clock = store, facts, clock

    def settled(self, asked: Asked) -> Asked:
        """With the ends of its window said; raises Invalid."""
        until = _utc(asked.until) if asked.until else datetime.fromtimestamp(int(self._clock.now()), UTC)
        if until < EARLIEST + WEEK:
            raise Invalid("until", f"a time after {EARLIEST + WEEK:%Y-%m-%d}", until.isoformat())
        since = _utc(asked.since) if asked.since else until - WEEK
        slot = asked.period_seconds / HOURS
        if not EARLIEST <= since < until:
            wanted = f"a time before {until.isoformat()}, from {EARLIEST:%Y} on"
            raise Invalid("since", wanted, since.isoformat())
        if (until - since).total_seconds() / slot > MOST_SLOTS:
            raise Invalid("since", f"at most {MOST_SLOTS // HOURS} periods before until", since.isoformat())
        return msgspec.structs.replace(asked, since=since, until=until)

    async def explicit(self, asked: Asked) -> Asked:
        """With everything said that the answer depends on but the flows: asked again it gives the same.
        Raises Invalid for a host or service that is unknown."""
        known = {row["host_id"] for row in await self._store.rows("hosts_known", list(asked.suspicious))}
        if unknown := sorted(set(asked.suspicious) - known):
            raise Invalid("suspicious", "hosts that are or were enrolled", ", ".join(unknown))
        if asked.scope:
            named = {row["name"] for row in await self._store.rows("services")}
            if unknown := sorted(set(asked.scope) - named):
                raise Invalid("scope", "services that are registered", ", ".join(unknown))
        marks = {row["host_id"] for row in await self._store.rows("suspicions")} if asked.marked else set()
        suspicious, before = tuple(sorted({*asked.suspicious, *marks})), asked.before
        if before is None:
            last = await self._store.row("proposal_before", list(asked.scope))
            before = last["id"] if last else 0
        return msgspec.structs.replace(asked, suspicious=suspicious, marked=False, before=before)

    @again
    async def make(self, asked: Asked, who: Who, told: Told) -> int:
        """Read, mine, keep; the number of the proposal. Of an explicit request."""
        proposal, digest, flows = await self.computed(asked, told)
        async with self._store.change() as db:
            row = await db.row(
                "add_proposal",
                int(self._clock.now()),
                who.principal.name,
                msgspec.to_builtins(asked),
                flows,
                digest,
                msgspec.to_builtins(proposal),
            )
            assert row is not None
            await db.audit(who.did("segment.propose", f"proposal/{row['id']}", after=digest))
        number: int = row["id"]
        return number

    async def computed(self, asked: Asked, told: Told) -> tuple[Proposal, str, int]:
        """The proposal of an explicit request; the digest, and the number, of the flows that it rests on."""
        recorded = await self.read(asked, told)
        told(f"finding groups and rules in {len(recorded.flows)} records", 0.5)
        names = await self._names(asked.before or 0)
        values = recorded, asked.suspicious, names, asked.period_seconds
        found: Proposal = await computed(propose, *values)
        return found, await beside(digest_of, recorded), len(recorded.flows)

    async def _names(self, before: int) -> dict[str, frozenset[str]]:
        if not before:
            return {}
        row = await self._store.row("proposal", before)
        if row is None:
            raise Invalid("before", "the number of a proposal, or 0", before)
        return {group["name"]: frozenset(group["members"]) for group in row["body"]["groups"]}

    async def read(self, asked: Asked, told: Told) -> Recorded:
        """The flows of a settled window, part by part; raises OverLimit."""
        since, until = asked.since, asked.until
        assert since is not None, "a settled window"
        assert until is not None, "a settled window"
        rows = await self._facts.rows("recorded_servers", since, until)
        servers = {(row["host_id"], row["proto"], row["port"]): row["service"] for row in rows}
        recorder, step = Recorder(asked.scope, servers), (until - since) / PARTS
        recorder.at(await self._facts.rows("recorded_addresses", since, until))
        for part in range(PARTS):
            end = until if part == PARTS - 1 else since + step * (part + 1)
            rows = await self._facts.rows(
                "recorded_flows",
                since + step * part,
                end,
                asked.period_seconds / HOURS,
                since,
                MOST_RECORDS + 1,
            )
            if len(rows) > MOST_RECORDS:
                raise OverLimit("flow_records", MOST_RECORDS, len(rows), "the window: make it shorter")
            await beside(recorder.add, rows)
            told(f"reading flows: {len(recorder)} records", 0.5 * (part + 1) / PARTS)
        return await beside(recorder.recorded)

    async def one(self, number: int) -> Kept:
        """A proposal; raises NotFound."""
        row = await self._store.row("proposal", number)
        if row is None:
            raise NotFound(f"there is no proposal {number}; see aegisflux segment list")
        proposal = msgspec.convert(row["body"], Proposal)
        asked = msgspec.convert(row["asked"], Asked)
        rest = {name: row[name] for name in ("id", "created_at", "created_by", "flows", "flows_digest")}
        return Kept(asked=asked, proposal=proposal, **rest)

    async def all(self, before: int, limit: int) -> list[Mapping[str, Any]]:
        """Proposals in short, newest first."""
        return [dict(row) for row in await self._store.rows("proposals", before, limit)]

    async def policy(self, number: int) -> Policy:
        """The policy that a proposal is exported to."""
        kept = await self.one(number)
        return policy_of(kept.proposal, f"proposal-{number}", kept.asked.ttl_seconds, kept.asked.mode)


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
