"""Contents as they were posted: what decides is read from rows that have their MAC (`domain.seals`)."""

from aegisflux.domain import seals
from aegisflux.domain.errors import Conflict, NotFound
from aegisflux.ports.store import Queries, Row
from aegisflux.runtime.register import Register

Author = tuple[str | None, str]
"""Who made something: the token, where it is known, and the name (`Principal.is_author`)."""


def name_of(row: Row) -> str:
    """The object in the audit log."""
    return f"service/{row['service_id']}/version/{row['version']}"


def is_believed(register: Register, row: Row) -> bool:
    """Whether a row of `contents` is as it was posted; what is not is reported."""
    return register.holds(name_of(row), "content", row)


def believed(register: Register, row: Row) -> Row:
    """The row; raises Conflict where it is not as it was posted."""
    if not is_believed(register, row):
        raise Conflict(
            f"service {row['service_id']}: version {row['version']}: its row in the database is not as this "
            "control plane wrote it: see aegisflux audit verify, and post it again under a new version"
        )
    return row


async def content(register: Register, db: Queries, service_id: int, version: int) -> Row:
    """A version that is believed; raises NotFound, Conflict."""
    row = await db.row("content", service_id, version)
    if row is None:
        raise NotFound(f"service {service_id}: version {version} was never posted")
    return believed(register, row)


async def author_of(register: Register, db: Queries, service_id: int, version: int) -> Author:
    """Who posted the content, whoever brought it back since; raises Conflict."""
    rows = await db.rows("content_lineage", service_id, version)
    first = [believed(register, row) for row in rows][-1]
    return first["author"], first["created_by"]


def is_as_posted(register: Register, row: Row) -> bool:
    """Whether a row is believed with the payload that it has."""
    return is_believed(register, row) and is_signed_payload(register, row)


def is_signed_payload(register: Register, row: Row) -> bool:
    """Whether the payload of a believed row is what was signed when it was posted; else it is reported."""
    good: bool = seals.payload_digest(row["payload"]) == row["payload_sha256"]
    register.report(f"{name_of(row)}/payload", "" if good else "it is not what was signed")
    return good
