"""Recorded flows of the store as columns: who the actors are, and a digest of what a result rests on."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

import numpy as np

from aegisflux.domain.errors import OverLimit
from aegisflux.domain.segment.flows import HOURS, MOST_ACTORS, Flows
from aegisflux.domain.segment.propose import Actor, Recorded
from aegisflux.domain.segment.tuples import MOST_DAYS

MOST_RECORDS: Final = 5_000_000
MOST_WAYS: Final = 64  # of addresses at which two hosts talked
MOST_SLOTS: Final = MOST_DAYS * HOURS
Row = Mapping[str, Any]
Servers = Mapping[tuple[str, int, int], str]


class Recorder:
    """Takes rows of `recorded_flows`, in any order, and gives them as `Recorded`.

    servers: the service behind a (host, protocol, port), by that host's own word, where a caller's host did
             not know it
    """

    def __init__(self, scope: Collection[str] = (), servers: Servers = {}) -> None:  # noqa: B006 - only read
        self._scope, self._servers = frozenset(scope), servers
        self._actors: dict[Actor, int] = {}
        self._programs: dict[str, int] = {}
        self._between: dict[tuple[str, str], dict[tuple[str, str], None]] = defaultdict(dict)
        self._rows: list[tuple[int, int, int, int, int, int, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Iterable[Row]) -> None:
        """More rows; those that touch no service of the scope are left out. Raises OverLimit."""
        for row in rows:
            here, there = Actor(row["host_id"], row["service"]), self._peer(row)
            if self._scope and not self._scope & {here.service, there.service}:
                continue
            own, peer = self._actor(here), self._actor(there)
            client, server = (own, peer) if row["calls"] else (peer, own)
            program = self._program(row["path"]) if row["calls"] else -1
            count = min(row["connections"], (1 << 31) - 1)
            self._rows.append((row["slot"], client, server, row["proto"], row["port"], count, program))
        if len(self._rows) > MOST_RECORDS:
            raise OverLimit("flow_records", MOST_RECORDS, len(self._rows), "the window: make it shorter")

    def at(self, rows: Iterable[Row]) -> None:
        """Rows of `recorded_addresses`: where two hosts talked. Of more than `MOST_WAYS` the first count."""
        for row in rows:
            ways = self._between[row["host_id"], row["peer_host"]]
            if len(ways) < MOST_WAYS:
                ways[row["local"], row["peer"]] = None

    def recorded(self) -> Recorded:
        """The window: the fleet's actors first, each kind by name, and the flows in one order."""
        actors = sorted(self._actors, key=lambda a: (not a.host, a.host, a.service, a.address))
        if len(actors) > MOST_ACTORS:
            raise OverLimit("actors", MOST_ACTORS, len(actors), "the window: make it shorter")
        programs = sorted(self._programs)
        columns = np.array(self._rows, np.int64).reshape(-1, 7).T
        columns[1:3] = _renumbered(columns[1:3], self._actors, actors)
        known = columns[6] >= 0
        columns[6, known] = _renumbered(columns[6, known], self._programs, programs)
        columns = columns[:, np.lexsort(columns[::-1])]
        flows = Flows(*(column.astype(np.int32) for column in columns))
        between = {pair: tuple(sorted(self._between[pair])) for pair in sorted(self._between)}
        return Recorded(tuple(actors), sum(bool(a.host) for a in actors), flows, tuple(programs), between)

    def _peer(self, row: Row) -> Actor:
        host, service = row["peer_host"], row["peer_service"]
        if not host:
            return Actor(address=row["peer"])
        if not service and row["calls"]:
            service = self._servers.get((host, row["proto"], row["port"]), "")
        return Actor(host, service)

    def _actor(self, actor: Actor) -> int:
        return self._actors.setdefault(actor, len(self._actors))

    def _program(self, path: str) -> int:
        return self._programs.setdefault(path, len(self._programs)) if path else -1


def digest_of(recorded: Recorded) -> str:
    """`sha256:` and the digest of a window: equal for equal flows, whatever order they came in."""
    digest = sha256("\n".join(map(str, recorded.actors)).encode())
    digest.update(b"\0" + "\n".join(recorded.programs).encode() + b"\0")
    digest.update("\n".join(map(str, recorded.between.items())).encode() + b"\0")
    for name in Flows.__slots__:
        digest.update(np.ascontiguousarray(getattr(recorded.flows, name), "<i4").tobytes())
    return f"sha256:{digest.hexdigest()}"


def _renumbered(numbers: Any, known: Mapping[Any, int], ordered: list[Any]) -> Any:
    places = np.empty(len(known), np.int64)
    for place, value in enumerate(ordered):
        places[known[value]] = place
    return places[numbers] if len(known) else numbers
