"""Where facts about hosts lie: events, flows and their roll-ups, inventories, and what was seen already.

Every method raises Unavailable when the store cannot be used. Writing is one process's (`Conflict` at
`open_writer` when another one is); reading is anybody's.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from aegisflux.domain.enriched import EnrichedBatch
from aegisflux.domain.inventory import PackageDelta, PackageInventory
from aegisflux.domain.known import Known, KnownListener

Row = Mapping[str, Any]


class Stored(Struct, frozen=True):
    """What a commit did: how many events became rows and how many were stored before, and the former."""

    new: int
    known: int
    fresh: tuple[EnrichedBatch, ...] = ()


class Facts(Protocol):
    """The store of facts."""

    async def open_writer(self) -> None:
        """Become the one writer; loads what was seen already."""
        ...

    async def known(self) -> Known:
        """What enrichment joins with."""
        ...

    async def watch(self, changed: Callable[[str], Awaitable[None]]) -> None:
        """Call with "hosts", "services" or "inventories" after each commit that changed them, and with all
        of them after a reconnect."""
        ...

    async def commit(self, batches: Sequence[EnrichedBatch]) -> Stored:
        """Rows, roll-ups, listeners and the marks of (host, boot id, sequence), in one transaction. Events
        that were seen before are left out, however long ago that was. Raises Refused when something of it
        can be no row."""
        ...

    async def own(self, listeners: Sequence[KnownListener]) -> None:
        """Say of which service listeners are that were stored before; raises as `commit`."""
        ...

    async def keep_inventory(self, inventory: PackageInventory) -> PackageDelta | None:
        """Replace the host's inventory; what changed, None when its digest is known already."""
        ...

    async def rows(self, query: str, *values: object) -> Sequence[Row]:
        """A named query for readers."""
        ...

    async def shape(self, mode: str, keep_seconds: Mapping[str, int]) -> str:
        """How large tables are kept, in words: with TimescaleDB where it is to be had (`mode` auto; require:
        else Unavailable; off: never), else natively."""
        ...

    async def upkeep(self, now: float, keep_seconds: Mapping[str, int]) -> Sequence[str]:
        """Make the partitions that are due, drop those older than the retention of their table; what was
        done, in words."""
        ...

    async def check(self) -> str:
        """What serves us, in words."""
        ...
