"""Recorded flows as columns: a million of them fit into 30 MB and are counted by sorting, not by looping.

An actor is what a rule can speak of: a service on a host, or an address that belongs to nobody we know.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

HOURS: Final = 24  # a day

MOST_ACTORS: Final = 1 << 20

Int = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Flows:
    """One row a flow record; all columns have one length, in any order.

    hour:    of the window, 0 at its start
    client, server: numbers of actors; the client initiated
    proto, port: as IANA numbers them; the port is the server's
    count:   connections, 1 or more
    program: number of the client's program, -1 unknown
    """

    hour: Int
    client: Int
    server: Int
    proto: Int
    port: Int
    count: Int
    program: Int

    def __len__(self) -> int:
        return len(self.hour)

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> "Flows":
        """Some of the rows."""
        return Flows(*(getattr(self, name)[chosen] for name in self.__slots__))

    def and_(self, other: "Flows") -> "Flows":
        """The rows of both."""
        return Flows(
            *(np.concatenate((getattr(self, name), getattr(other, name))) for name in self.__slots__)
        )

    @property
    def day(self) -> Int:
        """Of the window, 0 at its start."""
        return (self.hour // HOURS).astype(np.int32)


def tuple_keys(client: Int, server: Int, proto: Int, port: Int) -> NDArray[np.uint64]:
    """(client, server, protocol, port) as one sortable number; actors below 2^20, as `MOST_ACTORS` says."""
    keys: NDArray[np.uint64] = client.astype(np.uint64) << np.uint64(44)
    keys |= server.astype(np.uint64) << np.uint64(24)
    keys |= proto.astype(np.uint64) << np.uint64(16)
    return keys | port.astype(np.uint64)


def pair_keys(clients: NDArray[Any], servers: NDArray[Any], proto: int, port: int) -> NDArray[np.uint64]:
    """The keys of each client with each server on one port; of nobody with itself."""
    client, server = (actor.ravel() for actor in np.meshgrid(clients, servers))
    client, server = client[client != server], server[client != server]
    return tuple_keys(client, server, np.full_like(client, proto), np.full_like(client, port))
