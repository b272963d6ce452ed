"""The MapSnapshot: what is posted, signed and enforced (contracts §1).

`decode` refuses with the path of the field; `canonical` masks, sorts and de-duplicates, so that the
same policy has the same bytes on any machine; `ruleset` is the parsed form that a verdict reads.
"""

from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from aegisflux.domain import json_text
from aegisflux.domain.decoding import converted
from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.net import Cidr, cidr_text, parse_cidr

MAX_ENTRIES: Final = 100_000
MAX_VALUES: Final = 10 * MAX_ENTRIES  # of its JSON: an entry is five
MAX_META_BYTES: Final = 65_536
MAX_META_DEPTH: Final = 16
TTL_MIN: Final = 60
TTL_MAX: Final = 2_592_000

Proto = Literal["tcp", "udp", "any"]
Mode = Literal["enforce", "observe"]
Expiry = Literal["open", "closed"]
Established = Literal["keep", "cut"]
DenyDirection = Literal["egress", "ingress", "both"]
Port = Annotated[int, Meta(ge=0, le=65_535, description="0 is every port")]
CidrText = Annotated[str, Meta(max_length=64, description="an IPv4 or IPv6 CIDR; host bits are masked")]


class Edge(Struct, frozen=True, forbid_unknown_fields=True):
    """An egress permission: the service may initiate to these peers."""

    dst_cidr: CidrText
    proto: Proto
    port: Port


class AllowCidr(Struct, frozen=True, forbid_unknown_fields=True):
    """Peers allowed in both directions; `port` is the one that the initiator addresses."""

    cidr: CidrText
    proto: Proto
    port: Port


class IngressRule(Struct, frozen=True, forbid_unknown_fields=True):
    """An ingress permission: these peers may initiate to the service."""

    src_cidr: CidrText
    proto: Proto
    port: Port


class Deny(Struct, frozen=True, forbid_unknown_fields=True):
    """A safeguard: beats every allow, of any prefix length."""

    cidr: CidrText
    proto: Proto
    port: Port
    direction: DenyDirection


