"""Denies that no host holds: what a host sends to itself is always allowed (`verdict`, local addresses)."""

from typing import Final

from aegisflux.domain.net import Cidr, parse_cidr
from aegisflux.domain.snapshot import MapSnapshot
from aegisflux.domain.verdict import LOOPBACK_V4, LOOPBACK_V6, UNSPECIFIED

_LOCAL: Final = (LOOPBACK_V4, *(Cidr(*one, one.bits) for one in (LOOPBACK_V6, *UNSPECIFIED)))

_BEGINS: Final = ("127.", "0.0.0.0/", "::")  # of their canonical texts: a snapshot may have many denies


def always_local(cidr: Cidr) -> bool:
    """Whether each address of a prefix is local on every host."""
    return any(local.contains(cidr) for local in _LOCAL)


def warnings_of(snapshot: MapSnapshot) -> list[str]:
    """What an author should know: the first deny of a snapshot that no host holds."""
    texts = (deny.cidr for deny in snapshot.deny if deny.cidr.startswith(_BEGINS))
    found = next((text for text in texts if always_local(parse_cidr(text))), None)
    if found is None:
        return []
    return [f"deny {found} holds nowhere: what a host sends to itself is always allowed; take it out"]
