"""Mined rules as one snapshot for each group: its calls as edges, who may call it as ingress.

A rule becomes an entry on both sides, so that neither end has to trust the other. ANYONE is every address but
the fleet's own. A rule of a group with itself is in both lists of its snapshot.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from aegisflux.domain.net import TCP, UDP, Address, Cidr
from aegisflux.domain.segment.cidrs import all_but, covering
from aegisflux.domain.segment.mine import Mined
from aegisflux.domain.segment.rules import ANYONE, FLEET
from aegisflux.domain.snapshot import Edge, IngressRule, MapSnapshot, Proto, canonical

PROTOS: Final[dict[int, Proto]] = {TCP: "tcp", UDP: "udp"}


class Target(Struct, frozen=True):
    """Which service a group's snapshot is for, and which version of it."""

    service_id: int
    version: int
    ttl_seconds: int


class Places:
    """Where the actors of a result are: prefixes of each group, of the fleet, and of all else."""

    def __init__(self, mined: Mined, addresses: Sequence[Iterable[Address]], extra: int = 0) -> None:
        members: dict[int, list[Address]] = defaultdict(list)
        for actor, own in enumerate(addresses):
            members[int(mined.groups[actor])] += own
            if actor < mined.hosts:
                members[FLEET] += own
        fleet = members.pop(FLEET, [])
        members.pop(ANYONE, None)
        others = set(fleet)
        self._of = {
            group: covering(own, others - set(own), extra) if extra else covering(own)
            for group, own in members.items()
        }
        self._of[FLEET] = covering(fleet)
        self._of[ANYONE] = all_but(fleet)

    def of(self, group: int) -> tuple[Cidr, ...]:
        """The prefixes of a group, of FLEET or of ANYONE."""
        return self._of.get(group, ())


def snapshot_of(mined: Mined, places: Places, group: int, target: Target) -> MapSnapshot:
    """The snapshot of one group by the rules that are proposed.

    What is neither TCP nor UDP no entry can say exactly: it is left out, and `unsayable` counts it.
    """
    edges, ingress = [], []
    for rule in mined.proposed:
        proto = PROTOS.get(rule.proto)
        if proto is None:
            continue
        if rule.client in (group, FLEET):
            edges += [Edge(str(cidr), proto, rule.port) for cidr in places.of(rule.server)]
        if rule.server in (group, FLEET):
            ingress += [IngressRule(str(cidr), proto, rule.port) for cidr in places.of(rule.client)]
    return canonical(
        MapSnapshot(
            version=target.version,
            service_id=target.service_id,
            ttl_seconds=target.ttl_seconds,
            edges=tuple(edges),
            ingress=tuple(ingress),
        )
    )


def unsayable(mined: Mined) -> int:
    """How many proposed rules are neither TCP nor UDP."""
    return sum(rule.proto not in PROTOS for rule in mined.proposed)
