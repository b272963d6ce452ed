"""Groups of hosts that play one role, found from whom they call and who calls them.

A channel of a host is (direction, protocol, port). Two hosts are alike as far as the peers of their common
channels overlap:

    likeness = sum over common channels of w * overlap  /  sum over the channels of either of w
    overlap  = IDF-weighted intersection of peers / the smaller of the two sets
    IDF of a peer on a channel = ln((n + 1) / hosts that have it), n hosts in all
    w        = (mean IDF of the peers) ** `SHARPNESS`, the mean of both hosts

The smaller set counts, since callers that stick to one server for days share few peers within a role, and
none with another. A host that is called from outside of the fleet is never like one that is not. Average
linkage over 1 - likeness is cut at `CUT`; then peers are replaced by their groups and all is repeated, until
hosts of one role have the same peers. See ADR 0020 for what else was tried.

It does not look at names or addresses, and has no randomness: the same tuples give the same groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aegisflux.domain.segment.flows import Int
from aegisflux.domain.segment.tuples import Tuples, first_rows

CUT: Final = 0.54
PEER_CUT: Final = 0.6  # coarser while peers are still apart
SHARPNESS: Final = 0.75
ROUNDS: Final = 5
LEAST_DAYS: Final = 2  # a tuple seen on fewer says nothing of a role
OUT_OF_REACH: Final = 1e9  # so far that no average with it falls below a cut
OUTSIDE: Final = -1
EVERYONE: Final = -2

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """One row each (host, channel, peer), sorted, none twice; a peer is an actor, or a group of actors.

    days: a bit for each day on which it was seen
    """

    host: Int
    channel: NDArray[np.int64]
    peer: NDArray[np.int64]
    days: NDArray[np.uint64]
    hosts: int

    def where(self, chosen: NDArray[np.bool_]) -> "Features":
        """Some of the rows."""
        return Features(
            self.host[chosen], self.channel[chosen], self.peer[chosen], self.days[chosen], self.hosts
        )


def features_of(
    tuples: Tuples, hosts: int, server_is_core: NDArray[np.bool_], client_is_core: NDArray[np.bool_]
) -> Features:
    """What a host does and what is done to it. Peers that are no hosts are one, `OUTSIDE`.

    Of core services the touched side is left out, and for the core service itself its many peers are one.
    """
    ends = (
        (tuples.client, tuples.server, client_is_core, server_is_core, 0),
        (tuples.server, tuples.client, server_is_core, client_is_core, 1),
    )
    host, peer, channel, days = [], [], [], []
    for own, other, own_is_core, other_is_core, direction in ends:
        rows = (own < hosts) & ~other_is_core
        host.append(own[rows])
        peer.append(
            np.where(own_is_core[rows], EVERYONE, np.where(other[rows] < hosts, other[rows], OUTSIDE))
        )
        channel.append(direction << 24 | tuples.service[rows])
        days.append(tuples.days[rows])
    return _distinct(
        np.concatenate(host), np.concatenate(channel), np.concatenate(peer), np.concatenate(days), hosts
    )


def group(features: Features, labels: Int | None = None, cut: float = CUT, rounds: int = ROUNDS) -> Int:
    """The group of each host, numbered from 0 by their first host.

    labels: what is known of a host: hosts with one label are one group, hosts with different labels never
    are. -1: nothing is known.
    """
    known = np.full(features.hosts, -1) if labels is None else labels
    units = _units(known)
    merged = _moved(features, units)
    kept_apart = known[np.unique(units, return_index=True)[1]] if features.hosts else known
    groups = np.arange(merged.hosts, dtype=np.int32)
    for turn in range(rounds) if merged.hosts > 1 else ():
        tree = linkage_of(_regrouped(merged, groups), kept_apart)
        groups = cut_at(tree, PEER_CUT if turn + 1 < rounds else cut)
    return _numbered(groups[units])


def _units(labels: NDArray[np.int_] | Int) -> Int:
    """One number for all hosts of a label, and one for each host without, by their first host."""
    own = np.arange(len(labels))
    return _numbered(np.where(labels < 0, own, len(labels) + labels))


def _moved(features: Features, units: Int) -> Features:
    """The same of units instead of hosts."""
    count = int(units.max()) + 1 if len(units) else 0
    peer = np.where(features.peer >= 0, units[np.maximum(features.peer, 0)], features.peer)
    return _distinct(units[features.host], features.channel, peer, features.days, count)


def linkage_of(features: Features, labels: Int | None = None) -> Float:
    """The average linkage tree over 1 - likeness; hosts of different labels are out of each other's reach."""
    # Only who groups imports scipy: every service imports this module, and it costs 0.6 s and 40 MB.
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = 1 - likeness(features)
    if labels is not None:
        apart = (labels[:, None] >= 0) & (labels[None, :] >= 0)
        np.fill_diagonal(apart, False)
        distance[apart] = OUT_OF_REACH
    tree: Float = linkage(squareform(distance, checks=False), "average")
    return tree


def cut_at(tree: Float, cut: float) -> Int:
    """Groups of a tree, numbered from 0 by their first host."""
    from scipy.cluster.hierarchy import fcluster

    return _numbered(fcluster(tree, cut, "distance"))


def _numbered(labels: NDArray[Any]) -> Int:
    """The same labels, from 0, by their first occurrence."""
    _, first, at = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[at].astype(np.int32)


