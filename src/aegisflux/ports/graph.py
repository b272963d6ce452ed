"""A graph database that speaks Cypher. Methods raise Unavailable when it cannot be used.

Nothing in it is the only copy: it is emptied and filled again from the store at any time.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from aegisflux.domain.graph import Upserts

Row = Mapping[str, Any]


class Graph(Protocol):
    """One writer; readers ask it through the writer's service."""

    name: str

    async def open(self) -> None:
        """Connect, and make what the schema says; idempotent."""
        ...

    async def clear(self) -> None:
        """Forget everything but the schema."""
        ...

    async def upsert(self, upserts: Upserts) -> None:
        """Make or change nodes, then edges: all of it, or Unavailable. Some thousand entries at once."""
        ...

    async def forget_software(self, host_id: str) -> None:
        """Take away all HAS of a host, before its new inventory is put in."""
        ...

    async def forget_before(self, at_ns: int) -> None:
        """Take away traffic, programs and ended listeners not seen since, and peers and binaries that nothing
        is said of any more."""
        ...

    async def rows(self, query: str, values: Mapping[str, Any] | None = None) -> Sequence[Row]:
        """The rows of a Cypher query."""
        ...

    async def check(self) -> str:
        """What serves us, in words."""
        ...

    async def close(self) -> None: ...
