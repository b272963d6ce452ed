"""Which software a host has. Calls block, for seconds on a large host, and come from one thread."""

from typing import Protocol

from aegisflux.domain.inventory import PackageInventory


class Software(Protocol):
    """What reads the package databases of a host."""

    def take(self, host_id: str, taken_ns: int) -> PackageInventory:
        """All packages there are; what could not be read stands in `failed`."""
        ...

    def changed(self) -> bool:
        """Whether a `take` may find something else than the last one: a cheap look; True before the first."""
        ...
