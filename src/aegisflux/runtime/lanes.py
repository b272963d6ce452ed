"""Who is served next: a bound on what is done at once, shared fairly between those who ask.

Each key (a token, an address) has its own queue, and the queues take turns, so that a key that asks for much
waits for itself and not before others.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aegisflux.domain.errors import Busy


class Lane:
    """`slots` at once, `share` of them for one key; at most `queue` wait, `queue_share` of them of one key.

    What is taken may weigh more than one slot; one that weighs more than a share counts as a share. Of a full
    queue the newest of the key of which most wait goes, unless that is the key that asks.
    """

    def __init__(self, name: str, slots: int, share: int, queue: int, queue_share: int) -> None:
        self.name, self._slots, self._share = name, slots, share
        self._queue, self._queue_share = queue, queue_share
        self._used: dict[str, int] = {}
        self._total = 0
        self._waiting: OrderedDict[str, deque[tuple[int, asyncio.Future[bool]]]] = OrderedDict()
        self._count = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._count

    @asynccontextmanager
    async def of(self, key: str, weight: int = 1) -> AsyncIterator[None]:
        """Inside, from its turn on. Raises Busy where too many wait."""
        await self.enter(key, weight)
        try:
            yield
        finally:
            self.leave(key, weight)

    async def enter(self, key: str, weight: int = 1) -> None:
        """Wait for a turn; raises Busy where too many wait. To be followed by `leave`."""
        weight = min(weight, self._share)
        if not self._count and self._fits(key, weight):
            self._take(key, weight)
            return
        if not self._has_room(key):
            raise self._busy(key)
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((weight, turn))
        self._count += 1
        self._next()
        try:
            is_in = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                if turn.result():
                    self.leave(key, weight)  # it was let in at the same moment
            else:
                self._forget(key, weight, turn)
            raise
        if not is_in:  # not as an exception of the future, which this frame and so its request would keep
            raise self._busy(key)

    def _busy(self, key: str) -> Busy:
        of_key = len(self._waiting.get(key, ()))
        return Busy(f"{self.name}: {of_key} of yours wait already, of {self._count}; try again in a second")

    def _has_room(self, key: str) -> bool:
        """Whether one more of a key may wait, perhaps instead of another's."""
        own = len(self._waiting.get(key, ()))
        if own >= self._queue_share:
            return False
        if self._count < self._queue:
            return True
        longest = max(self._waiting, key=lambda one: len(self._waiting[one]))
        if len(self._waiting[longest]) <= own + 1:
            return False
        _, turn = self._waiting[longest].pop()
        self._count -= 1
        if not turn.done():
            turn.set_result(False)
        return True

    def leave(self, key: str, weight: int = 1) -> None:
        """Let go of what was entered with the same key and weight."""
        weight = min(weight, self._share)
        self._total -= weight
        self._used[key] -= weight
        if not self._used[key]:
            del self._used[key]
        self._next()

    def _fits(self, key: str, weight: int) -> bool:
        return self._total + weight <= self._slots and self._used.get(key, 0) + weight <= self._share

    def _take(self, key: str, weight: int) -> None:
        self._total += weight
        self._used[key] = self._used.get(key, 0) + weight

    def _next(self) -> None:
        """Give turns while there is room, a key after the other; who has had one goes to the end."""
        while self._round():
            pass

    def _round(self) -> bool:
        """Whether anybody got a turn, of all keys that wait."""
        given = False
        for key in list(self._waiting):
            weight, turn = self._waiting[key][0]
            if turn.done():  # given up, and not yet taken out
                self._pop(key)
                given = True
                continue
            if self._total + weight > self._slots:  # who needs much is not passed over for ever
                return False
            if self._fits(key, weight):
                self._take(key, weight)
                self._pop(key)
                turn.set_result(True)
                given = True
        return given

    def _pop(self, key: str) -> None:
        queue = self._waiting[key]
        queue.popleft()
        self._count -= 1
        if queue:
            self._waiting.move_to_end(key)
        else:
            del self._waiting[key]

    def _forget(self, key: str, weight: int, turn: "asyncio.Future[bool]") -> None:
        queue = self._waiting.get(key)
        if queue is None or (weight, turn) not in queue:
            return
        queue.remove((weight, turn))
        self._count -= 1
        if not queue:
            del self._waiting[key]
