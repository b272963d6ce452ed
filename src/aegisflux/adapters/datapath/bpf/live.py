"""Who has a connection now: live sockets of the calling thread's namespace, as the initiations behind them.

The programs record who began a TCP connection. Where they did not (it is older than they are), the listeners
decide: one whose own port is listened on was begun by its peer. A connected UDP socket was begun by the
process that connected it. Addresses are those that the socket knows, as for a verdict (ADR 0026).
"""

import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from msgspec.structs import replace

from aegisflux.adapters.datapath.bpf import diag
from aegisflux.domain.flow import Flow, Own
from aegisflux.domain.net import TCP, UDP, address_of

LISTENING: Final = 1 << 10
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
BEGUN_BY_PEER: Final = 2
"""I_PEER of bpf/aegis_maps.h."""


def initiations(cgroups: Mapping[int, str], own: Own, states: int) -> list[Flow]:
    """Return the initiations behind sockets of these cgroups (path by id), `local` where the peer is an
    address of the namespace's own; `states` is the map of socket storage."""
    listened = set(_listening())
    return [
        replace(_initiation(found, listened, own), cgroup=cgroups[found.cgroup_id])
        for proto in (TCP, UDP)
        for found in diag.sockets(proto, states)
        if found.cgroup_id in cgroups
    ]


def _initiation(found: diag.Found, listened: Collection[int], own: Own) -> Flow:
    local_port, peer_port, peer = found.ends()
    address = address_of(peer)
    local = own.covers(address)
    by_peer = found.initiator == BEGUN_BY_PEER if found.initiator else local_port in listened
    if found.proto == TCP and by_peer:
        return Flow("ingress", found.proto, address, local_port, peer_port, local=local)
    return Flow("egress", found.proto, address, peer_port, local_port, local=local)


def _listening() -> Iterator[int]:
    """The ports of TCP on which a socket listens."""
    for family in FAMILIES:
        ask = diag.ASK.pack(family, TCP, 0, 0, LISTENING, bytes(48))
        for body in diag.answers(diag.BY_FAMILY, ask, diag.DUMP):
            yield diag.IDENTITY.unpack_from(diag.TOLD.unpack_from(body)[4])[0]
