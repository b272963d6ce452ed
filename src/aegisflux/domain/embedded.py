"""Addresses of IPv6 that lead to an address of IPv4: what a deny of IPv4 holds for beside it (ADR 0027).

Covered are the forms that are prefixes known to everybody: NAT64 by its well-known prefix, and 6to4. In other
forms the address is not where a prefix could name it (Teredo, ISATAP), or the network chooses where it is.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from aegisflux.domain.net import Cidr, parse_cidr
from aegisflux.domain.snapshot import Entry, MapSnapshot, ruleset

NAT64: Final = parse_cidr("64:ff9b::/96")
SIX_TO_FOUR: Final = parse_cidr("2002::/16")
LOCAL_NAT64: Final = parse_cidr("64:ff9b:1::/48")
TEREDO: Final = parse_cidr("2001::/32")
UNCOVERED: Final = (LOCAL_NAT64, TEREDO)


def forms(cidr: Cidr) -> tuple[Cidr, ...]:
    """The prefixes of IPv6 that lead to exactly these addresses of IPv4; none of a prefix of IPv6."""
    if cidr.family != 4:
        return ()
    return tuple(
        Cidr(6, within.value | cidr.value << (128 - within.plen - 32), within.plen + cidr.plen)
        for within in (NAT64, SIX_TO_FOUR)
    )


def with_forms(denies: Iterable[Entry]) -> Iterator[Entry]:
    """Each deny entry, and the same of each of its forms."""
    for entry in denies:
        yield entry
        for cidr in forms(entry.cidr):
            yield entry._replace(cidr=cidr)


def warnings_of(snapshot: MapSnapshot) -> list[str]:
    """What an author should know: a deny of IPv4 whose uncovered forms an allow lets through."""
    first = next((deny.cidr for deny in snapshot.deny if ":" not in deny.cidr), None)
    if first is None:
        return []
    rules = ruleset(snapshot)
    allowed = [e.cidr for e in (*rules.edges, *rules.peers) if e.cidr.family == 6]
    denied = [e.cidr for e in rules.deny if e.proto == "any" and e.port == 0]
    passing = [
        form for form in UNCOVERED if _meets(form, allowed) and not any(c.contains(form) for c in denied)
    ]
    if not passing:
        return []
    text = (
        f"deny {first} holds for its NAT64 ({NAT64}) and 6to4 ({SIX_TO_FOUR}) forms, not for those in "
        f"{' and '.join(map(str, passing))}, which edges or allow_cidrs let through: deny these prefixes too "
        "where your network translates"
    )
    return [text]


def _meets(form: Cidr, cidrs: Iterable[Cidr]) -> bool:
    return any(c.value <= form.last and form.value <= c.last for c in cidrs)
