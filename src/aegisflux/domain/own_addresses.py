"""Which of a host's addresses others are told of: a heartbeat has room for some, and no more are believed."""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final

from aegisflux.domain.address_class import address_class
from aegisflux.domain.errors import Invalid
from aegisflux.domain.net import Address, parse_address

MOST_TOLD: Final = 64


class Standing(IntEnum):
    """How likely others call an address, the likeliest first.

    PRIMARY:    with the prefix of a network
    ALONE:      without one, or on the loopback device: a load balancer's, of which there may be thousands
    SECONDARY:  a further one of a network; of IPv6 a temporary one, which is for calling others
    DEPRECATED: not to be used for new connections
    """

    PRIMARY = 0
    ALONE = 1
    SECONDARY = 2
    DEPRECATED = 3


def likeliest_first(found: Mapping[Address, Standing]) -> tuple[Address, ...]:
    """All of these in the order in which others are told of them."""
    return tuple(sorted(found, key=lambda address: (found[address], address)))


def told(likeliest_first: Iterable[Address], most: int = MOST_TOLD) -> tuple[tuple[str, ...], int]:
    """The first of these that others can call, sorted, and how many more there are."""
    reachable = [a for a in likeliest_first if address_class(str(a)) not in ("loopback", "link_local")]
    return tuple(map(str, sorted(reachable[:most]))), max(0, len(reachable) - most)


def believed(reported: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The addresses of a heartbeat that others are told of, and how many more it has than an agent of ours
    tells: these are not looked at."""
    first = reported[:MOST_TOLD]
    return tuple(dict.fromkeys(filter(_is_address, first))), len(reported) - len(first)


def unbelieved_text(more: int) -> str:
    """For people who wonder about a host that reports more addresses than are believed."""
    if not more:
        return ""
    return f"own addresses: {MOST_TOLD + more} are reported, and {MOST_TOLD} are believed: the first ones"


def _is_address(text: str) -> bool:
    try:
        return bool(parse_address(text))
    except Invalid:
        return False
