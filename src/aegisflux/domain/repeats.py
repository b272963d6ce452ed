"""Which lines of a log are written when one comes again and again. Pure: time is an argument, in seconds.

The first `EACH` lines of a kind within `WINDOW` seconds are written, the others are counted; the count is
told with the next line of the kind, or by itself once the window is over.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

EACH: Final = 10
WINDOW: Final = 10.0
MAX_KINDS: Final = 2048


class Repeats:
    """Counts lines by kind, of at most `MAX_KINDS` kinds at once."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        self._looked = 0.0
        self._forgotten = 0

    def count(self, kind: Hashable, now: float) -> int | None:
        """None for a line that is left out; else how many of its kind were left out before it."""
        since, lines = self._kinds.pop(kind, (now, 0))
        left_out = 0
        if now - since >= WINDOW:
            left_out = max(0, lines - EACH)
            since, lines = now, 0
        self._kinds[kind] = since, lines + 1
        if len(self._kinds) > MAX_KINDS:
            _, (_, gone) = self._kinds.popitem(last=False)
            self._forgotten += max(0, gone - EACH)
        return left_out if lines < EACH else None

    def over(self, now: float) -> list[tuple[Hashable, int]]:
        """The kinds of which lines were left out in windows that are over, and how many; each is told once.
        None stands for kinds that were forgotten."""
        if now - self._looked < WINDOW:
            return []
        self._looked = now
        ended = [kind for kind, (since, _) in self._kinds.items() if now - since >= WINDOW]
        found = [(kind, self._kinds.pop(kind)[1] - EACH) for kind in ended]
        told: list[tuple[Hashable, int]] = [(kind, lines) for kind, lines in found if lines > 0]
        if self._forgotten:
            told.append((None, self._forgotten))
            self._forgotten = 0
        return told
