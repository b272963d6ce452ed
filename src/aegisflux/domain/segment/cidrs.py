"""Fewest prefixes for a set of addresses, under a budget of addresses that are let in besides.

Without a budget they are exact. With one, a dynamic programme over the prefix trie decides what to close:

    best(node, k) = the least extra addresses that k prefixes below the node let in;
    a node alone is one prefix and lets in its size less its members, never over a known non-member

Closing is worth it only where it saves prefixes; of equal answers the one that lets in less is taken.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from aegisflux.domain.net import Address, Cidr, masked

MOST_KEPT: Final = 64  # ways kept at each node: more prefixes than that below one node are not traded off

Way = tuple[int, int, tuple[Cidr, ...]]  # prefixes, extra addresses, the prefixes


def covering(members: Iterable[Address], never: Iterable[Address] = (), extra: int = 0) -> tuple[Cidr, ...]:
    """The fewest prefixes that hold all members, none of `never`, and at most `extra` others of each family.

    Raises ValueError for an address that is both.
    """
    wanted, refused = sorted(set(members)), sorted(set(never))
    if both := set(wanted) & set(refused):
        raise ValueError(f"{min(both)} is a member and must never be one")
    found: list[Cidr] = []
    for family, bits in ((4, 32), (6, 128)):
        own = [a.value for a in wanted if a.family == family]
        other = [a.value for a in refused if a.family == family]
        if own:
            ways = _ways(family, bits, own, other, 0, extra)
            found += min((way for way in ways if way[1] <= extra), key=lambda way: way[:2])[2]
    return tuple(sorted(found))


def _ways(
    family: int, bits: int, own: Sequence[int], other: Sequence[int], plen: int, extra: int
) -> list[Way]:
    """The ways to cover what is below a prefix that are worth keeping: more prefixes only for less extra."""
    plen = _longest(bits, own, plen)
    node = masked(family, own[0], plen)
    size = 1 << (bits - plen)
    inside = [value for value in other if node.value <= value <= node.last]
    found: list[Way] = []
    if not inside and size - len(own) <= extra:
        found.append((1, size - len(own), (node,)))
    if size > len(own) or inside:
        middle = node.value + size // 2
        left = [value for value in own if value < middle]
        right = own[len(left) :]
        lefts = _ways(family, bits, left, inside, plen + 1, extra)
        rights = _ways(family, bits, right, inside, plen + 1, extra)
        found += [
            (a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a in lefts for b in rights if a[1] + b[1] <= extra
        ]
    return _worth_it(found)


def _longest(bits: int, own: Sequence[int], plen: int) -> int:
    """The length of the longest prefix that holds all of them: between there and `plen` nothing branches."""
    return max(plen, bits - (own[0] ^ own[-1]).bit_length())


def _worth_it(ways: list[Way]) -> list[Way]:
    kept: list[Way] = []
    for way in sorted(ways, key=lambda way: way[:2]):
        if not kept or way[1] < kept[-1][1]:
            kept.append(way)
    return kept if len(kept) <= MOST_KEPT else [*kept[: MOST_KEPT - 1], kept[-1]]


def all_but(members: Iterable[Address]) -> tuple[Cidr, ...]:
    """The fewest prefixes that hold every address but these, of both families."""
    own = set(members)
    found: list[Cidr] = []
    for family in (4, 6):
        found += _without(Cidr(family, 0, 0), sorted(a.value for a in own if a.family == family))
    return tuple(sorted(found))


def _without(node: Cidr, own: Sequence[int]) -> Iterable[Cidr]:
    if not own:
        yield node
    elif node.plen < node.bits:
        middle = node.value + (1 << (node.bits - node.plen - 1))
        left = [value for value in own if value < middle]
        yield from _without(Cidr(node.family, node.value, node.plen + 1), left)
        yield from _without(Cidr(node.family, middle, node.plen + 1), own[len(left) :])
