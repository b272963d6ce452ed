"""What a manifest has room for: the services that a host enforces come first, then those that are offered.

A manifest is one message and is believed as a whole, so one service too many would end the renewals of all.
Therefore it always fits: what is assigned to the host comes first, then what is judged beside, then services
whose `host_labels` name the host, then those that are offered to every host; each by their numbers. What is
left out is said, since nothing looks for it on that host.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from aegisflux.domain.errors import OverLimit
from aegisflux.domain.manifest import MAX_MANIFEST_BYTES, MAX_SERVICES, ServiceState
from aegisflux.domain.text import first_of

BESIDE_BYTES: Final = 64 * 1024  # of a message: the key set, signatures, headers
ROOM_BYTES: Final = MAX_MANIFEST_BYTES - BESIDE_BYTES
SERVICE_BYTES: Final = 512  # of a service at most, without its selectors
SELECTOR_BYTES: Final = 5  # of a selector at most, beside its text
MOST_NAMED: Final = 4


class Wanted(NamedTuple):
    """The services that one host is to have, by why; a service is in one of them."""

    assigned: Sequence[ServiceState] = ()
    beside: Sequence[ServiceState] = ()
    named: Sequence[ServiceState] = ()
    offered: Sequence[ServiceState] = ()


class Fitted(NamedTuple):
    """What the manifest has, by number, and what it has no room for, the most important first."""

    services: tuple[ServiceState, ...]
    left_out: tuple[ServiceState, ...] = ()


def fitted(host: str, wanted: Wanted, bytes_of: Callable[[ServiceState], int]) -> Fitted:
    """As many of the services as a manifest has room for; raises OverLimit where even the assigned ones are
    too many.

    `bytes_of`: how long a service is in a manifest
    """
    if error := no_room(host, len(wanted.assigned), sum(map(bytes_of, wanted.assigned))):
        raise error
    taken: list[ServiceState] = []
    left: list[ServiceState] = []
    room = ROOM_BYTES
    for services in wanted:
        for service in sorted(services, key=_number):
            size = bytes_of(service)
            if len(taken) < MAX_SERVICES and size <= room:
                taken.append(service)
                room -= size
            else:
                left.append(service)
    return Fitted(tuple(sorted(taken, key=_number)), tuple(left))


def no_room(host: str, services: int, filled: int) -> OverLimit | None:
    """Why a host's manifest has no room for so many snapshots, or so many bytes of them; None: it has."""
    what = f"the snapshots of host {host}"
    if services > MAX_SERVICES:
        return OverLimit("services_per_host", MAX_SERVICES, services, what)
    return OverLimit("manifest_bytes", ROOM_BYTES, filled, what) if filled > ROOM_BYTES else None


def left_out_text(left_out: Sequence[ServiceState], count: int) -> str:
    """What a host's manifest has no room for, for people; `count`: how many services it has."""
    if not left_out:
        return ""
    names = first_of([service.name for service in left_out], MOST_NAMED)
    return (
        f"{len(left_out)} of {count + len(left_out)} services are left out of this host's manifest: {names}; "
        f"it has room for {MAX_SERVICES} services and {ROOM_BYTES} bytes: "
        "give services host_labels, so that each host is offered only its own"
    )


def overfull_text(host: str, hosts: int, services: int) -> str:
    """What is wrong with a service that is offered to hosts with too many others; `hosts`: how many they are,
    0: there is none yet."""
    others = f" and {hosts - 1} more" if hosts > 1 else ""
    whom = f"host {host}{others} would be" if hosts else "every host would be"
    return (
        f"{whom} offered {services} services; a manifest has room for {MAX_SERVICES} and {ROOM_BYTES} bytes, "
        "and the last ones by number are left out: give services host_labels"
    )


def most_bytes(selectors: Iterable[str]) -> int:
    """How long a service with these selectors can be in a manifest."""
    return SERVICE_BYTES + sum(len(text.encode()) + SELECTOR_BYTES for text in selectors)


def _number(service: ServiceState) -> int:
    return service.service_id
