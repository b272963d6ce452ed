"""Who has a connection now: live sockets of the calling thread's namespace, as the initiations behind them.

Who began a TCP connection is told by the listeners: one whose own port is listened on was begun by its peer.
A connected UDP socket was begun by whoever connected it.
"""

import socket
from collections.abc import Collection, Iterator
from typing import Final

from aegisflux.adapters.datapath.bpf import diag
from aegisflux.domain.flow import Flow, Own
from aegisflux.domain.net import TCP, UDP, address_of

LISTENING: Final = 1 << 10
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def initiations(cgroups: Collection[int], own: Own) -> list[Flow]:
    """Of sockets of these cgroups (by id); `local` where the peer is an address of the namespace's own."""
    ports = {port for port, _, _, _ in _told(TCP, LISTENING)}
    found = []
    for proto in (TCP, UDP):
        for local_port, peer_port, peer, cgroup in _told(proto, diag.CONNECTED):
            if cgroup not in cgroups:
                continue
            address = address_of(peer)
            local = own.covers(address)
            if proto == TCP and local_port in ports:
                found.append(Flow("ingress", proto, address, local_port, peer_port, local=local))
            else:
                found.append(Flow("egress", proto, address, peer_port, local_port, local=local))
    return found


def _told(proto: int, states: int) -> Iterator[tuple[int, int, bytes, int]]:
    for family in FAMILIES:
        ask = diag.ASK.pack(family, proto, 0, 0, states, bytes(48))
        for body in diag.answers(diag.BY_FAMILY, ask, diag.DUMP):
            parts = dict(diag.attributes(body[diag.TOLD.size :]))
            cgroup = int.from_bytes(parts.get(diag.CGROUP_ID, b""), "little")
            local_port, peer_port, _, peer = diag.IDENTITY.unpack_from(diag.TOLD.unpack_from(body)[4])
            yield local_port, peer_port, peer if family == socket.AF_INET6 else peer[:4], cgroup
