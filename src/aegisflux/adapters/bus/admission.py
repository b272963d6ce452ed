"""Which messages of a pull are handled now: each host has its share."""

import time

from aegisflux.domain.shares import Shares
from aegisflux.ports.bus import Fair
from aegisflux.runtime.over_share import Count, Refusals, Say

SOONEST, LATEST = 0.25, 60.0
MAX_SLOTS = 4096


class Admission:
    """Asked once for each delivery of a message, in the order of their arrival."""

    def __init__(self, fair: Fair | None, queue: str, say: Say, count: Count) -> None:
        self._messages = Shares(fair.messages) if fair else None
        self._payload = Shares(fair.payload) if fair and fair.payload else None
        self._parts = Shares(fair.parts) if fair and fair.parts else None
        self._scarce = Shares(fair.scarce) if fair and fair.scarce else None
        self._fair = fair
        self._slots: dict[str, float] = {}
        self.dropped = fair is not None and fair.beyond == "dropped"
        self._refusals = Refusals(queue, say, count)

    def wait(self, subject: str, payload: bytes) -> float:
        """0.0 for a message that is handled now, which is counted; else the seconds until its host may have
        one handled."""
        if self._messages is None or self._fair is None:
            return 0.0
        host, now = host_in(subject), time.monotonic()
        scarce = self._scarce if self._fair.is_scarce() else None
        shares = (self._messages, self._payload, self._parts, scarce)
        seconds = max(share.wait(host, now) for share in shares if share is not None)
        if seconds > 0:
            self._refusals.note(host)
            least = self._fair.payload if scarce is None else self._fair.scarce
            return self._later(host, len(payload) / least.rate if least else 0.0, now, seconds)
        self._messages.use(host, 1.0, now)
        for share in (self._payload, scarce):
            if share is not None:
                share.use(host, float(len(payload)), now)
        if self._parts is not None:  # counted of what is handled only: looking is work too
            self._parts.use(host, float(self._fair.count(payload)), now)
        return 0.0

    def _later(self, host: str, lasts: float, now: float, seconds: float) -> float:
        """Seconds until this one may come again: those of one host one after the other, as its share lets
        them be handled; this one `lasts` so many seconds. All at once they would be pulled in vain again and
        again."""
        assert self._fair is not None
        if self._fair.beyond == "newest":  # what it replaces is gone from the stream, and needs no turn
            return max(seconds, SOONEST)
        if len(self._slots) >= MAX_SLOTS:
            self._slots = {name: at for name, at in self._slots.items() if at > now}
        at = max(now + seconds, self._slots.get(host, now))
        self._slots[host] = at + max(1 / self._fair.messages.rate, lasts)
        return min(max(at - now, SOONEST), LATEST)


def host_in(subject: str) -> str:
    """Whose a message is: the last token of its subject, where the server lets only that host write."""
    return subject.rpartition(".")[2]
