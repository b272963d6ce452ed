"""How a rotation of keys goes on: it waits for hosts, and never for ever.

added -> switched -> over. Each phase is over when every host that is online has the newest manifest, which
carries the key set; or at its deadline. Who is left behind finds the key set beside its manifest when it asks
for one, signed by the root key, so nobody has to be enrolled again.
"""

from collections.abc import Collection, Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

MIN_WAIT, MAX_WAIT, DEFAULT_WAIT = 60, 7 * 86_400, 3600
MAX_NAMED: Final = 100


class HostSerial(Struct, frozen=True):
    """How far one host is: the serial of the newest manifest that it reports, and of the newest one made. One
    that reports more than was made takes no manifest: the store is older than what it has, or it lies."""

    host_id: str
    reported: int
    newest: int
    offline: bool


class Progress(Struct, frozen=True):
    """Whether a phase is over, and the hosts that do not have its manifest."""

    over: bool
    missing: tuple[str, ...]


def ahead_text(reported: int, newest: int) -> str:
    """What is wrong with a host that has a newer manifest than the control plane made, in words."""
    return (
        f"ahead of the control plane: it has the manifest of serial {reported}, the newest one made is "
        f"{newest}; it takes none until `aegisflux audit accept`: the database is older than this host"
    )


def to_come(hosts: Iterable[HostSerial]) -> tuple[HostSerial, ...]:
    """Return the hosts as they are when a rotation begins: each has a new manifest to take."""
    return tuple(replace(one, newest=one.newest + 1) for one in hosts)


def progress(
    hosts: Iterable[HostSerial], without: Collection[str], waits_until: float, now: float
) -> Progress:
    """Return how far a phase is. An offline host is not missing; one of `without` is never waited for."""
    behind = tuple(one.host_id for one in hosts if one.reported != one.newest and not one.offline)
    awaited = any(host not in without for host in behind)
    return Progress(over=not awaited or now >= waits_until, missing=behind)
