"""Addresses and prefixes as numbers.

An IPv4-mapped IPv6 address *is* its IPv4 address (contracts §1.5). Host bits of a CIDR are masked.
"""

from ipaddress import IPv6Address
from typing import Final, NamedTuple

from aegisflux.domain.errors import Invalid

TCP: Final = 6
UDP: Final = 17
ICMP: Final = 1
ICMPV6: Final = 58
PROTOCOLS: Final = {"icmp": ICMP, "tcp": TCP, "udp": UDP, "icmpv6": ICMPV6, "gre": 47, "esp": 50, "sctp": 132}
PROTOCOL_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}
MAPPED_BITS: Final = 96  # of ::ffff:0:0/96, inside of which an address is one of IPv4
_OCTETS: Final = {str(number): number for number in range(256)}
_LENGTHS: Final = {str(number): number for number in range(129)}


class Address(NamedTuple):
    """`family` is 4 or 6, `value` the address as a number."""

    family: int
    value: int

    @property
    def bits(self) -> int:
        return 32 if self.family == 4 else 128

    def packed(self) -> bytes:
        return self.value.to_bytes(self.bits // 8, "big")

    def __str__(self) -> str:
        return address_text(self.family, self.value)


class Cidr(NamedTuple):
    """A canonical prefix: no host bits, never inside ::ffff:0:0/96."""

    family: int
    value: int
    plen: int

    @property
    def bits(self) -> int:
        return 32 if self.family == 4 else 128

    @property
    def last(self) -> int:
        return self.value | ((1 << (self.bits - self.plen)) - 1)

    def covers(self, address: Address) -> bool:
        return address.family == self.family and self.value <= address.value <= self.last

    def contains(self, inner: "Cidr") -> bool:
        """Whether every address of another prefix is one of this."""
        return inner.family == self.family and self.value <= inner.value and inner.last <= self.last

    def __str__(self) -> str:
        return cidr_text(self.family, self.value, self.plen)


_MAPPED: Final = Address(6, 0xFFFF << 32)


def unmapped(value: int) -> Address:
    """The address of a 128-bit number, turned into IPv4 where it is mapped."""
    if value >> 32 == 0xFFFF:
        return Address(4, value & 0xFFFFFFFF)
    return Address(6, value)


def address_of(packed: bytes) -> Address:
    """From 4 or 16 bytes in network order."""
    value = int.from_bytes(packed, "big")
    return Address(4, value) if len(packed) == 4 else unmapped(value)


def parse_address(text: str, path: str = "") -> Address:
    """Read an IPv4 or IPv6 address; raises Invalid (scope ids are not addresses of a flow)."""
    if ":" not in text:
        return Address(4, _v4_value(text, path, text, "an IPv4 or IPv6 address"))
    return unmapped(_v6_value(text, path, text, "an IPv4 or IPv6 address"))


def parse_cidr(text: str, path: str = "") -> Cidr:
    """Read `address/length` and mask its host bits; raises Invalid. A bare address is refused, and so is a
    mapped one of fewer than 96 bits: it looks like IPv4, and would match IPv6 alone."""
    cidr = parse_former_cidr(text, path)
    if cidr.family == 6 and cidr.covers(_MAPPED) and (why := _cut_mapped(text, cidr)):
        raise Invalid(path, why, text)
    return cidr


def parse_former_cidr(text: str, path: str = "") -> Cidr:
    """As `parse_cidr`, and what was stored before mapped addresses of fewer than 96 bits were refused: it
    means the prefix of IPv6 that it meant."""
    expected = "an IPv4 or IPv6 CIDR"
    base, _, length = text.partition("/")
    plen = _LENGTHS.get(length)
    if plen is None:
        raise Invalid(path, expected, text)
    if ":" not in base:
        if plen > 32:
            raise Invalid(path, expected, text)
        return masked(4, _v4_value(base, path, text, expected), plen)
    value = _v6_value(base, path, text, expected)
    if plen >= MAPPED_BITS and value >> 32 == 0xFFFF:
        return masked(4, value & 0xFFFFFFFF, plen - MAPPED_BITS)
    return masked(6, value, plen)


def _cut_mapped(text: str, cidr: Cidr) -> str:
    """What was expected where this prefix was written as a mapped address, empty where it was not."""
    value = int(IPv6Address(text.partition("/")[0]))
    if value >> 32 != 0xFFFF:
        return ""
    if cidr.plen <= 32:
        meant = masked(4, value & 0xFFFFFFFF, cidr.plen)
        mapped = f"::ffff:{address_text(4, meant.value)}/{MAPPED_BITS + meant.plen}"
        return f"an IPv4 CIDR, for which write {meant} or {mapped} (to mean IPv6 peers alone, {cidr})"
    return (
        f"an IPv4 CIDR such as {address_text(4, value & 0xFFFFFFFF)}/32, or a mapped address with a length "
        f"of {MAPPED_BITS} to 128 (to mean IPv6 peers alone, {cidr})"
    )


def address_text(family: int, value: int) -> str:
    """The canonical text of an address."""
    if family == 4:
        return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
    return IPv6Address(value).compressed


def cidr_text(family: int, value: int, plen: int) -> str:
    """The canonical text of a prefix."""
    return f"{address_text(family, value)}/{plen}"


def masked(family: int, value: int, plen: int) -> Cidr:
    """The prefix of `plen` bits around `value`."""
    shift = (32 if family == 4 else 128) - plen
    return Cidr(family, value >> shift << shift, plen)


def _v4_value(base: str, path: str, text: str, expected: str) -> int:
    try:
        a, b, c, d = base.split(".")
        return _OCTETS[a] << 24 | _OCTETS[b] << 16 | _OCTETS[c] << 8 | _OCTETS[d]
    except (KeyError, ValueError):
        raise Invalid(path, expected, text) from None


def _v6_value(base: str, path: str, text: str, expected: str) -> int:
    try:
        if "%" in base:
            raise ValueError("scope id")
        return int(IPv6Address(base))
    except ValueError:
        raise Invalid(path, expected, text) from None
