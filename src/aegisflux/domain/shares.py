"""Shares of what many hosts use together: who may use how much, who waits, and whose turn it is.

Names are hosts. No clock: time is an argument, in seconds of one that never runs backwards. What is kept of a
name is forgotten when it says nothing, so memory is bounded by `MAX_NAMES`, not by who ever asked.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from msgspec import Struct

MAX_NAMES: Final = 16_384
MAX_TALKERS: Final = 256
LEAST: Final = 1e-6  # has to be left before a name may use something
T = TypeVar("T")


class Share(Struct, frozen=True):
    """What one host may use: `rate` a second for ever, and `burst` at once after it was silent."""

    rate: float
    burst: float


class Shares:
    """How much of its share each name has left (token buckets).

    A use may be larger than what is left: then the name waits until the debt is paid. So one large use is
    possible at any rate, and a name that is within its share never waits.
    """

    def __init__(self, share: Share) -> None:
        self._share = share
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str, now: float) -> float:
        """Seconds until the name may use something; 0.0 when it may now."""
        over = self._use(name, now) - self._share.burst
        return (over + LEAST) / self._share.rate if over >= 0 else 0.0

    def use(self, name: str, amount: float, now: float) -> None:
        """Count a use, whether or not there is something left."""
        self._used[name] = self._use(name, now) + amount, now
        self._used.move_to_end(name)
        if len(self._used) > MAX_NAMES:
            self._used.popitem(last=False)

    def take(self, name: str, amount: float, now: float) -> bool:
        """Use so much if the name may use something now; whether it did."""
        if self._use(name, now) >= self._share.burst:
            return False
        self.use(name, amount, now)
        return True

    def take_whole(self, name: str, amount: float, now: float) -> bool:
        """Use so much if all of it is left, without a debt; whether it did."""
        if self._use(name, now) + amount > self._share.burst:
            return False
        self.use(name, amount, now)
        return True

    def _use(self, name: str, now: float) -> float:
        """What is used and not yet given back."""
        used, at = self._used.get(name, (0.0, now))
        return max(0.0, used - (now - at) * self._share.rate)


class Talkers:
    """Who was refused how often: the total is exact, the names are those with most (Misra and Gries 1982).

    A name that was refused more often than the total / `MAX_TALKERS` is among them.
    """

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[str, int] = {}

    def note(self, name: str, count: int = 1) -> None:
        """It was refused."""
        self.total += count
        if name in self._counts or len(self._counts) < MAX_TALKERS:
            self._counts[name] = self._counts.get(name, 0) + count
            return
        least = min(count, *self._counts.values())
        self._counts = {one: n - least for one, n in self._counts.items() if n > least}
        if count > least:
            self._counts[name] = count - least

    def most(self, limit: int) -> list[tuple[str, int]]:
        """The names that were refused most, and at least how often."""
        return sorted(self._counts.items(), key=lambda one: (-one[1], one[0]))[:limit]

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self.most(5))


class FairQueue(Generic[T]):
    """Items in the order of their arrival for each name, and the names in turn.

    A name has at most `each` items here; all names together have `in_all`. Of a full queue the newest item
    of the name with most goes, unless that is the one that asks.
    """

    def __init__(self, each: int, in_all: int) -> None:
        self._each, self._in_all = each, in_all
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, name: str, item: T) -> tuple[str, T] | None:
        """Take an item in; what has no room for it, with its name: this item or another name's, or None."""
        queue = self._queues.get(name)
        if queue is not None and len(queue) >= self._each:
            return name, item
        lost = None
        if self._size >= self._in_all:
            longest = max(self._queues, key=lambda one: len(self._queues[one]))
            if len(self._queues[longest]) <= (len(queue) if queue else 0) + 1:
                return name, item
            lost = longest, self._queues[longest].pop()
            self._size -= 1
        self._queues.setdefault(name, deque()).append(item)
        self._size += 1
        return lost

    def get(self, wait: Callable[[str], float] = lambda _name: 0.0) -> tuple[str, T] | float | None:
        """The next item, with its name, of the next name in turn that need not `wait`; the seconds until the
        first of them need not, when all have to; None of an empty queue."""
        soonest: float | None = None
        for name in self._queues:
            seconds = wait(name)
            if seconds <= 0:
                break
            soonest = seconds if soonest is None else min(soonest, seconds)
        else:
            return soonest
        queue = self._queues.pop(name)
        item = queue.popleft()
        self._size -= 1
        if queue:
            self._queues[name] = queue  # behind all others
        return name, item
