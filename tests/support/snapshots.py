"""Hypothesis strategies and a seeded generator of snapshots and probes with overlapping prefixes."""

import random

from hypothesis import strategies as st

from aegisflux.domain.embedded import with_forms
from aegisflux.domain.flow import Flow
from aegisflux.domain.net import ICMP, ICMPV6, TCP, UDP, Address, Cidr, masked
from aegisflux.domain.snapshot import Entry, Ruleset

V4_BASES = (0x0A000000, 0x0A010000, 0x0A010200, 0xC0000200, 0x00000000, 0xFFFFFF00)
V6_BASES = (0x20010DB8 << 96, (0x20010DB8 << 96) | (1 << 64), 0xFC << 120, (1 << 128) - 256)
PORTS = (0, 1, 22, 53, 443, 5432, 65535)
PROBE_PROTOS = (TCP, UDP, 132, ICMP)


def random_address(rng: random.Random) -> Address:
    if rng.random() < 0.5:
        return Address(4, (rng.choice(V4_BASES) + rng.getrandbits(rng.choice((0, 2, 8, 16)))) & 0xFFFFFFFF)
    return Address(6, (rng.choice(V6_BASES) + rng.getrandbits(rng.choice((1, 8, 70)))) & ((1 << 128) - 1))


def random_cidr(rng: random.Random) -> Cidr:
    address = random_address(rng)
    top = address.bits
    plen = (
        rng.choice((0, 8, 16, 23, 24, 28, 31, 32))
        if top == 32
        else rng.choice((0, 7, 32, 64, 100, 120, 127, 128))
    )
    return masked(address.family, address.value, plen)


def random_entry(rng: random.Random, direction: str = "both") -> Entry:
    return Entry(random_cidr(rng), rng.choice(("tcp", "udp", "any")), rng.choice(PORTS), direction)  # type: ignore[arg-type]


def random_ruleset(rng: random.Random, most: int = 8) -> Ruleset:
    def some(chance: float, with_direction: bool = False) -> tuple[Entry, ...]:
        if rng.random() > chance:
            return ()
        ways = ("egress", "ingress", "both") if with_direction else ("both",)
        return tuple(sorted({random_entry(rng, rng.choice(ways)) for _ in range(rng.randint(1, most))}))

    return Ruleset(
        service_id=rng.randint(0, 9999),
        version=rng.randint(1, 99),
        edges=some(0.8),
        peers=some(0.4),
        ingress=None if rng.random() < 0.4 else some(0.8),
        deny=some(0.4, True),
        mode=rng.choice(("enforce", "enforce", "observe")),
        on_expiry=rng.choice(("open", "closed")),
        established=rng.choice(("keep", "cut")),
    )


def random_flow(rng: random.Random, rules: Ruleset) -> Flow:
    """A probe, mostly near the edges of the snapshot's prefixes."""
    entries = [*rules.edges, *rules.peers, *(rules.ingress or ()), *with_forms(rules.deny)]
    peer = random_address(rng)
    if entries and rng.random() < 0.8:
        cidr = rng.choice(entries).cidr
        value = rng.choice(
            (cidr.value, cidr.last, cidr.value - 1, cidr.last + 1, rng.randint(cidr.value, cidr.last))
        )
        peer = Address(cidr.family, value & ((1 << cidr.bits) - 1))
    if peer.family == 6 and peer.value >> 32 == 0xFFFF:
        peer = Address(4, peer.value & 0xFFFFFFFF)
    proto = rng.choice(PROBE_PROTOS)
    if proto == ICMP:
        return Flow(
            rng.choice(("egress", "ingress")),
            ICMP if peer.family == 4 else ICMPV6,
            peer,
            icmp_type=8 if peer.family == 4 else 128,
        )
    port = rng.choice((*PORTS[1:], 444)) if proto in (TCP, UDP) else None
    odd = rng.random()
    return Flow(
        rng.choice(("egress", "ingress")),
        proto,
        peer,
        port,
        source_port=40_000,
        malformed=odd < 0.03 and proto in (TCP, UDP),
        local=odd > 0.98,
    )


seeds = st.integers(0, 2**48)
