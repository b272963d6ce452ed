"""Settings of a process: a TOML file, then the environment. Each is read by itself, so that an error names
the one that is wrong, where it stands, what was expected, and what came."""

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from aegisflux.domain.decoding import converted
from aegisflux.domain.digits import plain_numbers
from aegisflux.domain.errors import Invalid, Unavailable
from aegisflux.domain.names import close

Wrong: TypeAlias = Callable[[Invalid], None]


def refuse(error: Invalid) -> None:
    """Raise what is wrong: for a process that begins with these settings."""
    raise error


def toml_of(path: Path) -> dict[str, Any]:
    """Return what is in a file of settings; raises Invalid by its path."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Invalid(str(path), f"a readable TOML file ({error})", "one that is not") from None


def text_of(name: str, path: Path) -> str:
    """Return what is in a file that a setting names; raises Unavailable where it cannot be read, Invalid
    where it is no text."""
    try:
        return path.read_text()
    except OSError as error:
        raise Unavailable(f"{name}: {path}: {error.strerror}") from error
    except ValueError:
        raise Invalid(name, "a file of text", str(path)) from None


def check_url(name: str, url: str, form: str) -> None:
    """Raise Invalid for what is no URL; its text may hold a secret, and is not shown."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise Invalid(name, form, "another form") from None


def in_file(named: Path | None, default: Path, wrong: Wrong = refuse) -> dict[str, Any]:
    """Return what is in the file that somebody named, who means this one and no other: raises Invalid where
    it cannot be read. Else what is in `default`, if there is one; `wrong` hears of one that cannot be read.
    """
    if named is not None:
        return toml_of(named)
    if default.exists():
        try:
            return toml_of(default)
        except Invalid as error:
            wrong(error)
    return {}


def variables(kind: type[Struct], prefix: str) -> Iterator[str]:
    """The variables of the environment that set the fields of a table, and those of its tables."""
    for field in msgspec.structs.fields(kind):
        name = prefix + field.name.upper()
        if table := _table(field.type):
            yield from variables(table, f"{name}_")
        else:
            yield name


class Places(NamedTuple):
    """Where settings of a table may stand: in the file `file` below `path`, and in variables that begin by
    `prefix`."""

    file: str
    prefix: str
    environ: Mapping[str, str]
    path: str = ""


def values(kind: type[Struct], found: Any, places: Places, wrong: Wrong = refuse) -> dict[str, Any]:
    """Return the values that the file (`found` was read from it) and the environment give, by field. `wrong`
    hears of each that is left out, or raises it."""
    file, prefix, environ, path = places
    if not isinstance(found, Mapping):
        wrong(Invalid(f"{file}: {path.removesuffix('.')}", "a table of settings", found))
        found = {}
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for name in found.keys() - known.keys():
        hint = close(name, known) or f"; there are {', '.join(known)}"
        wrong(Invalid(f"{file}: {path}{name}", f"a known setting{hint}", found[name]))
    values_of: dict[str, Any] = {}
    for name, of in known.items():
        variable = prefix + name.upper()
        if table := _table(of):
            below = Places(file, f"{variable}_", environ, f"{path}{name}.")
            values_of[name] = table(**values(table, found.get(name, {}), below, wrong))
            continue
        text = environ.get(variable)
        if not text and name not in found:
            continue
        place, raw = (variable, _parted(text, of)) if text else (file, found[name])
        try:
            values_of[name] = value(f"{place}: {path}{name}", raw, of)
        except Invalid as error:
            wrong(error)
    return values_of


def value(label: str, raw: Any, kind: Any) -> Any:
    """Return the value of one setting; raises Invalid by its label."""
    if (number := _number(kind)) is not None:
        try:
            plain_numbers({label: raw})
            found = msgspec.convert(raw, kind, strict=False)
        except msgspec.ValidationError:
            found = math.nan
        if isinstance(raw, bool) or not math.isfinite(found):
            raise Invalid(label, allowed(kind), raw)
        return number(found)
    try:
        return converted(raw, kind, strict=False)
    except Invalid as error:
        expected = error.expected if error.path else f"{allowed(kind) or error.expected}{_near(raw, kind)}"
        dot = "." if error.path and not error.path.startswith("[") else ""
        raise Invalid(f"{label}{dot}{error.path}", expected, error.got) from None


def allowed(kind: Any) -> str:
    """Return in words which values a setting may have; empty: any text."""
    if number := _number(kind):
        bounds = next((part for part in get_args(kind)[1:] if isinstance(part, Meta)), Meta())
        low = bounds.ge if bounds.ge is not None else bounds.gt
        above = "more than " if bounds.gt is not None else ""
        noun = "an integer" if number is int else "a number"
        return f"{noun} from {above}{low} to {bounds.le}"
    if kind is bool:
        return "true or false"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return ""


def _near(raw: Any, kind: Any) -> str:
    words = get_args(kind) if get_origin(kind) is Literal else ()
    return close(raw, words) if isinstance(raw, str) else ""


def _number(kind: Any) -> type[int] | type[float] | None:
    bare = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    return bare if bare in (int, float) else None


def _table(kind: Any) -> type[Struct] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def _parted(text: str, kind: Any) -> Any:
    if get_origin(kind) is not tuple:
        return text
    return [part.strip() for part in text.split(",") if part.strip()]
