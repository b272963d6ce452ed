"""Rules between groups, each with the support it has, and what was held back, with the reason.

A rule lets every member of one group call every member of another on a port. It is learned when two clients
or more did so on two days or more. What one client alone did needs more days, and is not learned from a host
that calls many more groups than others do, or many ports that nobody else calls: so looks an intruder who
wants to be learned.

Anyone may call what `PUBLIC_CLIENTS` addresses outside of the fleet called. Of fewer the exact addresses are
learned that came back (see `grouping`); what others of them called is held, and never becomes "anyone".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from aegisflux.domain.segment.core import CoreService
from aegisflux.domain.segment.flows import HOURS, Flows, Int, tuple_keys
from aegisflux.domain.segment.tuples import Tuples, first_rows

ANYONE: Final = -1  # outside of the fleet
FLEET: Final = -2  # every host of it
LEAST_DAYS: Final = 2
LEAST_DAYS_OF_ONE: Final = 3
HALF_A_DAY: Final = HOURS // 2
PUBLIC_CLIENTS: Final = 20  # so many addresses that belong to nobody we know: anyone may call
WIDE_QUANTILE: Final = 0.95
WIDE_FACTOR: Final = 3.0
WIDE_MORE: Final = 5
PROBED_PORTS: Final = 3  # of one host, called by nobody else; a bastion or a scraper has one or two
PROBED_HOSTS: Final = 5  # so many, and half of all that it calls
PROBED_GROUPS: Final = 3  # of which they are; a controller calls many hosts of a few

Kind = Literal["learned", "core", "public", "outside"]
Held = Literal["", "few_days", "one_client_few_days", "wide_host", "few_outside"]


class Rule(Struct, frozen=True, kw_only=True):
    """`client` and `server` are groups, ANYONE or FLEET; what is counted is what was seen.

    days: on which it was seen; a burst over midnight is one
    kind: `outside`: its clients are not of the fleet, and too few to be anyone; exact addresses, or held
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


def hours_of(flows: Flows, tuples: Tuples) -> Int:
    """When each tuple of these flows was first and last seen, in hours of the window: two rows."""
    at = np.searchsorted(tuples.key, tuple_keys(flows.client, flows.server, flows.proto, flows.port))
    found = np.zeros((2, len(tuples)), np.int32)
    found[0] = np.iinfo(np.int32).max
    np.minimum.at(found[0], at, flows.hour)
    np.maximum.at(found[1], at, flows.hour)
    return found


def days_apart(days: NDArray[np.uint64], first: Int, last: Int) -> NDArray[np.int64]:
    """How many of these days count: a further one needs a day more between first and last, give or take half
    of one, since who comes daily does not come to the hour, and a burst over midnight is one occasion."""
    lasted = 1 + (last.astype(np.int64) - first + HALF_A_DAY) // HOURS
    found: NDArray[np.int64] = np.minimum(np.bitwise_count(days), lasted)
    return found


