"""Which of a host's addresses others are told of: a heartbeat has room for some, and no more are believed."""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from aegisflux.domain.address_class import address_class
from aegisflux.domain.errors import Invalid
from aegisflux.domain.net import Address, parse_address
from aegisflux.domain.text import first_of, printable

MOST_TOLD: Final = 64
MOST_NAMED: Final = 3
UNUSABLE: Final = frozenset({"unspecified", "broadcast", "loopback", "link_local", "multicast"})


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
    reachable = [a for a in likeliest_first if not _is_unusable(str(a))]
    return tuple(map(str, sorted(reachable[:most]))), max(0, len(reachable) - most)


class Believed(NamedTuple):
    """The addresses of a heartbeat that others are told of, in their usual spelling.

    more:     how many it has beyond what an agent of ours reports: these are not looked at
    unusable: those of the others that no other host can call it by, and texts that are no addresses
    """

    addresses: tuple[str, ...]
    more: int
    unusable: tuple[str, ...]


def believed(reported: Sequence[str]) -> Believed:
    """Return what of these a host may be known by. Each is one host, never all, none or many of them."""
    first = reported[:MOST_TOLD]
    usual = {text: _usual(text) for text in first}
    good = tuple(dict.fromkeys(one for one in usual.values() if one and not _is_unusable(one)))
    bad = tuple(dict.fromkeys(text for text, one in usual.items() if not one or _is_unusable(one)))
    return Believed(good, len(reported) - len(first), bad)


def unbelieved_text(found: Believed) -> str:
    """Return why not all addresses that a host reports are believed; nothing when all are."""
    words = []
    if found.more:
        words.append(f"{MOST_TOLD + found.more} are reported, and {MOST_TOLD} are believed: the first ones")
    if found.unusable:
        names = first_of([printable(text)[:45] for text in found.unusable], MOST_NAMED)
        words.append(f"no host can be called by {names}")
    return "own addresses: " + "; ".join(words) if words else ""


def conflict_text(address: str, others: Sequence[str]) -> str:
    """Return what is said of an address that several hosts report."""
    return f"{address} is also reported by {first_of(others, MOST_NAMED)}: it is used for none of them"


def _usual(text: str) -> str:
    try:
        return str(parse_address(text))
    except Invalid:
        return ""


def _is_unusable(text: str) -> bool:
    """0.0.0.0/8 is "this network" (RFC 791): no host has an address of it."""
    return address_class(text) in UNUSABLE or text.startswith("0.")
