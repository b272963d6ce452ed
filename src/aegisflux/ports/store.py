"""Where the control plane's truth lies: named queries (adapters/store/sql/queries.sql) and changes.

Every method raises Unavailable when the store cannot be used.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from aegisflux.domain.audit import Entry, Head, Line

Row = Mapping[str, Any]


class Queries(Protocol):
    """Named queries with positional arguments."""

    async def rows(self, query: str, *values: object) -> Sequence[Row]:
        """All rows of the answer."""
        ...

    async def row(self, query: str, *values: object) -> Row | None:
        """The first row of the answer."""
        ...

    async def run(self, query: str, *values: object) -> None:
        """Run it for its effect."""
        ...


class Change(Queries, Protocol):
    """One transaction that holds the head of the audit log, so that changes have one order: that of their
    commits.
    """

    async def audit(self, entry: Entry) -> None:
        """Append a line; a change without one is a programmer's error."""
        ...

    def bump(self, hosts: Iterable[str] | None) -> None:
        """Raise the serials of these hosts, or of all (None), when the change is committed.

        It is done once at the end, since rows of hosts are locked all at once, in one order.
        """
        ...


class Store(Queries, Protocol):
    """Queries outside of transactions, and changes."""

    def change(self) -> AbstractAsyncContextManager[Change]:
        """A transaction, committed when the block ends well. Raises Contended where it lost against another
        one: the function that holds the block is done again (`runtime.again`)."""
        ...

    async def audit_log(self) -> tuple[Head, Sequence[Line]]:
        """The whole log and its head, as one moment has them."""
        ...

    async def set_head(self, seq: int, digest: bytes) -> None:
        """Make this line the last one of the log, whatever the head says. For `aegisflux audit accept`."""
        ...

    async def check(self) -> str:
        """What serves us, in words; raises Unavailable when nothing does."""
        ...