def public_ways(tuples: Tuples, groups: Int, hosts: int, core: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tuples from outside go where so many do that it is for anyone; rows `core` are left out."""
    rows = ~core & (tuples.client >= hosts) & (tuples.server < hosts)
    way = groups[tuples.server[rows]].astype(np.int64) << 24 | tuples.service[rows]
    ways, at = np.unique(way, return_inverse=True)
    found = np.zeros(len(tuples), bool)
    found[rows] = (_distinct(at, tuples.client[rows], len(ways)) >= PUBLIC_CLIENTS)[at]
    return found


def coming_back(tuples: Tuples, groups: Int, hosts: int, hours: Int) -> NDArray[np.bool_]:
    """Which tuples are of an address outside that goes where they go on `LEAST_DAYS` days: to that group."""
    each = groups.copy()
    each[hosts:] = int(groups.max(initial=-1)) + 1 + np.arange(len(groups) - hosts)
    support = support_of(tuples, each, np.zeros(len(tuples), bool), hours)
    return (tuples.client >= hosts) & (support.days[support.at] >= LEAST_DAYS)


def support_of(tuples: Tuples, groups: Int, anyone: NDArray[np.bool_], hours: Int) -> Support:
    """What each rule that could be has for it; `groups` gives the group of every actor.

    anyone: which tuples are ANYONE's, whoever the client is; hours: of each tuple, see `hours_of`
    """
    client = np.where(anyone, ANYONE, groups[tuples.client]).astype(np.int64)
    server = groups[tuples.server].astype(np.int64)
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
        days_apart(
            np.bitwise_or.reduceat(tuples.days[order], first),
            np.minimum.reduceat(hours[0, order], first),
            np.maximum.reduceat(hours[1, order], first),
        ),
        np.bincount(at, tuples.records, len(first)).astype(np.int64),
        np.bincount(at, tuples.connections, len(first)).astype(np.int64),
        at,
    )


def wide_hosts(tuples: Tuples, groups: Int, hosts: int, core: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Hosts that call many more groups than nearly all others do, or probe; rows `core` are left out.

    In a fleet of few hosts one of them raises what is usual, and may be a gateway when it calls many groups;
    there only a host that probes is found.
    """
    rows = ~core & (tuples.client < hosts) & (groups[tuples.server] >= 0)
    pairs = np.unique(
        tuples.client[rows].astype(np.int64) << 32 | groups[tuples.server[rows]].astype(np.int64)
    )
    called = np.bincount(pairs >> 32, minlength=hosts)
    usual = float(np.quantile(called, WIDE_QUANTILE)) if hosts else 0.0
    inside = tuples.where(~core & (tuples.client < hosts) & (tuples.server < hosts))
    return np.nonzero((called > WIDE_FACTOR * usual + WIDE_MORE) | _probing(inside, groups, hosts))[0]


def _probing(tuples: Tuples, groups: Int, hosts: int) -> NDArray[np.bool_]:
    """Which hosts call many ports of many hosts that nobody does who does not do so too.

    Two of one group that do are a role, whatever it is for: they confirm each other.
    """
    every = np.ones(len(tuples), bool)
    some = np.nonzero(_spread(tuples, groups, hosts, every))[0]
    found = _spread(tuples, groups, hosts, ~called_by_others(tuples, some))
    role = groups[:hosts]
    together = np.bincount(role[found], minlength=int(role.max(initial=0)) + 1)
    return found & (together[role] < 2)


def _spread(tuples: Tuples, groups: Int, hosts: int, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which hosts call many ports of many hosts, by the chosen tuples, and of half of all that they call."""
    pair = tuples.client.astype(np.int64) << 32 | tuples.server
    pairs, ports = np.unique(pair[chosen], return_counts=True)
    probed = pairs[ports >= PROBED_PORTS]
    client, server = probed >> 32, probed & ((1 << 32) - 1)
    servers = np.bincount(client, minlength=hosts)
    peers = np.bincount(np.unique(pair) >> 32, minlength=hosts)
    roles = np.bincount(np.unique(client << 32 | groups[server]) >> 32, minlength=hosts)
    return (servers >= PROBED_HOSTS) & (2 * servers >= peers) & (roles >= PROBED_GROUPS)


def called_by_others(tuples: Tuples, wide: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which tuples go where a host that is not wide goes too: to the same server and port."""
    others = ~np.isin(tuples.client, wide)
    where = tuples.server.astype(np.int64) << 24 | tuples.service
    return np.isin(where, where[others])


def gone_by_wide_hosts_alone(tuples: Tuples, support: Support, wide: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Of each row of the support, whether no other host of the client group goes that way."""
    others: NDArray[np.int_] = np.bincount(support.at, ~np.isin(tuples.client, wide), len(support.client))
    return others < 1


def rules_of(support: Support, wide: NDArray[np.bool_], inside: int) -> tuple[Rule, ...]:
    """A rule for each row of the support, proposed or held; groups below `inside` are the fleet's.

    wide: whether only wide hosts go that way
    """
    return tuple(
        Rule(
            client=int(support.client[row]),
            server=int(support.server[row]),
            proto=int(support.proto[row]),
            port=int(support.port[row]),
            clients=int(support.clients[row]),
            servers=int(support.servers[row]),
            days=int(support.days[row]),
            records=int(support.records[row]),
            connections=int(support.connections[row]),
            kind=_kind(support, row, inside),
            held=_held(support, row, bool(wide[row])),
        )
        for row in range(len(support.client))
    )


def core_rules(core: Sequence[CoreService], groups: Int, tuples: Tuples, hosts: int) -> tuple[Rule, ...]:
    """What is lifted: every host may call these, or be called by them. Who is in a group with one is one."""
    found = []
    for one in core:
        ends = tuples.server, tuples.client
        own, other = ends if one.side == "server" else ends[::-1]
        for of in np.unique(groups[list(one.actors)]).tolist():
            rows = (groups[own] == of) & (tuples.proto == one.proto) & (tuples.port == one.port)
            some = tuples.where(rows & (other < hosts))
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


def _kind(support: Support, row: int, inside: int) -> Kind:
    if support.client[row] == ANYONE and support.clients[row] >= PUBLIC_CLIENTS:
        return "public"
    return "outside" if not 0 <= support.client[row] < inside else "learned"


def _held(support: Support, row: int, wide: bool) -> Held:
    if wide:
        return "wide_host"
    if support.client[row] == ANYONE and support.clients[row] < PUBLIC_CLIENTS:
        return "few_outside"
    if support.clients[row] == 1:
        return "one_client_few_days" if support.days[row] < LEAST_DAYS_OF_ONE else ""
    return "few_days" if support.days[row] < LEAST_DAYS else ""


def _distinct(at: NDArray[np.intp], actor: Int, rows: int) -> NDArray[np.int64]:
    pairs = np.unique(at.astype(np.int64) << 32 | actor.astype(np.int64))
    return np.bincount(pairs >> 32, minlength=rows).astype(np.int64)
