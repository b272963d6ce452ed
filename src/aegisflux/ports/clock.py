"""The wall clock, as something that tests replace."""

from typing import Protocol


class Clock(Protocol):
    """Seconds since the epoch, UTC."""

    def now(self) -> float:
        """The time."""
        ...
