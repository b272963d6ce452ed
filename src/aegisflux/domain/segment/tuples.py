"""Who was seen with whom: flow records summed up to (client, server, protocol, port), with their support."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegisflux.domain.segment.flows import MOST_ACTORS, Flows, Int, tuple_keys

MOST_DAYS = 63


@dataclass(frozen=True, slots=True)
class Tuples:
    """One row a tuple, sorted by `key`.

    records: flow records; connections: their sum
    days:    a bit for each day of the window on which it was seen
    """

    key: NDArray[np.uint64]
    client: Int
    server: Int
    proto: Int
    port: Int
    records: NDArray[np.int64]
    connections: NDArray[np.int64]
    days: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.key)

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> "Tuples":
        """Some of the rows, in their order."""
        return Tuples(*(getattr(self, name)[chosen] for name in self.__slots__))

    @property
    def service(self) -> NDArray[np.int64]:
        """Protocol and port as one number of 24 bits."""
        return self.proto.astype(np.int64) << 16 | self.port


def first_rows(*columns: NDArray[Any]) -> NDArray[np.intp]:
    """Of columns that are sorted together: where each combination of their values begins."""
    new = np.ones(len(columns[0]), bool)
    new[1:] = np.logical_or.reduce([np.diff(column) != 0 for column in columns])
    return np.nonzero(new)[0]


def tuples_of(flows: Flows) -> Tuples:
    """Distinct tuples of these records; raises ValueError beyond `MOST_DAYS` or `MOST_ACTORS`."""
    days = flows.day
    if len(days) and int(days.max()) >= MOST_DAYS:
        raise ValueError(f"a window has at most {MOST_DAYS} days, got {int(days.max()) + 1}")
    actors = max((int(ends.max()) + 1 for ends in (flows.client, flows.server) if len(ends)), default=0)
    if actors > MOST_ACTORS:
        raise ValueError(f"a window has at most {MOST_ACTORS} actors, got {actors}")
    keys = tuple_keys(flows.client, flows.server, flows.proto, flows.port)
    order = np.argsort(keys, kind="stable")
    key, first = np.unique(keys[order], return_index=True)
    at = order[first]
    bits = np.left_shift(np.uint64(1), days[order].astype(np.uint64))
    empty = len(key) == 0
    return Tuples(
        key,
        flows.client[at],
        flows.server[at],
        flows.proto[at],
        flows.port[at],
        np.diff(np.append(first, len(keys))),
        np.empty(0, np.int64) if empty else np.add.reduceat(flows.count[order].astype(np.int64), first),
        np.empty(0, np.uint64) if empty else np.bitwise_or.reduceat(bits, first),
    )
