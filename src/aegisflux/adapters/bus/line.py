"""nats-py's client, and what it does not do itself: requests of hosts are handed over unparsed."""

from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.client import Client

MOST_HEADERS: Final = 8192  # bytes; what we and the server write is far less

Taker = Callable[[bytes, bytes, int], Awaitable[None]]
"""Gets the reply subject, the payload, and the size of the headers, of a message."""


class Line(Client):
    """One connection.

    nats-py makes a task and a queue for each subscription, and parses all headers on the loop, which
    140,000 of them stop for long. Here a subscription of `served` is one entry, nobody reads headers of
    a request, and headers longer than `MOST_HEADERS` are taken for none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.served: dict[int, Taker] = {}

    def next_number(self) -> int:
        """The number of a new subscription."""
        self._sid += 1
        return int(self._sid)

    async def say(self, commands: bytes) -> None:
        """Send commands of the protocol, in the order of all that is sent."""
        if commands and not self.is_closed:
            await self._send_command(commands)
            await self._flush_pending()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        """See nats-py: called for every message, before anything of it is parsed."""
        if (taker := self.served.get(sid)) is not None:
            await taker(reply, data, len(headers or b""))
            return
        if headers is not None and len(headers) > MOST_HEADERS:
            headers = b""
        await super()._process_msg(sid, subject, reply, data, headers or b"")
