"""What was refused because a host wants more than its share: counted by host, and said every ten seconds."""

import time
from collections.abc import Callable
from typing import Final

from aegisflux.domain.shares import Share, Shares, Talkers
from aegisflux.wire.subjects import MAX_LETTER

SAY_SECONDS: Final = 10.0
# In each room: one letter of any size or some 200 usual ones at once, then some 300 a day. A host has seven
# rooms (ADR 0038), so that it takes more than a hundred hosts to fill the stream of letters.
LETTERS: Final = Share(rate=16.0, burst=float(1 << 20))
LETTER_COST: Final = 4096  # of its headers and its place

Say = Callable[[str], None]
Count = Callable[[str, int], None]


class Refusals:
    """Of one queue. `say` takes a sentence, `count` the queue's name and a number, for a metric that names
    no host; `what` is wrong with those that are refused."""

    def __init__(
        self, queue: str, say: Say, count: Count, what: str = "over the share of their host"
    ) -> None:
        self._queue, self._say, self._count, self._what = queue, say, count, what
        self._talkers, self._said_at = Talkers(), -SAY_SECONDS

    def note(self, host: str, count: int = 1) -> None:
        """So many more; a sentence at most every ten seconds says how many there were since the last."""
        self._talkers.note(host, count)
        self._count(self._queue, count)
        now = time.monotonic()
        if now - self._said_at >= SAY_SECONDS:
            self._say(f"{self._queue}: {self._talkers.total} {self._what}: {self._talkers}")
            self._talkers, self._said_at = Talkers(), now


class LetterRoom:
    """Which dead letters are kept: each host has a share of them, by bytes."""

    def __init__(self, queue: str, say: Say, count: Count) -> None:
        self._shares, self._refusals = Shares(LETTERS), Refusals(queue, say, count)

    def take(self, host: str, size: int) -> bool:
        """Whether a letter of so many bytes is kept, at most `MAX_LETTER` of it; else it is counted."""
        cost = min(size, MAX_LETTER) + LETTER_COST
        if self._shares.take_whole(host, float(cost), time.monotonic()):
            return True
        self._refusals.note(host)
        return False
