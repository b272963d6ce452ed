"""What the services of this host talked about lately: for pre-flight, in memory, bounded.

Only what was answered, and not blocked, counts: a knock at a closed door is no work of a service.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import Event, FlowSeen
from aegisflux.domain.flow import Direction, Flow
from aegisflux.domain.net import TCP, parse_address

MOST: Final = 4096
SECONDS: Final = 600.0
Key = tuple[int, Direction, int, str, int, str]


class Recent:
    """Kinds of flows of the last ten minutes, the newest `MOST` of them."""

    def __init__(self) -> None:
        self._at: OrderedDict[Key, float] = OrderedDict()

    def note(self, events: Iterable[Event], now: float) -> None:
        """What was just read; `now` on a clock of the caller's."""
        for event in events:
            if not isinstance(event, FlowSeen) or event.service_id is None or event.verdict == "blocked":
                continue
            if event.proto == TCP and not (event.packets_in and event.packets_out):
                continue
            key = (event.service_id, event.direction, event.proto, event.peer, event.port, event.cgroup)
            self._at[key] = now
            self._at.move_to_end(key)
        while len(self._at) > MOST:
            self._at.popitem(last=False)

    def flows(self, service_id: int, now: float) -> list[Flow]:
        """Those of a service, oldest first."""
        found = []
        for (service, direction, proto, peer, port, cgroup), at in list(self._at.items()):
            if service != service_id or now - at > SECONDS:
                continue
            try:
                found.append(Flow(direction, proto, parse_address(peer), port, cgroup=cgroup or None))
            except Invalid:
                continue
        return found
