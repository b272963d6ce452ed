"""Rules between groups, each with the support it has, and what was held back, with the reason.

A rule lets every member of one group call every member of another on a port. It is learned when two clients
or more did so on two days or more. What one client alone did needs more days, and is not learned from a host
that calls many more groups than others do: so looks an intruder who wants to be learned.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from aegisflux.domain.segment.core import CoreService
from aegisflux.domain.segment.flows import Int
from aegisflux.domain.segment.tuples import Tuples, first_rows

ANYONE: Final = -1  # outside of the fleet
FLEET: Final = -2  # every host of it
LEAST_DAYS: Final = 2
LEAST_DAYS_OF_ONE: Final = 3
PUBLIC_CLIENTS: Final = 20  # so many addresses that belong to nobody we know: anyone may call
WIDE_QUANTILE: Final = 0.95
WIDE_FACTOR: Final = 3.0
WIDE_MORE: Final = 5

Kind = Literal["learned", "core", "public"]
Held = Literal["", "few_days", "one_client_few_days", "wide_host"]


class Rule(Struct, frozen=True, kw_only=True):
    """`client` and `server` are groups, ANYONE or FLEET; what is counted is what was seen.

    held: why it is not proposed; empty: it is
    """

    client: int
    server: int
    proto: int
    port: int
    clients: int
    servers: int
    days: int
    records: int
    connections: int
    kind: Kind = "learned"
    held: Held = ""


@dataclass(frozen=True)
class Support:
    """One row a (client group, server group, protocol, port); `at` is the row of each tuple."""

    client: Int
    server: Int
    proto: Int
    port: Int
    clients: NDArray[np.int64]
    servers: NDArray[np.int64]
    days: NDArray[np.int64]
    records: NDArray[np.int64]
    connections: NDArray[np.int64]
    at: NDArray[np.intp]


def support_of(tuples: Tuples, groups: Int) -> Support:
    """What each rule that could be has for it; `groups` gives the group of every actor."""
    client, server = groups[tuples.client].astype(np.int64), groups[tuples.server].astype(np.int64)
    service = tuples.service
    order = np.lexsort((service, server, client))
    first = first_rows(client[order], server[order], service[order])
    at = np.empty(len(tuples), np.intp)
    at[order] = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(tuples))))
    one = order[first]
    return Support(
        client[one].astype(np.int32),
        server[one].astype(np.int32),
        tuples.proto[one],
        tuples.port[one],
        _distinct(at, tuples.client, len(first)),
        _distinct(at, tuples.server, len(first)),
        np.bitwise_count(np.bitwise_or.reduceat(tuples.days[order], first)).astype(np.int64),
        np.bincount(at, tuples.records, len(first)).astype(np.int64),
        np.bincount(at, tuples.connections, len(first)).astype(np.int64),
        at,
    )


def wide_hosts(tuples: Tuples, groups: Int, hosts: int, core: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Hosts that call many more groups than nearly all others do, core services apart (rows `core`)."""
    rows = ~core & (tuples.client < hosts) & (groups[tuples.server] >= 0)
    pairs = np.unique(
        tuples.client[rows].astype(np.int64) << 32 | groups[tuples.server[rows]].astype(np.int64)
    )
    called = np.bincount(pairs >> 32, minlength=hosts)
    usual = float(np.quantile(called, WIDE_QUANTILE)) if hosts else 0.0
    return np.nonzero(called > WIDE_FACTOR * usual + WIDE_MORE)[0]


def called_by_others(tuples: Tuples, wide: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which tuples go where a host that is not wide goes too: to the same server and port."""
    others = ~np.isin(tuples.client, wide)
    where = tuples.server.astype(np.int64) << 24 | tuples.service
    return np.isin(where, where[others])


def gone_by_wide_hosts_alone(tuples: Tuples, support: Support, wide: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Of each row of the support, whether no other host of the client group goes that way."""
    others: NDArray[np.int_] = np.bincount(support.at, ~np.isin(tuples.client, wide), len(support.client))
    return others < 1


def rules_of(support: Support, wide: NDArray[np.bool_]) -> tuple[Rule, ...]:
    """A rule for each row of the support, proposed or held; `wide`: whether only wide hosts go that way."""
    found = []
    for row in range(len(support.client)):
        client = int(support.client[row])
        public = client == ANYONE and support.clients[row] >= PUBLIC_CLIENTS
        found.append(
            Rule(
                client=client,
                server=int(support.server[row]),
                proto=int(support.proto[row]),
                port=int(support.port[row]),
                clients=int(support.clients[row]),
                servers=int(support.servers[row]),
                days=int(support.days[row]),
                records=int(support.records[row]),
                connections=int(support.connections[row]),
                kind="public" if public else "learned",
                held=_held(support, row, bool(wide[row])),
            )
        )
    return tuple(found)


def core_rules(core: Sequence[CoreService], groups: Int, tuples: Tuples) -> tuple[Rule, ...]:
    """What is lifted: every host may call these, or be called by them. Who is in a group with one is one."""
    found = []
    for one in core:
        own = tuples.server if one.side == "server" else tuples.client
        for of in np.unique(groups[list(one.actors)]).tolist():
            rows = (groups[own] == of) & (tuples.proto == one.proto) & (tuples.port == one.port)
            some = tuples.where(rows)
            found.append(
                Rule(
                    client=FLEET if one.side == "server" else of,
                    server=of if one.side == "server" else FLEET,
                    proto=one.proto,
                    port=one.port,
                    clients=len(np.unique(some.client)),
                    servers=len(np.unique(some.server)),
                    days=int(np.bitwise_count(np.bitwise_or.reduce(some.days))),
                    records=int(some.records.sum()),
                    connections=int(some.connections.sum()),
                    kind="core",
                )
            )
    return tuple(found)


def allowed(
    rules: Iterable[Rule], groups: Int, hosts: int, client: Int, server: Int, proto: Int, port: Int
) -> NDArray[np.bool_]:
    """Which of these (client, server, protocol, port) the rules allow; actors below `hosts` are the fleet."""
    ways = np.array([_way(r.client, r.server, r.proto, r.port) for r in rules], np.int64)
    found = np.isin(_way(groups[client], groups[server], proto, port), ways)
    found |= (client >= hosts) & np.isin(_way(ANYONE, groups[server], proto, port), ways)
    found |= (client < hosts) & np.isin(_way(FLEET, groups[server], proto, port), ways)
    return found | ((server < hosts) & np.isin(_way(groups[client], FLEET, proto, port), ways))


def _way(client: Int | int, server: Int | int, proto: Int | int, port: Int | int) -> NDArray[np.int64]:
    """A way between groups as one number; groups begin at FLEET."""
    ends = (np.asarray(client, np.int64) - FLEET) << 44 | (np.asarray(server, np.int64) - FLEET) << 24
    way: NDArray[np.int64] = ends | np.asarray(proto, np.int64) << 16 | np.asarray(port, np.int64)
    return way


def _held(support: Support, row: int, wide: bool) -> Held:
    if wide:
        return "wide_host"
    if support.clients[row] == 1:
        return "one_client_few_days" if support.days[row] < LEAST_DAYS_OF_ONE else ""
    return "few_days" if support.days[row] < LEAST_DAYS else ""


def _distinct(at: NDArray[np.intp], actor: Int, rows: int) -> NDArray[np.int64]:
    pairs = np.unique(at.astype(np.int64) << 32 | actor.astype(np.int64))
    return np.bincount(pairs >> 32, minlength=rows).astype(np.int64)
