"""Whether the store can hold a value that a host sent."""

import math
from collections.abc import Iterator

from msgspec import Struct

from aegisflux.domain.errors import Invalid
from aegisflux.domain.paths import step

MAX_INT = 1 << 63


def check_storable(value: object, path: str = "") -> None:
    """Raise Invalid, with the field, for what PostgreSQL cannot hold.

    That is a NUL in a text, a number of more than 64 bits, and a number that is none.

    What many hosts sent is stored in one statement, which one such value would stop for all.
    """
    if isinstance(value, Struct | dict | list | tuple):
        for where, part in _parts(value, path):
            check_storable(part, where)
    elif isinstance(value, str) and "\0" in value:
        raise Invalid(path, "a text without NUL", value)
    elif isinstance(value, int) and not -MAX_INT <= value < MAX_INT:
        raise Invalid(path, "a number of 64 bits", value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise Invalid(path, "a finite number", value)


def _parts(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Struct):
        for name in value.__struct_fields__:
            yield step(path, name), getattr(value, name)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield path, key
            yield path, one
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            yield step(path, place), one
