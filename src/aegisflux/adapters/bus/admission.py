"""Which messages of a pull are handled now: each host has its share."""

import time

from aegisflux.domain.shares import Shares
from aegisflux.ports.bus import Fair
from aegisflux.runtime.over_share import Count, Refusals, Say

LATER_SECONDS = (0.5, 10.0)


class Admission:
    """Asked once for each delivery of a message, in the order of their arrival."""

    def __init__(self, fair: Fair | None, queue: str, say: Say, count: Count) -> None:
        self._messages = Shares(fair.messages) if fair else None
        self._payload = Shares(fair.payload) if fair and fair.payload else None
        self.dropped = fair is not None and fair.beyond == "dropped"
        self._refusals = Refusals(queue, say, count)

    def wait(self, subject: str, size: int) -> float:
        """0.0 for a message that is handled now, which is counted; else the seconds until its host may have
        one handled."""
        if self._messages is None:
            return 0.0
        host, now = host_in(subject), time.monotonic()
        seconds = self._messages.wait(host, now)
        if self._payload is not None:
            seconds = max(seconds, self._payload.wait(host, now))
        if seconds > 0:
            self._refusals.note(host)
            return min(max(seconds, LATER_SECONDS[0]), LATER_SECONDS[1])
        self._messages.use(host, 1.0, now)
        if self._payload is not None:
            self._payload.use(host, float(size), now)
        return 0.0


def host_in(subject: str) -> str:
    """Whose a message is: the last token of its subject, where the server lets only that host write."""
    return subject.rpartition(".")[2]
