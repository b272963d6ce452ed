"""Whose requests the bus hands to us: those of the hosts that are enrolled, each with a window of its own."""

from typing import Final

from aegisflux.domain.shares import Share
from aegisflux.domain.windows import Asking
from aegisflux.ports.bus import Bus, Responder, Serving
from aegisflux.ports.store import Store
from aegisflux.wire import subjects

# An agent fetches one chunk after the other, a hundred a second at most, and asks for credentials every week.
# What one host can send us at once, windows of requests that are as large as a message may be, stays below
# what the server keeps for our connection.
CONTENT: Final = Asking(window=8, share=Share(rate=50.0, burst=1024.0))
CREDENTIALS: Final = Asking(window=2, share=Share(rate=0.5, burst=16.0))


class Hearing:
    """The hosts that are heard follow enrolments and releases at once, and the store at every comparison."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self._bus, self._store = bus, store
        self._services: list[Serving] = []
        self._meanwhile: dict[str, bool] = {}

    async def begin(self, content: Responder, credentials: Responder) -> None:
        """Serve all that hosts ask for."""
        for subject, responder, asking in (
            (subjects.ALL_CONTENT, content, CONTENT),
            (subjects.ALL_CREDENTIALS, credentials, CREDENTIALS),
        ):
            self._services.append(await self._bus.serve(subject, responder, (), asking))
        await self.follow()

    async def add(self, host: str) -> None:
        """It is enrolled."""
        self._meanwhile[host] = True
        for service in self._services:
            await service.add(host)

    async def remove(self, host: str) -> None:
        """It is released."""
        self._meanwhile[host] = False
        for service in self._services:
            await service.remove(host)

    async def follow(self) -> None:
        """Hear whom the store knows, and who was enrolled while it was asked."""
        self._meanwhile.clear()
        hosts = {row["host_id"] for row in await self._store.rows("host_keys")}
        hosts |= {host for host, enrolled in self._meanwhile.items() if enrolled}
        hosts -= {host for host, enrolled in self._meanwhile.items() if not enrolled}
        for service in self._services:
            await service.only(hosts)
