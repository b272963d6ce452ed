"""Where an agent's events come from. Calls block for milliseconds and come from one thread.

Reading takes nothing away: the agent writes what it read to its spool together with the cursor, and only
then says `done`. After a restart it says `resume` with the last cursor that it finds in the spool, so that
what was spooled is not read again and what was not spooled is not lost, whenever the agent was killed.
"""

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from aegisflux.domain.event import Event


class Reading(Struct, frozen=True):
    """Events in the order of their times, numbered from the sequence asked for; `cursor` is behind them.

    `more`: there is more to read at once.
    """

    events: tuple[Event, ...]
    cursor: int
    more: bool = False


class Source(Protocol):
    """One source of events. Methods raise Unavailable when the kernel refuses."""

    name: str

    @property
    def fd(self) -> int | None:
        """Readable (epoll) while events wait; None: it is to be read in time."""
        ...

    def open(self) -> None:
        """Attach, or take over what an earlier agent left attached; idempotent."""
        ...

    def read(self, first_seq: int, limit: int) -> Reading:
        """At most `limit` events from where `done` or `resume` stands."""
        ...

    def done(self, cursor: int) -> None:
        """Everything before the cursor is durable elsewhere: forget it."""
        ...

    def resume(self, cursor: int) -> None:
        """After `open`: everything before the cursor was durable when an earlier agent ended."""
        ...

    def lost(self) -> Mapping[str, int]:
        """How many events were lost since the host booted, by where; counters only rise."""
        ...

    def close(self) -> None:
        """Let go; what is attached and pinned stays, so that nothing is lost over a restart of the agent."""
        ...

    def remove(self) -> None:
        """Detach and unpin."""
        ...
