"""Who could reach whom: what no snapshot in force forbids, whether it was ever seen or not.

Only services are asked about, at the addresses of their hosts and on the ports where they listen. A verdict
about egress depends on the callee's address alone, one about ingress on the caller's: so a pair of services
can talk when some address of each is let through by the other's rules.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from aegisflux.domain.flow import Direction, Flow, Host
from aegisflux.domain.manifest import Content
from aegisflux.domain.net import parse_address
from aegisflux.domain.reach import Hop
from aegisflux.domain.verdict_of_tables import judge_tables

MOST_ADDRESSES: Final = 64
MOST_PORTS: Final = 64
MOST_VERDICTS: Final = 200_000


class Party(Struct, frozen=True):
    """A service where one snapshot of it is in force. `content` None: nothing governs it there.

    ports: (protocol, port) where it listens
    """

    service: str
    addresses: tuple[str, ...]
    ports: tuple[tuple[int, int], ...] = ()
    content: Content | None = None

    @property
    def is_open(self) -> bool:
        """Whether anybody may call it."""
        return not self._refuses or not self.content or not self.content.tables.ingress

    @property
    def _refuses(self) -> bool:
        return self.content is not None and self.content.mode == "enforce"

    def lets(self, direction: Direction, proto: int, peer: str, port: int) -> bool:
        """Whether its rules let an initiation through."""
        if self.content is None or not self._refuses:
            return True
        flow = Flow(direction, proto, parse_address(peer), port)
        return judge_tables(self.content.tables, self.content, flow, Host()).action == "allow"


def could_reach(
    parties: Sequence[Party], targets: Iterable[str] | None = None, most: int = MOST_VERDICTS
) -> tuple[frozenset[Hop], bool]:
    """Which service could call which (only these targets), and whether the look was cut short."""
    wanted = None if targets is None else set(targets)
    found: set[Hop] = set()
    cut, left = False, most
    for callee in parties:
        if wanted is not None and callee.service not in wanted:
            continue
        cut = cut or len(callee.ports) > MOST_PORTS or len(callee.addresses) > MOST_ADDRESSES
        for caller in parties:
            if caller.service == callee.service:
                continue
            for proto, port in callee.ports[:MOST_PORTS]:
                left -= len(callee.addresses[:MOST_ADDRESSES]) + len(caller.addresses[:MOST_ADDRESSES])
                if left < 0:
                    return frozenset(found), True
                if _could(caller, callee, proto, port):
                    start, end = f"service:{caller.service}", f"service:{callee.service}"
                    found.add(Hop(start, end, proto, port, seen=False))
    return frozenset(found), cut


def _could(caller: Party, callee: Party, proto: int, port: int) -> bool:
    return any(caller.lets("egress", proto, at, port) for at in callee.addresses[:MOST_ADDRESSES]) and any(
        callee.lets("ingress", proto, at, port) for at in caller.addresses[:MOST_ADDRESSES]
    )
