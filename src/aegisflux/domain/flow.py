"""Flows as a verdict sees them, and the table that says who initiated a UDP flow (contracts §1.2)."""

from typing import Final, Literal, NamedTuple

from msgspec import Struct

from aegisflux.domain.net import Address, Cidr

Direction = Literal["egress", "ingress"]

UDP_ONE_WAY_NS: Final = 30 * 1_000_000_000
UDP_BOTH_WAYS_NS: Final = 180 * 1_000_000_000


class Flow(Struct, frozen=True):
    """An initiation: `direction` is egress when the local process began it.

    proto:        IP protocol number
    port:         the port that the initiator addresses (remote for egress, local for ingress)
    source_port:  the initiator's own port
    icmp_type, hop_limit: of ICMP and ICMPv6 packets
    local:        the packet stays on the host (ifindex 1, or both ends its own)
    malformed:    headers that cannot be judged
    live:         the flow existed when the snapshot came into force, and was not refused then
    from_agent:   the socket belongs to the agent's own cgroup
    cgroup:       path of the socket's cgroup below the v2 root, where a failsafe is narrowed to one
    """

    direction: Direction
    proto: int
    peer: Address
    port: int | None = None
    source_port: int | None = None
    icmp_type: int | None = None
    hop_limit: int | None = None
    local: bool = False
    malformed: bool = False
    live: bool = False
    from_agent: bool = False
    cgroup: str | None = None


class FailsafeRule(Struct, frozen=True):
    """What no snapshot can deny on this host; `cgroup` narrows it to sockets below that path."""

    direction: Direction
    proto: Literal["tcp", "udp", "any"]
    port: int
    cidr: Cidr | None = None
    cgroup: str | None = None


DEFAULT_FAILSAFE: Final = (FailsafeRule("ingress", "tcp", 22),)


class Host(Struct, frozen=True):
    """What a verdict needs to know of the host: its addresses, its failsafe list, its clock."""

    addresses: frozenset[Address] = frozenset()
    failsafe: tuple[FailsafeRule, ...] = DEFAULT_FAILSAFE
    expired: bool = False


class UdpKey(NamedTuple):
    """One UDP flow of one service."""

    local_port: int
    peer: Address
    peer_port: int


class UdpFlow(NamedTuple):
    """Who began it, when it last saw a datagram (ns), and whether it saw both directions."""

    initiator: Direction
    last_ns: int
    both: bool


def udp_initiator(known: UdpFlow | None, datagram: Direction, now_ns: int) -> tuple[Direction, UdpFlow]:
    """Who initiated the flow of this datagram, and the entry to keep if the datagram passes.

    A datagram of a live flow follows its initiator; any other is an initiation by its sender.
    """
    if known is None or not live(known, now_ns):
        return datagram, UdpFlow(datagram, now_ns, False)
    return known.initiator, UdpFlow(known.initiator, now_ns, known.both or datagram != known.initiator)


def live(flow: UdpFlow, now_ns: int) -> bool:
    return now_ns - flow.last_ns <= (UDP_BOTH_WAYS_NS if flow.both else UDP_ONE_WAY_NS)
