"""From the sources to the spool: read, write events and cursor in one record, then say that it is done.

Whenever the agent is killed, what was spooled is not read again and what was not spooled is. Nothing in
here waits; everything runs on one thread, and clocks are arguments.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from aegisflux.agent.parts import Feed
from aegisflux.agent.recent import Recent
from aegisflux.agent.spool import Lane, Spool
from aegisflux.domain.errors import AegisError
from aegisflux.domain.event import MAX_BATCH_BYTES, Event, EventBatch, VerdictSeen
from aegisflux.ports.datapath import DeniedFlow
from aegisflux.ports.sensor import Reading
from aegisflux.wire.events import encode_batch

BATCH_EVENTS: Final = 100
BATCH_BYTES: Final = 256 << 10
BATCH_SECONDS: Final = 1.0
SOONEST: Final = 0.05
FIRST_RETRY, LAST_RETRY = 1.0, 30.0
STEP_BATCHES: Final = 16
LOST_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 5.0
SECOND: Final = 1_000_000_000


class Bucket:
    """So many a second, of which two seconds' worth may come at once."""

    def __init__(self, rate: float) -> None:
        self._rate, self._tokens, self._at = rate, 2 * rate, float("-inf")

    def room(self, now: float) -> int:
        """How many may come now."""
        self._tokens = min(2 * self._rate, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        return int(self._tokens)

    def take(self, count: int) -> None:
        """So many came."""
        self._tokens -= count

    def enough(self, count: int) -> int:
        """How many tokens to wait for when a batch of `count` is wanted."""
        return max(1, min(count, int(2 * self._rate)))


class _Held:
    """A feed and how it is. `trouble` is empty while it is open; `idle` while all that was there is read and
    its source will wake us."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.trouble = "not opened yet"
        self.said = ""
        self.due = self.retry_at = self.soonest = float("-inf")
        self.retry = FIRST_RETRY
        self.pause = feed.seconds or BATCH_SECONDS
        self.limit = BATCH_EVENTS
        self.served = (float("-inf"), 0)
        self.seen, self.began = 0, float("inf")
        self.idle = False

    @property
    def is_timed(self) -> bool:
        """Whether it is read every so many seconds, not as events come."""
        return self.feed.seconds is not None

    def read(self, now: float, count: int, *, more: bool) -> None:
        """A batch came. When all is read: look again when about a batch waits, or a feed's seconds after this
        reading began: a reading that took long must not make the next one longer. A source that wakes us is
        read again when it does, but no sooner.
        """
        self.served, self.idle = (now, self.served[1] + 1), False
        self.began = min(self.began, now)
        self.seen += count
        if more:
            return
        if not self.is_timed:
            if self.seen >= BATCH_EVENTS:
                self.pause = max(SOONEST, self.pause / 2)
            elif self.seen < BATCH_EVENTS // 2:
                self.pause = min(BATCH_SECONDS, self.pause * 2)
        self.soonest = max(now, self.began + self.pause)
        self.idle = not self.is_timed and self.feed.source.fd is not None
        self.due = now + IDLE_SECONDS if self.idle else self.soonest
        self.seen, self.began = 0, float("inf")

    def wake(self) -> None:
        """There is something to read."""
        if self.idle:
            self.idle, self.due = False, self.soonest


class Collector:
    """Reads the feeds of a host. `report` is what can be said of it, for readers on other threads; `opened`
    counts how often a source was opened, which takes memory for a moment."""

    def __init__(
        self,
        feeds: Iterable[Feed],
        spool: Spool,
        host_id: str,
        boot_id: str,
        rate: float,
        log: Callable[[str], None],
    ) -> None:
        self._held = [_Held(feed) for feed in feeds]
        self._spool, self._host, self._boot, self._log = spool, host_id, boot_id, log
        self._bucket = Bucket(rate)
        self._spool_is_open = False
        self._throttled = 0
        self._lost: Counter[str] = Counter()
        self._told: dict[str, int] = {}
        self._lost_at = float("-inf")
        self.opened = 0
        self.report: dict[str, object] = {}
        self.lost: dict[str, int] = {}
        self.recent = Recent()
        self.look()

    def open(self) -> None:
        """Open the spool; harmless at any time. Raises Unavailable."""
        if not self._spool_is_open:
            self._spool.open()
            self._spool_is_open = True

    def step(self, now: float, wall_ns: int) -> float:
        """Read what is due; the seconds until something is. Raises Unavailable when the disk refuses."""
        self.open()
        for held in self._held:
            if held.trouble and now >= held.retry_at:
                self._open(held, now)
        more = self._due(now)
        throttled = False
        for nth in range(STEP_BATCHES):
            for held in sorted(more, key=lambda one: (nth == 0 and one.is_timed, one.served)):
                if throttled := self._bucket.room(now) < self._bucket.enough(held.limit):
                    break
                if not self._batch(held, wall_ns, now):
                    more.remove(held)
            if throttled or not more:
                break
        self._throttled += throttled
        self._count_lost(now)
        self.look()
        if more:
            return SOONEST if throttled else 0.0
        return self._pause(now)

    def _due(self, now: float) -> list[_Held]:
        """Return what is to be read now. Flows name the programs behind them, which the events of processes
        tell: where a feed of the former kind is due, those that wake us are read too, and first."""
        open_ones = [held for held in self._held if not held.trouble]
        due = [held for held in open_ones if now >= held.due]
        if not any(held.is_timed for held in due):
            return due
        return [held for held in open_ones if held in due or not held.is_timed]

    def waits_for(self) -> list[int]:
        """The descriptors that are readable when a source that is all read has something. Like `wake`, only
        between two steps."""
        return [fd for held in self._held if held.idle and (fd := held.feed.source.fd) is not None]

    def wake(self, now: float) -> float:
        """One of these was readable; the seconds until something is due."""
        for held in self._held:
            held.wake()
        return self._pause(now)

    def again(self, now: float) -> None:
        """Look at everything with the next step: the host may have changed."""
        for held in self._held:
            held.idle, held.due, held.retry_at = False, now, min(held.retry_at, now)

    def verdicts(self, denied: Sequence[DeniedFlow], now: float, boot_ns: int, wall_ns: int) -> None:
        """Denied flows as events. They are not read from a source: one that is over the rate is lost."""
        self.open()
        room = self._bucket.room(now)
        if len(denied) > room:
            self._spool.count("rate", {"verdict": len(denied) - room})
            denied = denied[:room]
        for start in range(0, len(denied), BATCH_EVENTS):
            chunk = denied[start : start + BATCH_EVENTS]
            first = self._spool.first(len(chunk))
            events = tuple(
                _verdict(flow, first + i, wall_ns - (boot_ns - flow.boot_ns)) for i, flow in enumerate(chunk)
            )
            self._keep("events", events, self._encoded(events, wall_ns), {})
            self._bucket.take(len(events))
        self.look()

    def look(self) -> None:
        """Make the report anew."""
        spool = self._spool
        self.lost = {name: n for name, n in sorted((self._lost + spool.lost).items()) if n}
        self.report = {
            "sources": {held.feed.source.name: held.trouble or "open" for held in self._held},
            "batches_waiting": spool.waiting,
            "spool_bytes": spool.size,
            "throttled": self._throttled,
            "lost": self.lost,
        }

    def close(self) -> None:
        """Let go of sources and spool; nothing is lost by it."""
        for held in self._held:
            if not held.trouble:
                held.trouble = "closed"
                try:
                    held.feed.source.close()
                except Exception as error:  # noqa: BLE001 - as above
                    self._log(f"telemetry: {held.feed.source.name}: {error}")
        if self._spool_is_open:
            self._spool.close()
            self._spool_is_open = False

    def _open(self, held: _Held, now: float) -> None:
        source = held.feed.source
        try:
            source.open()
            cursor = self._spool.cursors.get(source.name)
            if cursor is not None:
                source.resume(cursor)
        except Exception as error:  # noqa: BLE001 - what is wrong with one source stops no other
            self._failed(held, now, error)
            return
        if held.said:
            self._log(f"telemetry: {source.name}: open")
        self.opened += 1
        held.trouble = held.said = ""
        held.retry, held.due, held.idle = FIRST_RETRY, now, False

    def _failed(self, held: _Held, now: float, error: Exception) -> None:
        """The source is opened again later, from the cursor that is durable."""
        held.trouble = str(error) if isinstance(error, AegisError) else f"{type(error).__name__}: {error}"
        held.idle = False
        held.retry_at = now + held.retry
        held.retry = min(held.retry * 2, LAST_RETRY)
        if held.trouble != held.said:
            held.said = held.trouble
            self._log(f"telemetry: {held.feed.source.name}: {held.trouble}")

    def _batch(self, held: _Held, wall_ns: int, now: float) -> bool:
        """One batch of a feed into the spool; whether there is more to read at once."""
        source, name = held.feed.source, held.feed.source.name
        try:
            reading, data = self._read(held, wall_ns)
        except Exception as error:  # noqa: BLE001 - what is wrong with one source stops no other
            self._failed(held, now, error)
            return False
        count = len(reading.events)
        self.recent.note(reading.events, now)
        if count or reading.cursor != self._spool.cursors.get(name):
            self._keep(held.feed.lane, reading.events, data, {name: reading.cursor})
            self._bucket.take(count)
            try:
                source.done(reading.cursor)
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(held, now, error)
                return False
        held.read(now, count, more=reading.more)
        return reading.more

    def _read(self, held: _Held, wall_ns: int) -> tuple[Reading, bytes]:
        """A reading whose batch is not too large; reading takes nothing away, so one may read again."""
        while True:
            limit = held.limit
            reading = held.feed.source.read(self._spool.first(limit), limit)
            data = self._encoded(reading.events, wall_ns)
            if len(data) <= BATCH_BYTES or len(reading.events) <= 1:
                held.limit = min(BATCH_EVENTS, limit * 2)
                return reading, data
            fits = len(reading.events) * BATCH_BYTES // len(data)
            held.limit = max(1, min(limit - 1, fits * 3 // 4))

    def _encoded(self, events: tuple[Event, ...], wall_ns: int) -> bytes:
        if not events:
            return b""
        return encode_batch(
            EventBatch(host_id=self._host, boot_id=self._boot, sent_ns=wall_ns, events=events, lost=self.lost)
        )

    def _keep(self, lane: Lane, events: tuple[Event, ...], data: bytes, cursors: dict[str, int]) -> None:
        kinds = Counter(str(event.__struct_config__.tag) for event in events)
        if len(data) > MAX_BATCH_BYTES:
            self._spool.count("oversized", kinds)
            data = b""
        self._spool.append(lane, data, kinds, events[-1].seq if events else 0, cursors)

    def _count_lost(self, now: float) -> None:
        """What the sources say; a counter that began anew goes on here."""
        if now - self._lost_at < LOST_SECONDS:
            return
        self._lost_at, defect = now, None
        for held in self._held:
            if held.trouble:
                continue
            try:
                told = held.feed.source.lost()
            except AegisError:
                continue
            except Exception as error:  # noqa: BLE001 - a defect, raised when the others are counted
                defect = error
                continue
            for where, count in told.items():
                key = f"{held.feed.source.name}.{where}"
                before = self._told.get(key, 0)
                self._lost[key] += count - before if count >= before else count
                self._told[key] = count
        if defect is not None:
            raise defect

    def _pause(self, now: float) -> float:
        times = [held.retry_at if held.trouble else held.due for held in self._held]
        return max(0.0, min(times, default=now + BATCH_SECONDS) - now)


def _verdict(flow: DeniedFlow, seq: int, time_ns: int) -> VerdictSeen:
    blocked = flow.mode == "enforce" and flow.role == "active"
    event = VerdictSeen(
        seq=seq,
        time_ns=max(0, time_ns),
        service_id=flow.service_id,
        direction=flow.direction,
        proto=flow.proto,
        peer=str(flow.peer),
        verdict="blocked" if blocked else "would block",
        reason=flow.reason,
        local=None if flow.local is None else str(flow.local),
        local_port=flow.local_port,
        peer_port=flow.peer_port,
        rule=flow.rule,
        digest=flow.digest,
    )
    return replace(event, candidate=True) if flow.role == "candidate" else event