def likeness(features: Features) -> Float:
    """Of each two hosts, 0 to 1; of a host without channels to another 0, to itself 1."""
    n = features.hosts
    common, shared, own = np.zeros((n, n)), np.zeros((n, n)), np.zeros(n)
    for hosts, weight, overlap in _channels(features):
        square = np.ix_(hosts, hosts)
        both = (weight[:, None] + weight[None, :]) / 2
        common[square] += both * overlap
        shared[square] += both
        own[hosts] += weight
    either = own[:, None] + own[None, :] - shared
    found = np.divide(common, either, out=np.zeros((n, n)), where=either > 0)
    exposed = _exposed(features)
    found[exposed[:, None] != exposed[None, :]] = 0.0
    np.fill_diagonal(found, 1.0)
    return np.clip(found, 0.0, 1.0, out=found)


def _channels(features: Features) -> Iterator[tuple[Int, Float, Float]]:
    """Each channel: its hosts, its weight for each, and how far their peers overlap."""
    order = np.argsort(features.channel, kind="stable")
    _, first = np.unique(features.channel[order], return_index=True)
    for rows in np.split(order, first[1:]) if len(order) else ():
        hosts, row = np.unique(features.host[rows], return_inverse=True)
        peers, column = np.unique(features.peer[rows], return_inverse=True)
        has = np.zeros((len(hosts), len(peers)))
        has[row, column] = 1.0
        weighted = has * np.log((features.hosts + 1) / has.sum(axis=0))
        mass = weighted.sum(axis=1)
        overlap = (weighted @ has.T) / np.minimum(mass[:, None], mass[None, :])
        overlap = (overlap + overlap.T) / 2  # the sum in another order differs in the last bit
        yield hosts, (mass / has.sum(axis=1)) ** SHARPNESS, overlap


def _exposed(features: Features) -> NDArray[np.bool_]:
    """Which hosts are called from outside of the fleet."""
    found = np.zeros(features.hosts, bool)
    found[features.host[(features.peer == OUTSIDE) & (features.channel >> 24 == 1)]] = True
    return found


def _distinct(
    host: Int, channel: NDArray[np.int64], peer: NDArray[np.int64], days: NDArray[np.uint64], hosts: int
) -> Features:
    if not len(host):
        return Features(host, channel, peer, days, hosts)
    order = np.lexsort((peer, channel, host))
    host, channel, peer = host[order], channel[order], peer[order]
    at = first_rows(host, channel, peer)
    return Features(host[at], channel[at], peer[at], np.bitwise_or.reduceat(days[order], at), hosts)


def _regrouped(features: Features, groups: Int) -> Features:
    """Peers become their groups; what was seen on one day alone says nothing of a role."""
    inside = features.peer >= 0
    peer = np.where(inside, groups[np.where(inside, features.peer, 0)], features.peer)
    found = _distinct(features.host, features.channel, peer, features.days, features.hosts)
    return _with_itself(found.where(np.bitwise_count(found.days) >= LEAST_DAYS), groups)


def _with_itself(features: Features, groups: Int) -> Features:
    """A member of a cluster never calls itself, but is one of its own: so all members have the same peers."""
    service = features.channel & ((1 << 24) - 1)
    key = features.host.astype(np.int64) << 24 | service
    outgoing = features.channel >> 24 == 0
    both = np.intersect1d(key[outgoing], key[~outgoing])
    member, port = (both >> 24).astype(np.int32), both & ((1 << 24) - 1)
    own = groups[member].astype(np.int64)
    return _distinct(
        np.concatenate((features.host, member, member)),
        np.concatenate((features.channel, port, port | 1 << 24)),
        np.concatenate((features.peer, own, own)),
        np.concatenate((features.days, np.zeros(2 * len(own), np.uint64))),
        features.hosts,
    )


def group_servers_outside(tuples: Tuples, groups: Int, hosts: int) -> Int:
    """The same, and groups of servers that are no hosts: alike are those that the same groups call."""
    rows = (tuples.server >= hosts) & (tuples.client < hosts)
    servers, number = np.unique(tuples.server[rows], return_inverse=True)
    found = groups.copy()
    if not len(servers):
        return found
    channel = tuples.service[rows]
    peer = groups[tuples.client[rows]].astype(np.int64)
    features = _distinct(number.astype(np.int32), channel, peer, tuples.days[rows], len(servers))
    own = np.zeros(len(servers), np.int32) if len(servers) == 1 else cut_at(linkage_of(features), CUT)
    found[servers] = int(groups.max()) + 1 + own
    return found


def group_clients_outside(tuples: Tuples, groups: Int, hosts: int) -> Int:
    """The same, and groups of clients that are no hosts: a group goes exactly the same ways in these tuples.

    So a rule for such a group lets in no address that did not call. Servers outside that call are a group
    apart from those that do not.
    """
    rows = tuples.client >= hosts
    ways: dict[int, set[int]] = {
        actor: set() for actor in (np.nonzero(groups[hosts:] >= 0)[0] + hosts).tolist()
    }
    way = groups[tuples.server[rows]].astype(np.int64) << 24 | tuples.service[rows]
    for client, one in zip(tuples.client[rows].tolist(), way.tolist(), strict=True):
        ways.setdefault(client, set()).add(one)
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    found, first = groups.copy(), int(groups[:hosts].max(initial=-1)) + 1
    for actor in sorted(ways):
        alike = int(groups[actor]), tuple(sorted(ways[actor]))
        found[actor] = first + numbers.setdefault(alike, len(numbers))
    return found
