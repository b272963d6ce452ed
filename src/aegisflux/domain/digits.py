"""Numbers in texts: ASCII digits in their one usual spelling. `int()` and `isdigit()` also take digits of
other scripts, signs, spaces, underscores and leading zeros, which other programs read as octal."""

import re
from collections.abc import Mapping
from typing import Any, Final

from aegisflux.domain.errors import Invalid

_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,17}")
_LENIENT: Final = re.compile(r"\s*[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][+-]?\d+)?\s*")
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?")


def whole(text: str, most: int = 10**18 - 1) -> int | None:
    """Return the number from 0 to `most` that a text spells, None for anything else."""
    if not _WHOLE.fullmatch(text):
        return None
    value = int(text)
    return value if value <= most else None


def integer(text: str) -> int | None:
    """Return the number, which may be below 0, that a text spells, None for anything else."""
    return int(text) if _INTEGER.fullmatch(text) else None


def decimal(text: str) -> float | None:
    """Return the number that a text such as `12` or `0.25` spells, None for anything else."""
    return float(text) if _DECIMAL.fullmatch(text) else None


def plain_numbers(settings: Mapping[str, Any], path: str = "") -> None:
    """Raise Invalid, by name, for the text of a setting that a lenient reader takes for another number than
    is written there: `1e4`, `007`, digits of other scripts."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            plain_numbers(value, f"{path}{name}.")
        elif isinstance(value, str) and _LENIENT.fullmatch(value) and decimal(value) is None:
            raise Invalid(path + name, "a number in ASCII digits, such as 12 or 0.25", value)
