"""What ingest lets through: whose events, in which order, of which time. Pure; arrival is an argument.

The rules, for a batch of the schema:

* The host is the one that the subject (or the token) proves. A batch that names another is refused whole.
* Sequences rise strictly. An event that does not is refused; those around it go on.
* A time more than `FUTURE_NS` after the arrival is set to the arrival, and the event marked `clamped`.
* A batch has at most `MAX_LOST` counters of lost events.
* A host begins a new boot now and then: `Boots` says when it is one too many.
"""

from collections import OrderedDict, deque
from typing import Final

import msgspec
from msgspec import Struct

from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.event import Event, EventBatch, FlowSeen
from aegisflux.domain.shares import Share, Shares

SECOND: Final = 1_000_000_000
FUTURE_NS: Final = 5 * SECOND
MAX_LOST: Final = 64
WINDOW_NS: Final = 60 * SECOND
SLICES: Final = 6
MAX_HOSTS: Final = 100_000
MAX_BOOTS: Final = 16  # of a host that are told apart
# Each boot is a row for weeks. A machine that reboots in a loop does so once a minute.
BOOTS: Final = Share(rate=1 / 60, burst=float(MAX_BOOTS))


class Judged(Struct, frozen=True):
    """A batch by its rules. `events` is None when all of them go on as they came.

    refused: place in the batch and reason of each event that does not go on
    clamped: how many events were given another time
    """

    events: tuple[Event, ...] | None = None
    refused: tuple[tuple[int, str], ...] = ()
    clamped: int = 0


_ALL_WELL: Final = Judged()


def judge(batch: EventBatch, host: str, arrival: int) -> Judged:
    """What of a batch of the proven host goes on; `arrival` in nanoseconds since the epoch.

    Raises Invalid or OverLimit when the batch is refused whole.
    """
    if batch.host_id != host:
        raise Invalid("host_id", f"{host}, which its subject proves", batch.host_id)
    if len(batch.lost) > MAX_LOST:
        raise OverLimit("lost", MAX_LOST, len(batch.lost), "batch")
    latest, last = arrival + FUTURE_NS, 0
    for event in batch.events:
        if event.seq <= last or is_ahead(event, latest):
            return _sorted_out(batch.events, arrival)
        last = event.seq
    return _ALL_WELL


def _sorted_out(events: tuple[Event, ...], arrival: int) -> Judged:
    """The slow way: event by event."""
    good: list[Event] = []
    refused: list[tuple[int, str]] = []
    last = clamped = 0
    for place, event in enumerate(events):
        if event.seq <= last:
            refused.append((place, f"seq: expected above {last}, got {event.seq}"))
            continue
        last = event.seq
        if is_ahead(event, arrival + FUTURE_NS):
            event = clamp(event, arrival)
            clamped += 1
        good.append(event)
    return Judged(tuple(good), tuple(refused), clamped)


def is_ahead(event: Event, latest: int) -> bool:
    """Whether it tells of a time after `latest`; a flow is stored by that of its last packet."""
    return event.time_ns > latest or (type(event) is FlowSeen and event.last_ns > latest)


def clamp(event: Event, arrival: int) -> Event:
    """The event as if it had happened at its arrival, and marked; also what a flow says of its packets."""
    if isinstance(event, FlowSeen):
        first, last = min(event.first_ns, arrival), min(event.last_ns, arrival)
        return msgspec.structs.replace(event, time_ns=arrival, clamped=True, first_ns=first, last_ns=last)
    return msgspec.structs.replace(event, time_ns=arrival, clamped=True)


class Offsets:
    """By how much each host's clock is behind ours, in nanoseconds: the least `arrival - sent` of a window.

    The way costs time and never gains any, so the least difference is the offset plus the fastest way;
    a host whose clock is ahead has a negative one.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, deque[tuple[int, int]]] = {}

    def observe(self, host: str, arrival: int, sent: int) -> int:
        """Learn from a batch; the estimate."""
        slices = self._hosts.get(host)
        if slices is None:
            if len(self._hosts) >= MAX_HOSTS:
                self._hosts.clear()
            slices = self._hosts[host] = deque(maxlen=SLICES)
        number, difference = arrival // (WINDOW_NS // SLICES), arrival - sent
        if not slices or slices[-1][0] < number:
            slices.append((number, difference))
        elif difference < slices[-1][1]:
            slices[-1] = slices[-1][0], difference
        while slices[0][0] <= number - SLICES:
            slices.popleft()
        return min(least for _, least in slices)

    def all(self) -> dict[str, int]:
        """The estimates of all hosts that were heard."""
        return {host: min(least for _, least in slices) for host, slices in self._hosts.items() if slices}


class Boots:
    """Which boots of each host were heard of. A new one uses up a share: its events are kept for weeks."""

    def __init__(self) -> None:
        self._shares = Shares(BOOTS)
        self._heard: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()

    def check(self, host: str, boot: str, now: float) -> None:
        """Raise OverLimit for a boot that is new, of a host that began too many; `now` in seconds of a clock
        that never runs backwards."""
        heard = self._heard.setdefault(host, OrderedDict())
        if boot not in heard and not self._shares.take(host, 1.0, now):
            raise OverLimit("boots", MAX_BOOTS, MAX_BOOTS + 1, f"host {host}; then one a minute")
        self._heard.move_to_end(host)
        heard[boot] = None
        heard.move_to_end(boot)
        if len(heard) > MAX_BOOTS:
            heard.popitem(last=False)
        if len(self._heard) > MAX_HOSTS:
            self._heard.popitem(last=False)
