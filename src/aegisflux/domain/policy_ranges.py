"""Sets of addresses that are compared by the thousand: one sweep over all their borders says of each asked
address which sets hold it, as bits of a number."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from aegisflux.domain.net import Address
from aegisflux.domain.spans import FAMILIES, Spans

BITS: Final = {4: 32, 6: 128}


class Ranges(Spans):
    """A set of addresses whose intervals can be walked over."""

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(family, first, last) of each interval, in order."""
        for family in FAMILIES:
            for first, last in self._of[family]:
                yield family, first, last

    def corners(self) -> tuple[Address, ...]:
        """The first and the last address of each family: whoever holds the set holds these."""
        ends = (own for own in self._of.items() if own[1])
        return tuple(Address(family, at) for family, own in ends for at in (own[0][0], own[-1][1]))

    def wider(self, widths: Mapping[int, int]) -> bool:
        """Whether it has more addresses of a family than one prefix of such a length."""
        return any(
            sum(last - first + 1 for first, last in self._of[family]) > 1 << (BITS[family] - plen)
            for family, plen in widths.items()
        )


def holders(sets: Mapping[Ranges, int], asked: Iterable[Address]) -> dict[Address, int]:
    """The bits of all sets that hold each of these addresses."""
    flips: dict[tuple[int, int], int] = defaultdict(int)
    for one, bits in sets.items():
        for family, first, last in one:
            flips[family, first] ^= bits
            flips[family, last + 1] ^= bits
    borders = sorted(flips)
    found: dict[Address, int] = {}
    held, at = 0, 0
    for address in sorted(set(asked)):
        while at < len(borders) and borders[at] <= address:
            held ^= flips[borders[at]]
            at += 1
        found[address] = held
    return found


def numbers(bits: int) -> Iterator[int]:
    """Which bits are set, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
