"""Entries of a size, seeded: nine hosts for each prefix, over an address space or inside a part of it."""

import random
from typing import Any, Final, NamedTuple

from msgspec import Struct

from aegisflux.domain.flow import Flow
from aegisflux.domain.net import TCP, Address, Cidr, cidr_text, masked
from aegisflux.domain.snapshot import Entry, Ruleset
from aegisflux.domain.tables import EGRESS, Tables, find

PORTS: Final = (22, 53, 80, 443, 5432, 6379, 8080, 9092)
EVERYWHERE: Final = Cidr(4, 0, 0)
CLUSTER: Final = Cidr(4, 10 << 24, 8)
EVERYWHERE_V6: Final = Cidr(6, 0x2 << 124, 4)


class Shape(NamedTuple):
    """`space` holds all of it; prefixes have `lengths`; `hosts` is the part of them that are hosts."""

    space: Cidr
    lengths: tuple[int, ...]
    hosts: float


RANDOM: Final = Shape(EVERYWHERE, (20, 22, 24, 25, 26, 27, 28), 0.9)
CLUSTERED: Final = Shape(CLUSTER, (20, 22, 24, 25, 26, 27, 28), 0.9)
PREFIXES: Final = Shape(EVERYWHERE, (20, 22, 24, 25, 26, 27, 28), 0.0)
RANDOM_V6: Final = Shape(EVERYWHERE_V6, (40, 48, 56, 60, 64), 0.9)


class Entries(Struct, frozen=True):
    """Disjoint prefixes, each with a port."""

    hosts: tuple[Entry, ...]
    prefixes: tuple[Entry, ...]
    space: Cidr

    def every(self) -> tuple[Entry, ...]:
        return self.hosts + self.prefixes

    def ruleset(self, service_id: int = 1) -> Ruleset:
        """Edges only, in force, live flows kept."""
        return Ruleset(service_id, 1, self.every(), (), None, (), "enforce", "open", "keep")

    def body(self, service_id: int = 1, version: int = 1, ttl_seconds: int = 3600) -> dict[str, Any]:
        """The same as a MapSnapshot to post."""
        edges = [{"dst_cidr": cidr_text(*e.cidr), "proto": e.proto, "port": e.port} for e in self.every()]
        return {"version": version, "service_id": service_id, "ttl_seconds": ttl_seconds, "edges": edges}


def entries(count: int, shape: Shape, seed: int = 1) -> Entries:
    """`count` entries that do not overlap; those of a smaller count are drawn alike."""
    rng = random.Random(seed)
    bits, wanted = shape.space.bits, round(count * (1 - shape.hosts))
    prefixes: set[Cidr] = set()
    for length in sorted(rng.choices(shape.lengths, k=wanted)):
        cidr = None
        while cidr is None or _covering(prefixes, cidr, shape.lengths) is not None:
            cidr = masked(shape.space.family, _inside(rng, shape.space), length)
        prefixes.add(cidr)
    hosts: set[Cidr] = set()
    while len(hosts) < count - wanted:
        host = Cidr(shape.space.family, _inside(rng, shape.space), bits)
        if _covering(prefixes, host, shape.lengths) is None:
            hosts.add(host)

    def ported(cidrs: set[Cidr]) -> tuple[Entry, ...]:
        return tuple(Entry(cidr, "tcp", rng.choice(PORTS)) for cidr in sorted(cidrs))

    return Entries(ported(hosts), ported(prefixes), shape.space)


def hit(rng: random.Random, among: tuple[Entry, ...]) -> Flow:
    """A flow that one of these allows."""
    entry = rng.choice(among)
    value = rng.randint(entry.cidr.value, entry.cidr.last)
    return Flow("egress", TCP, Address(entry.cidr.family, value), entry.port, source_port=40_000)


def miss(rng: random.Random, tables: Tables, space: Cidr) -> Flow:
    """A flow to an address of the same space that no entry covers."""
    while True:
        peer, port = Address(space.family, _inside(rng, space)), rng.choice(PORTS)
        if find(tables, EGRESS, TCP, peer, port) is None:
            return Flow("egress", TCP, peer, port, source_port=40_000)


def _inside(rng: random.Random, space: Cidr) -> int:
    """Never an address that is loopback, nor a mapped one."""
    while True:
        value = rng.randint(space.value, space.last)
        if space.family == 6 or value >> 24 not in (0, 127):
            return value


def _covering(prefixes: set[Cidr], cidr: Cidr, lengths: tuple[int, ...]) -> Cidr | None:
    for length in lengths:
        if length <= cidr.plen and (wider := masked(cidr.family, cidr.value, length)) in prefixes:
            return wider
    return None
