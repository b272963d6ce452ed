"""When a token was used last: written beside the requests, which do not wait for it and cannot fail by it."""

import asyncio
from typing import Final

from aegisflux.domain.errors import AegisError
from aegisflux.ports.store import Queries
from aegisflux.runtime import logs

MOST: Final = 4096  # tokens whose last use is still to be written
log = logs.get("access")


class Uses:
    """Writes one at a time, so that whoever holds the rows of tokens holds one connection of ours."""

    def __init__(self, store: Queries) -> None:
        self._store = store
        self._due: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, number: str, now: int) -> None:
        """The token of this number is used now, in seconds since the epoch."""
        if len(self._due) < MOST or number in self._due:
            self._due[number] = now
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write(), name="last uses of tokens")

    async def _write(self) -> None:
        while self._due:
            number = next(iter(self._due))
            now = self._due.pop(number)
            try:
                await self._store.run("touch_token", number, now)
            except AegisError as error:
                log.info("the last use of a token is not noted", token=number, error=str(error))