class MapSnapshot(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """What one service may do. `ingress` absent and `ingress: []` differ: unrestricted, and none."""

    version: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    service_id: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    ttl_seconds: Annotated[int, Meta(ge=TTL_MIN, le=TTL_MAX)]
    edges: tuple[Edge, ...] = ()
    allow_cidrs: tuple[AllowCidr, ...] = ()
    meta: dict[str, Any] = {}
    ingress: tuple[IngressRule, ...] | UnsetType = UNSET
    deny: tuple[Deny, ...] = ()
    mode: Mode = "enforce"
    on_expiry: Expiry = "open"
    established: Established = "keep"

    def entries(self) -> int:
        return len(self.edges) + len(self.allow_cidrs) + len(self.deny) + len(self.ingress or ())


class Entry(NamedTuple):
    """A parsed rule; `port` 0 is every port."""

    cidr: Cidr
    proto: Proto
    port: int
    direction: DenyDirection = "both"


class Ruleset(Struct, frozen=True):
    """A snapshot as a verdict reads it."""

    service_id: int
    version: int
    edges: tuple[Entry, ...]
    peers: tuple[Entry, ...]
    ingress: tuple[Entry, ...] | None
    deny: tuple[Entry, ...]
    mode: Mode
    on_expiry: Expiry
    established: Established


def decode(body: bytes) -> MapSnapshot:
    """Read JSON into a canonical snapshot; raises Invalid with the field's path, or OverLimit."""
    return from_builtins(json_text.parse(body, what="a JSON object", most=MAX_VALUES))


def from_builtins(raw: object) -> MapSnapshot:
    """The same from parsed JSON."""
    if not isinstance(raw, dict):
        raise Invalid("", "a JSON object", raw)
    _bounded(raw)
    snapshot: MapSnapshot = converted(raw, MapSnapshot)
    _check_meta(snapshot.meta)
    return canonical(snapshot)


def canonical(snapshot: MapSnapshot) -> MapSnapshot:
    """Host bits masked, mapped addresses as IPv4, entries sorted, doubles dropped."""
    ingress = snapshot.ingress
    return msgspec.structs.replace(
        snapshot,
        edges=tuple(Edge(cidr_text(*c), p, n) for *c, p, n, _ in _rows(snapshot.edges, "edges")),
        allow_cidrs=tuple(
            AllowCidr(cidr_text(*c), p, n) for *c, p, n, _ in _rows(snapshot.allow_cidrs, "allow_cidrs")
        ),
        ingress=ingress
        if ingress is UNSET
        else tuple(IngressRule(cidr_text(*c), p, n) for *c, p, n, _ in _rows(ingress, "ingress")),
        deny=tuple(Deny(cidr_text(*c), p, n, d) for *c, p, n, d in _rows(snapshot.deny, "deny")),
    )


def ruleset(snapshot: MapSnapshot) -> Ruleset:
    """Parse the entries of a snapshot; raises Invalid where it was not canonical and is wrong."""
    ingress = snapshot.ingress
    return Ruleset(
        snapshot.service_id,
        snapshot.version,
        _entries(snapshot.edges, "edges"),
        _entries(snapshot.allow_cidrs, "allow_cidrs"),
        None if ingress is UNSET else _entries(ingress, "ingress"),
        _entries(snapshot.deny, "deny"),
        snapshot.mode,
        snapshot.on_expiry,
        snapshot.established,
    )


def warnings_of(snapshot: MapSnapshot) -> list[str]:
    """What an author of this snapshot should be told, though it is valid."""
    found: list[str] = []
    if snapshot.mode == "enforce" and not snapshot.edges and not snapshot.allow_cidrs:
        found.append(
            "edges and allow_cidrs are empty in mode enforce: all egress but the failsafe will be blocked"
        )
    if snapshot.mode == "enforce" and snapshot.ingress == () and not snapshot.allow_cidrs:
        found.append("ingress is [] in mode enforce: all ingress but the failsafe will be blocked")
    for name, entries in (("edges", snapshot.edges), ("allow_cidrs", snapshot.allow_cidrs)):
        wide = [e for e in entries if e.proto == "any" and e.port == 0 and _text(e).endswith("/0")]
        if wide:
            found.append(f"{name}: {_text(wide[0])} any/0 allows everything of that family")
    return found


_KIND: Final = {"edges": "dst_cidr", "allow_cidrs": "cidr", "ingress": "src_cidr", "deny": "cidr"}
_ENTRIES: Final = tuple(_KIND)
Row = tuple[int, int, int, Proto, int, DenyDirection]


def _text(entry: Any) -> str:
    return str(entry.dst_cidr if isinstance(entry, Edge) else entry.cidr)


def _bounded(raw: dict[str, Any]) -> None:
    total = sum(len(raw[name]) for name in _ENTRIES if isinstance(raw.get(name), list))
    if total > MAX_ENTRIES:
        raise OverLimit("entries", MAX_ENTRIES, total, f"snapshot of service {raw.get('service_id')}")


def _check_meta(meta: dict[str, Any]) -> None:
    if _depth(meta) > MAX_META_DEPTH:
        raise Invalid("meta", f"at most {MAX_META_DEPTH} levels", "deeper")
    size = len(msgspec.json.encode(meta))
    if size > MAX_META_BYTES:
        raise OverLimit("meta_bytes", MAX_META_BYTES, size, "meta")


def _depth(value: object, level: int = 0) -> int:
    if level > MAX_META_DEPTH or not isinstance(value, (dict, list)):
        return level
    children = value.values() if isinstance(value, dict) else value
    return max((_depth(child, level + 1) for child in children), default=level + 1)


def _rows(entries: Any, name: str) -> list[Row]:
    """Every entry as numbers and words, sorted, doubles dropped: an order of numbers is a fast one."""
    field, directed = _KIND[name], name == "deny"
    rows: set[Row] = set()
    for i, entry in enumerate(entries):
        text = getattr(entry, field)
        try:
            family, value, plen = parse_cidr(text)
        except Invalid as err:
            raise Invalid(f"{name}[{i}].{field}", err.expected, text) from None
        rows.add((family, value, plen, entry.proto, entry.port, entry.direction if directed else "both"))
    return sorted(rows)


def _entries(entries: Any, name: str) -> tuple[Entry, ...]:
    rows = _rows(entries, name)
    return tuple([Entry(Cidr(f, v, plen), proto, port, way) for f, v, plen, proto, port, way in rows])
