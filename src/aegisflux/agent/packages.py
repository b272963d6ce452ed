"""Which software this host has: sent whole, and only when it changed or the bus forgot it."""

import asyncio
import random
from typing import Final

from aegisflux.agent.parts import Blocking, Parts
from aegisflux.domain.errors import AegisError, Forbidden, Refused
from aegisflux.domain.inventory import PackageInventory
from aegisflux.ports.inventory import Software
from aegisflux.wire import subjects

SENT: Final = "inventory"
START_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 10.0
SPREAD_SECONDS: Final = 2.0


class Packages:
    """The inventory of a host. `said` is how it stands, in words; `refused` counts those that no bus takes.

    owed:    it is to be taken, whatever `Software.changed` says
    compare: the bus is to be asked whether it still has what it was given
    """

    def __init__(self, parts: Parts, software: Software, background: Blocking) -> None:
        self._parts, self._software, self._background = parts, software, background
        self._again = asyncio.Event()
        self._owed = self._compare = True
        self.refused = 0
        self.said = "not taken yet"

    def compare(self) -> None:
        """After a connect: look whether the bus still has it."""
        self._compare = True
        self._again.set()

    async def run(self) -> None:
        """For as long as the agent lives."""
        await asyncio.sleep(START_SECONDS)
        every = self._parts.settings.telemetry.inventory_seconds
        while True:
            self._again.clear()
            pause = every if await self._looked() else min(every, RETRY_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await self._again.wait()
                await asyncio.sleep(random.random() * SPREAD_SECONDS)
            except TimeoutError:
                continue

    async def look(self) -> bool:
        """Take it when it may have changed, and send it when it did or is gone; whether it was sent."""
        gone = self._compare and await self._is_gone()
        self._compare = False
        if not (gone or self._owed or await self._background(self._software.changed)):
            return False
        self._owed = True
        inventory = await self._background(self._take)
        sent = gone or self._parts.store.read(SENT) != inventory.digest.encode()
        if sent:
            self._compare = gone  # should it fail, this is to be found out again
            await self._send(inventory)
        self._owed = self._compare = False
        missing = "".join(f"; not read: {failed}" for failed in inventory.failed)
        self.said = f"{len(inventory.packages)} packages{missing}"
        return sent

    async def _looked(self) -> bool:
        """Whether there is nothing to try again soon."""
        try:
            await self.look()
        except Refused as error:
            self._owed = self._compare = False
            self.refused += 1
            self._tell(f"refused: {error}")
        except AegisError as error:
            self._tell(str(error))
            return False
        except Exception as error:  # noqa: BLE001 - a loop's edge: a database of packages may hold anything
            self._owed = self._compare = False
            self._tell(f"{type(error).__name__}: {error}")
        return True

    async def _is_gone(self) -> bool:
        try:
            return await self._parts.bus.last(subjects.inventory(self._parts.host_id)) is None
        except Forbidden:  # then nobody can tell
            return False

    async def _send(self, inventory: PackageInventory) -> None:
        host, digest = self._parts.host_id, inventory.digest
        data = await self._background(_encoded, inventory)
        await self._parts.bus.publish(subjects.inventory(host), data)
        await self._parts.blocking(self._parts.store.write, SENT, digest.encode())
        await self._background(self._parts.trim)

    def _take(self) -> PackageInventory:
        return self._software.take(self._parts.host_id, int(self._parts.wall() * 1_000_000_000))

    def _tell(self, text: str) -> None:
        if text != self.said:
            self._parts.log(f"inventory: {text}")
        self.said = text


def _encoded(inventory: PackageInventory) -> bytes:
    from aegisflux.wire.inventory import encode_inventory

    return encode_inventory(inventory)
