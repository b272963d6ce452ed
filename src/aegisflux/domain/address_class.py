"""What kind of address a peer has, by IANA's special-purpose registries (RFC 6890 and what updates it)."""

from functools import lru_cache
from typing import Final

from aegisflux.domain.enriched import AddressClass
from aegisflux.domain.errors import Invalid
from aegisflux.domain.net import Cidr, parse_address, parse_cidr

_REGISTRY: Final[tuple[tuple[AddressClass, str], ...]] = (
    ("unspecified", "0.0.0.0/32"),
    ("broadcast", "255.255.255.255/32"),
    ("loopback", "127.0.0.0/8"),
    ("private", "10.0.0.0/8"),
    ("private", "172.16.0.0/12"),
    ("private", "192.168.0.0/16"),
    ("shared", "100.64.0.0/10"),
    ("link_local", "169.254.0.0/16"),
    ("multicast", "224.0.0.0/4"),
    ("documentation", "192.0.2.0/24"),
    ("documentation", "198.51.100.0/24"),
    ("documentation", "203.0.113.0/24"),
    ("reserved", "0.0.0.0/8"),
    ("reserved", "192.0.0.0/24"),
    ("reserved", "198.18.0.0/15"),
    ("reserved", "240.0.0.0/4"),
    ("unspecified", "::/128"),
    ("loopback", "::1/128"),
    ("link_local", "fe80::/10"),
    ("private", "fc00::/7"),
    ("multicast", "ff00::/8"),
    ("documentation", "2001:db8::/32"),
    ("documentation", "3fff::/20"),
    ("public", "2000::/3"),
    ("reserved", "::/0"),
)
_RANGES: Final[tuple[tuple[AddressClass, Cidr], ...]] = tuple((n, parse_cidr(text)) for n, text in _REGISTRY)


@lru_cache(maxsize=65_536)
def address_class(text: str) -> AddressClass | None:
    """The class of an address; the first range of the table that covers it, None for what is no address."""
    try:
        address = parse_address(text)
    except Invalid:
        return None
    return next((name for name, cidr in _RANGES if cidr.covers(address)), "public")
