"""Query strings that mean what they say: a parameter that a route does not read is refused, never ignored.

`POST /seg/maps?target_hosts=c1` would otherwise be a snapshot for every host. So would a value that is empty,
a name in other letters, or the second of two values where one is read.
"""

import re
from collections.abc import Mapping, Set
from datetime import datetime
from difflib import get_close_matches
from typing import Final

from msgspec import Struct

from aegisflux.domain import patterns
from aegisflux.domain.errors import Invalid

MAX_PARAMETERS: Final = 1_000
MAX_DIGITS: Final = 40
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BROKEN: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]*")
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
BOOLEANS: Final = ("true", "false")


class Parameter(Struct, frozen=True):
    """A parameter that a route reads: `kind` is integer, boolean, time or text.

    many:        it may come more than once
    required:    it has to come
    least, most: of an integer
    longest:     how many characters a text has at most
    words:       all texts that it can be, where these are few
    form:        a regular expression of a text
    """

    kind: str = "text"
    many: bool = False
    required: bool = False
    least: int | None = None
    most: int | None = None
    longest: int | None = None
    words: tuple[str, ...] = ()
    form: str = ""


def check(query: bytes, known: Mapping[str, Parameter]) -> Set[str]:
    """Return the names of the parameters that come in a query string; raise Invalid, by the name of the
    parameter, where it says something that these do not read, or that they would read as something else."""
    seen: set[str] = set()
    parts = query.split(b"&", MAX_PARAMETERS) if query else []
    if len(parts) > MAX_PARAMETERS:
        raise Invalid("query", f"at most {MAX_PARAMETERS} parameters", "more")
    for part in parts:
        if not part:
            raise Invalid("query", "name=value between two &", query.decode("latin-1"))
        raw, equals, rest = part.partition(b"=")
        name = _text(raw, "query")
        path = name if _NAME.fullmatch(name) else "query"
        parameter = known.get(name)
        if parameter is None:
            raise Invalid(path, _expected(name, known), name)
        if name in seen and not parameter.many:
            raise Invalid(path, "one value", "it more than once")
        seen.add(name)
        value = _text(rest, path)
        if not equals or not value.strip():
            raise Invalid(path, "a value; leave the parameter out to say nothing", value)
        check_value(value, parameter, path)
    return seen


def check_required(seen: Set[str], known: Mapping[str, Parameter]) -> None:
    """Raise Invalid for a parameter that has to come and is not among those that came."""
    for name, parameter in known.items():
        if parameter.required and name not in seen:
            raise Invalid(name, "a value: this route needs it")


def check_path(raw: bytes, name: str) -> None:
    """Raise Invalid for a path of a URL, as it came, that is not text in UTF-8 or holds NUL."""
    _text(raw.partition(b"?")[0].replace(b"+", b"%2B"), name)


def _text(raw: bytes, path: str) -> str:
    if _BROKEN.search(raw):
        raise Invalid(path, "two hexadecimal digits after each %", raw.decode("latin-1"))
    try:
        text = _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise Invalid(path, "text in UTF-8", raw.decode("latin-1")) from None
    if "\0" in text:
        raise Invalid(path, "text without the character NUL", text)
    return text


def _expected(name: str, known: Mapping[str, Parameter]) -> str:
    if not known:
        return "no query parameter: this route reads none"
    told = f"a query parameter of this route ({', '.join(sorted(known))})"
    near = {_bare(one): one for one in known}
    found = get_close_matches(_bare(name), near, n=1, cutoff=0.6)
    return f"{told}; did you mean {near[found[0]]}?" if found else told


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name[:128].lower())


def check_value(value: str, parameter: Parameter, path: str) -> None:
    """Raise Invalid by path for a value that this parameter cannot have."""
    if parameter.kind == "integer":
        if not _INTEGER.fullmatch(value):
            raise Invalid(path, "an integer in ASCII digits, without leading zeros", value)
        _check_bounds(value, parameter, path)
    elif parameter.kind == "boolean" and value not in BOOLEANS:
        raise Invalid(path, "true or false", value)
    elif parameter.kind == "time":
        _check_time(value, path)
    else:
        _check_text(value, parameter, path)


def _check_bounds(value: str, parameter: Parameter, path: str) -> None:
    least, most = parameter.least, parameter.most
    number = int(value) if len(value) <= MAX_DIGITS else None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        low = f" from {least}" if least is not None else ""
        high = f" to {most}" if most is not None else ""
        raise Invalid(path, f"an integer{low}{high}" if low or high else "a shorter integer", value)


def _check_text(value: str, parameter: Parameter, path: str) -> None:
    if parameter.words and value not in parameter.words:
        raise Invalid(path, " or ".join(parameter.words), value)
    if parameter.longest is not None and len(value) > parameter.longest:
        raise Invalid(path, f"at most {parameter.longest} characters, not {len(value)}", value)
    if parameter.form and not re.search(parameter.form, value):
        raise Invalid(path, patterns.in_words(parameter.form), value)


def _check_time(value: str, path: str) -> None:
    try:
        datetime.fromisoformat(value if _TIME.fullmatch(value) else "")
    except ValueError:
        hint = " (write + as %2B)" if " " in value else ""
        raise Invalid(path, f"a time of RFC 3339 with its zone{hint}", value) from None
