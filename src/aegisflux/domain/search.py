"""One grammar of filters everywhere: `service=web verdict=blocked port=5432 -peer=10.0.0.0/8`.

Words are joined by "and"; several values of one field (`port=80,443`, or the field twice) by "or"; a leading
`-` excludes. Values with spaces stand in double quotes. What the grammar does not know is refused by name.
"""

import re
from collections.abc import Iterator
from typing import Final, get_args

from msgspec import Struct

from aegisflux.domain.digits import whole
from aegisflux.domain.enriched import AddressClass
from aegisflux.domain.errors import Invalid
from aegisflux.domain.event import KINDS
from aegisflux.domain.names import close
from aegisflux.domain.net import PROTOCOLS, parse_address, parse_cidr
from aegisflux.domain.text import first_of

MAX_TERMS: Final = 64
FLOW_FIELDS: Final = (
    "from", "to", "service", "host", "peer", "port", "proto", "verdict", "reason", "direction", "path",
    "class",
)  # fmt: skip
EVENT_FIELDS: Final = ("kind", "host", "service", "path", "user", "peer", "pid")
EVENT_KINDS: Final = tuple(kind for kind in KINDS if kind != "flow")
WORDS: Final = {
    "kind": EVENT_KINDS,
    "direction": ("egress", "ingress"),
    "class": get_args(AddressClass),
}
ENDS: Final = ("from", "to")
NAMING: Final = {"host": ("host",), "service": ("service",), **dict.fromkeys(ENDS, ("service", "host"))}
MOST_NAMED: Final = 20
VERDICTS: Final = {
    "allowed": "allowed",
    "would-block": "would block",
    "blocked": "blocked",
    "unknown": "unknown",
}
_TERM: Final = re.compile(r'\s*(-?)([a-z]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?=\s|\Z)')


class Search(Struct, frozen=True):
    """Wanted and unwanted values by field, as the store compares them."""

    wanted: dict[str, tuple[str, ...]] = {}
    unwanted: dict[str, tuple[str, ...]] = {}


class Names(Struct, frozen=True):
    """Hosts that are or were enrolled or told something that is still stored, and registered services."""

    host: frozenset[str] = frozenset()
    service: frozenset[str] = frozenset()


def names_of(search: Search) -> Iterator[tuple[str, str]]:
    """Yield (field, value) for each value that is to be the name of a host or of a service."""
    for values in (search.wanted, search.unwanted):
        for field in NAMING.keys() & values.keys():
            yield from ((field, value) for value in values[field] if not (field in ENDS and _address(value)))


def unknown(search: Search, known: Names) -> tuple[str, str] | None:
    """Return (field, value) of the first value that is no known name; None: each of them is known."""
    for field, value in sorted(names_of(search)):
        if not any(value in getattr(known, kind) for kind in NAMING[field]):
            return field, value
    return None


def not_known(path: str, field: str, value: str, known: Names) -> Invalid:
    """Return the refusal of a name that nothing has, which would otherwise find nothing and seem to say that
    nothing happened."""
    names = sorted(name for kind in NAMING[field] for name in getattr(known, kind))
    some = f" ({first_of(names, MOST_NAMED) or 'none is'})"
    what = " or ".join(f"a {kind} that is known" for kind in NAMING[field])
    more = ", or an address" if field in ENDS else ""
    return Invalid(path, f"{what}{more}{close(value, names) or some}", value)


def parse_search(text: str, fields: tuple[str, ...]) -> Search:
    """Read a filter; raises Invalid with the term that is not understood."""
    wanted: dict[str, list[str]] = {}
    unwanted: dict[str, list[str]] = {}
    at = terms = 0
    text = text.strip()
    while at < len(text):
        found = _TERM.match(text, at)
        if found is None:
            raise Invalid("filter", "field=value terms, as in: service=web -port=22", text[at : at + 40])
        minus, name, value = found.groups()
        if name not in fields:
            raise Invalid("filter", f"one of the fields {', '.join(fields)}", name)
        for part in _values(value):
            terms += 1
            (unwanted if minus else wanted).setdefault(name, []).append(_checked(name, part))
        at = found.end()
    if terms > MAX_TERMS:
        raise Invalid("filter", f"at most {MAX_TERMS} values", terms)
    return Search(_frozen(wanted), _frozen(unwanted))


def _values(value: str) -> list[str]:
    if value.startswith('"'):
        return [re.sub(r"\\(.)", r"\1", value[1:-1])]
    return value.split(",")


def _checked(name: str, value: str) -> str:
    path = f"filter.{name}"
    if not value or len(value) > 4096:
        raise Invalid(path, "a value", value)
    if name in ("port", "pid"):
        if whole(value, 65_535 if name == "port" else 10**10 - 1) is None:
            raise Invalid(path, "a number", value)
        return value
    if name == "proto":
        number = PROTOCOLS.get(value.lower(), whole(value, 255))
        if number is None:
            raise Invalid(path, f"{', '.join(PROTOCOLS)} or a number", value)
        return str(number)
    if name == "peer":
        return str(parse_cidr(value, path)) if "/" in value else str(parse_address(value, path))
    if name == "verdict":
        if value.replace(" ", "-") not in VERDICTS:
            raise Invalid(path, " or ".join(VERDICTS), value)
        return VERDICTS[value.replace(" ", "-")]
    if name in WORDS and value not in WORDS[name]:
        raise Invalid(path, " or ".join(WORDS[name]), value)
    return _end(value, path) if name in ENDS else value


def _end(value: str, path: str) -> str:
    if "/" in value:
        raise Invalid(path, "a service, a host or an address (peer=10.0.0.0/8 is a CIDR)", value)
    return _address(value) or value


def _address(text: str) -> str:
    """The address as the store writes it; empty: it is none."""
    try:
        return str(parse_address(text))
    except Invalid:
        return ""


def _frozen(found: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(values) for name, values in found.items()}
