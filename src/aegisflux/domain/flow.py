"""Flows as a verdict sees them (contracts §1.2)."""

from typing import Final, Literal

from msgspec import Struct

from aegisflux.domain.net import Address, Cidr

Direction = Literal["egress", "ingress"]


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
    cgroup:       path of the socket's cgroup below the v2 root; without one no rule that names a cgroup holds
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


class Own(Struct, frozen=True):
    """What belongs to a host, or to one network namespace: addresses of its devices, and prefixes that its
    local routes deliver to itself."""

    addresses: frozenset[Address] = frozenset()
    prefixes: tuple[Cidr, ...] = ()

    def covers(self, address: Address) -> bool:
        """Whether a packet to this address stays there."""
        return address in self.addresses or any(prefix.covers(address) for prefix in self.prefixes)

    def joined(self, other: "Own") -> "Own":
        """What belongs to either."""
        prefixes = tuple(sorted({*self.prefixes, *other.prefixes}))
        return Own(self.addresses | other.addresses, prefixes)


class Host(Struct, frozen=True):
    """What a verdict needs to know of the host: what is its own, its failsafe list, its clock.

    addresses: of its devices
    prefixes:  of its local routes (`ip route add local ... dev lo`)
    """

    addresses: frozenset[Address] = frozenset()
    failsafe: tuple[FailsafeRule, ...] = DEFAULT_FAILSAFE
    expired: bool = False
    prefixes: tuple[Cidr, ...] = ()

    def owns(self, address: Address) -> bool:
        """Whether a packet to this address stays on the host."""
        return Own(self.addresses, self.prefixes).covers(address)
