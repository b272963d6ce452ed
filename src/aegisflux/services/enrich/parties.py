"""Services where they run, with what is in force there, as the store has them."""

from collections import defaultdict
from typing import Final

import msgspec

from aegisflux.domain.could import Party
from aegisflux.domain.manifest import Content
from aegisflux.ports.facts import Facts
from aegisflux.runtime.beside import beside
from aegisflux.wire.content import unpacked

KEPT: Final = 256


class Parties:
    """Compiled contents are kept, since they never change."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._contents: dict[tuple[int, int], Content] = {}

    async def knows(self, service: str) -> bool:
        """Whether a service of that name is registered."""
        return bool(await self._facts.rows("service_named", service))

    async def all(self) -> list[Party]:
        """Each service, once for each version of it that some kernel holds, and once where none does."""
        addresses: dict[tuple[int, str, int | None], set[str]] = defaultdict(set)
        for row in await self._facts.rows("parties"):
            addresses[row["service_id"], row["name"], row["version"]].update(row["addresses"])
        ports: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row in await self._facts.rows("service_ports"):
            ports[row["service_id"]].append((row["proto"], row["port"]))
        return [
            Party(
                name,
                tuple(sorted(found)),
                tuple(ports[service]),
                None if version is None else await self._content(service, version),
            )
            for (service, name, version), found in addresses.items()
        ]

    async def _content(self, service: int, version: int) -> Content | None:
        known = self._contents.get((service, version))
        if known is None:
            rows = await self._facts.rows("content_payload", service, version)
            if not rows:
                return None
            known = await beside(_read, rows[0]["payload"])
            if len(self._contents) >= KEPT:
                del self._contents[next(iter(self._contents))]
            self._contents[service, version] = known
        return known


def _read(payload: bytes) -> Content:
    return msgspec.msgpack.decode(unpacked(payload), type=Content)
