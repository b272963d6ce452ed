"""Core services: what much of the fleet uses (DNS, time, logs), and what visits much of it (metrics, backup).

They are lifted before hosts are grouped, since what everybody does tells nobody apart, and become rules that
a person reviews: a patient scanner of one port looks like a bastion. Found by how much of the fleet they
touch, never by a port number; it only gives the name.
"""

from typing import Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from aegisflux.domain.net import PROTOCOL_NAMES, TCP, UDP
from aegisflux.domain.segment.flows import Int
from aegisflux.domain.segment.tuples import Tuples

SHARE: Final = 0.2  # of the fleet's hosts, touched by one actor on one port
LEAST_HOSTS: Final = 5
LEAST_DAYS: Final = 3
MOST_PORTS: Final = 2  # on which a core client visits the fleet

Side = Literal["server", "client"]
NAMES: Final = {
    (UDP, 53): "dns",
    (TCP, 53): "dns",
    (UDP, 123): "ntp",
    (TCP, 22): "ssh",
    (TCP, 88): "kerberos",
    (TCP, 389): "directory",
    (TCP, 636): "directory",
    (UDP, 514): "log",
    (TCP, 514): "log",
    (TCP, 6514): "log",
    (TCP, 9100): "metrics",
}


class CoreService(Struct, frozen=True, order=True):
    """Actors that much of the fleet calls (`server`) on a port, or that call much of it (`client`).

    touched: hosts on the other side
    """

    name: str
    side: Side
    proto: int
    port: int
    actors: tuple[int, ...]
    touched: int


def core_services(tuples: Tuples, hosts: int, share: float = SHARE) -> tuple[CoreService, ...]:
    """All of them, sorted. Actors below `hosts` are hosts of the fleet; only they count as touched."""
    found = []
    sides: tuple[tuple[Side, Int, Int], ...] = (
        ("server", tuples.server, tuples.client),
        ("client", tuples.client, tuples.server),
    )
    for side, actor, other in sides:
        wide = _wide(tuples, actor, other, hosts, share)
        if side == "client":
            wide = _of_few_ports(actor, tuples.service, wide)
        for proto, port in sorted(
            set(zip(tuples.proto[wide].tolist(), tuples.port[wide].tolist(), strict=True))
        ):
            rows = wide & (tuples.proto == proto) & (tuples.port == port)
            actors = tuple(np.unique(actor[rows]).tolist())
            touched = len(np.unique(other[rows & (other < hosts)]))
            found.append(CoreService(_name(side, proto, port), side, proto, port, actors, touched))
    return tuple(sorted(found))


def core_rows(tuples: Tuples, core: tuple[CoreService, ...], side: Side) -> NDArray[np.bool_]:
    """Which tuples have a core service on this side."""
    actor = tuples.server if side == "server" else tuples.client
    found = np.zeros(len(tuples), bool)
    for one in core:
        if one.side == side:
            at = (tuples.proto == one.proto) & (tuples.port == one.port)
            found |= at & np.isin(actor, np.array(one.actors))
    return found


def _wide(tuples: Tuples, actor: Int, other: Int, hosts: int, share: float) -> NDArray[np.bool_]:
    """Tuples of actors that touch enough hosts on one port, and did so on enough days."""
    service = actor.astype(np.int64) << 24 | tuples.service
    inside = other < hosts
    names, at = np.unique(service, return_inverse=True)
    touched = np.bincount(at[inside], minlength=len(names))  # a tuple each, and tuples are distinct
    days = np.zeros(len(names), np.uint64)
    np.bitwise_or.at(days, at, tuples.days)
    wide = (touched >= max(LEAST_HOSTS, share * hosts)) & (np.bitwise_count(days) >= LEAST_DAYS)
    return wide[at]


def _of_few_ports(actor: Int, service: NDArray[np.int64], wide: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of wide tuples those whose actor is wide on few ports: who goes everywhere on many scans."""
    pairs = np.unique(actor[wide].astype(np.int64) << 24 | service[wide])
    actors, ports = np.unique(pairs >> 24, return_counts=True)
    return wide & np.isin(actor, actors[ports <= MOST_PORTS])


def _name(side: Side, proto: int, port: int) -> str:
    known = NAMES.get((proto, port), f"{PROTOCOL_NAMES.get(proto, proto)}/{port}")
    return known if side == "server" else f"{known} to all"
