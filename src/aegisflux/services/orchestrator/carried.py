"""A rollout in stages as the store has it, and as people see it."""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct, field

from aegisflux.domain.decided import ROLLOUT, made_text
from aegisflux.domain.decoding import in_words
from aegisflux.domain.errors import Conflict, NotFound
from aegisflux.domain.stages import Run, Verb, verbs
from aegisflux.ports.store import Queries, Row
from aegisflux.runtime import logs

log = logs.get("rollouts")


class Part(Struct, frozen=True, kw_only=True):
    """What one service gets: `version` on `hosts`; `replaces` is what comes back when it fails, where undoing
    may lead to it; None: nothing was in force."""

    service_id: int
    service: str
    version: int
    digest: str
    tables_digest: str
    ttl_seconds: int
    replaces: int | None
    hosts: tuple[str, ...]


class DeniedWay(Struct, frozen=True, kw_only=True):
    """Initiations of one kind that were denied, or would have been. `legitimate`: it was seen before, and
    nobody said that it is meant to be cut."""

    host: str
    direction: str
    client: str
    server: str
    what: str
    denied: int
    reason: str
    first_at: float
    legitimate: bool


class Looked(Struct, frozen=True, kw_only=True):
    """What the last look saw of the turn: hosts that have it, initiations, and those that were denied."""

    hosts: int = 0
    in_force: int = 0
    flows: int = 0
    denied: int = 0
    denied_new: int = 0
    ways: tuple[DeniedWay, ...] = ()


class Carried(Struct, frozen=True, kw_only=True):
    """A rollout. `verbs`: what can be done with it now."""

    id: int
    plan: int
    created_at: int
    created_by: str
    run: Run
    parts: tuple[Part, ...]
    looked: Looked = field(default_factory=Looked)
    looked_at: float = 0.0
    verbs: tuple[Verb, ...] = ()

    @property
    def services(self) -> list[int]:
        """The numbers of its services."""
        return [part.service_id for part in self.parts]


class Done(Struct, frozen=True):
    """A step of a rollout: where it went, who or what made it, and what was done."""

    at: float
    stage: str
    turn: int
    who: str
    reason: str
    did: tuple[str, ...]


def carried_of(row: Row) -> Carried:
    """From a row of `rollouts`."""
    run = msgspec.convert(row["run"], Run)
    return Carried(
        id=row["id"],
        plan=row["plan"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        run=run,
        parts=msgspec.convert(row["parts"], tuple[Part, ...]),
        looked=_looked(row["looked"]),
        looked_at=row["looked_at"],
        verbs=verbs(run),
    )


def readable(rows: Iterable[Row]) -> list[Carried]:
    """Those of the rows that can be read; one that cannot (of another version of ours) is logged."""
    found = []
    for row in rows:
        try:
            found.append(carried_of(row))
        except (msgspec.ValidationError, TypeError, LookupError) as error:
            log.warning("a rollout cannot be read", rollout=row["id"], error=in_words(error))
    return found


def _looked(kept: object) -> Looked:
    """What a host could spoil spoils the picture alone."""
    try:
        return msgspec.convert(kept, Looked)
    except msgspec.ValidationError:
        return Looked()


async def load(db: Queries, number: int, query: str = "rollout") -> Carried:
    """A rollout; raises NotFound."""
    row = await db.row(query, number)
    if row is None:
        raise NotFound(f"there is no rollout {number}; see aegisflux rollout list")
    return carried_of(row)


async def check_free(db: Queries, service_id: int) -> None:
    """Raises Conflict while a rollout is carrying the service; to take something back it is never asked."""
    row = await db.row("rollout_of_service", service_id)
    if row is not None:
        raise Conflict(
            f"service {service_id}: rollout {row['id']} is carrying it ({row['stage']}): "
            f"wait for it, or aegisflux rollout abort {row['id']}"
        )


async def steps(db: Queries, number: int) -> tuple[Done, ...]:
    """All its steps, oldest first."""
    rows = await db.rows("rollout_steps", number)
    return tuple(Done(**{**dict(row), "did": tuple(row["did"])}) for row in rows)


async def made_of(db: Queries, number: int) -> str:
    """What the audit log says of a rollout as it is in the store now, see `domain.decided`."""
    row = await db.row("rollout", number)
    assert row is not None
    return made_text(row, ROLLOUT)


def built(value: Struct | tuple[Struct, ...]) -> Any:
    """As the store keeps it."""
    return msgspec.to_builtins(value)
