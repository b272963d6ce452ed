"""Sets of addresses as sorted, merged intervals: whether one holds another, or an address."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from aegisflux.domain.net import Address, Cidr

FAMILIES: Final = (4, 6)


class Spans:
    """A set of addresses of both families."""

    def __init__(self, cidrs: Iterable[Cidr]) -> None:
        self._of: dict[int, list[tuple[int, int]]] = {family: [] for family in FAMILIES}
        for cidr in sorted(cidrs):
            merged = self._of[cidr.family]
            if merged and cidr.value <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(merged[-1][1], cidr.last)
            else:
                merged.append((cidr.value, cidr.last))

    def __bool__(self) -> bool:
        return any(self._of.values())

    def has(self, address: Address) -> bool:
        """Whether an address is in it."""
        return self._around(address.family, address.value, address.value)

    def holds(self, other: "Spans") -> bool:
        """Whether all of the other's addresses are in it."""
        return all(
            self._around(family, first, last) for family in FAMILIES for first, last in other._of[family]
        )

    def _around(self, family: int, first: int, last: int) -> bool:
        own = self._of[family]
        at = bisect_right(own, (first, 1 << 128)) - 1
        return at >= 0 and own[at][0] <= first and last <= own[at][1]
