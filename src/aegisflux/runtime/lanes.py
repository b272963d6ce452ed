"""Who is served next: a bound on what is done at once, shared fairly between those who ask.

Each key (a token, an address) has its own queue, and the queues take turns, so that a key that asks for much
waits for itself and not before others.
"""

import asyncio
from collections import OrderedDict, deque

from aegisflux.domain.errors import Busy


class Lane:
    """`slots` at once, `share` of them for one key; at most `queue` wait, `queue_share` of them of one key.

    What is taken may weigh more than one slot; one that weighs more than a share counts as a share.
    """

    def __init__(self, name: str, slots: int, share: int, queue: int, queue_share: int) -> None:
        self.name, self._slots, self._share = name, slots, share
        self._queue, self._queue_share = queue, queue_share
        self._used: dict[str, int] = {}
        self._total = 0
        self._waiting: OrderedDict[str, deque[tuple[int, asyncio.Future[None]]]] = OrderedDict()
        self._count = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._count

    async def enter(self, key: str, weight: int = 1) -> None:
        """Wait for a turn; raises Busy where too many wait. To be followed by `leave`."""
        weight = min(weight, self._share)
        if not self._count and self._fits(key, weight):
            self._take(key, weight)
            return
        own = self._waiting.get(key)
        if self._count >= self._queue or (own is not None and len(own) >= self._queue_share):
            raise Busy(f"{self.name}: too many requests wait; try again in a second")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((weight, turn))
        self._count += 1
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(key, weight)
            else:
                self._forget(key, weight, turn)
            raise

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
                turn.set_result(None)
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

    def _forget(self, key: str, weight: int, turn: "asyncio.Future[None]") -> None:
        queue = self._waiting.get(key)
        if queue is None or (weight, turn) not in queue:
            return
        queue.remove((weight, turn))
        self._count -= 1
        if not queue:
            del self._waiting[key]
