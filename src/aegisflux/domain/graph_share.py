"""How much of the graph one host may make. Pure.

What a host says of each peer, program and listener is an edge for weeks, and every question to the graph
reads it: a batch that costs its host little would cost everybody much. So each host has its edges of a day.
Beyond them peers are told by their network, then all together; the store of facts has each of them.
"""

from collections.abc import Mapping
from typing import Final

# An edge is a peer, a protocol and a port. A busy server has some hundred peers that are no hosts of ours.
MAX_FLOWS: Final = 2048
MAX_NETWORKS: Final = 256
MAX_BINARIES: Final = 1024
MAX_LISTENERS: Final = 1024
MAX_SERVICES: Final = 256  # as in a manifest
V4_BITS, V6_GROUPS = 16, 2
OTHERS: Final = "others"

_MOST: Final[Mapping[str, int]] = {
    "flow": MAX_FLOWS, "network": MAX_NETWORKS, "binary": MAX_BINARIES, "listener": MAX_LISTENERS,
    "service": MAX_SERVICES,
}  # fmt: skip


class Told:
    """What one host told of today, by kind. `folded` counts what was new and had no place."""

    __slots__ = ("_known", "day", "folded")

    def __init__(self) -> None:
        self.day = 0
        self._known: dict[str, set[int]] = {}
        self.folded = 0

    def begin(self, day: int) -> None:
        """It is this day, counted from any other one: on another than before, all places are free."""
        if day != self.day:
            self.day, self._known = day, {}

    def place(self, kind: str, key: object) -> bool:
        """Whether the key has a place, which it keeps for the day. Hashes are kept, which nobody can choose
        since they have a seed of this process."""
        known, found = self._known.setdefault(kind, set()), hash(key)
        if found in known:
            return True
        if len(known) >= _MOST[kind]:
            self.folded += 1
            return False
        known.add(found)
        return True


def forget_earlier(told: dict[str, Told]) -> None:
    """Forget hosts of which nothing came on the latest day or the one before: released ones, or off."""
    latest = max((host.day for host in told.values()), default=0)
    for name in [name for name, host in told.items() if host.day < latest - 1]:
        del told[name]


def network_of(address: str) -> str:
    """The network that stands for an address: /16 of IPv4, /32 of IPv6."""
    if "." in address:
        return ".".join(address.rpartition(":")[2].split(".")[:2]) + f".0.0/{V4_BITS}"
    groups = [*address.partition("::")[0].split(":"), "0", "0"][:V6_GROUPS]
    return ":".join(group or "0" for group in groups) + f"::/{V6_GROUPS * 16}"
