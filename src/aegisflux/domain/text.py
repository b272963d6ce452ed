"""Text that a terminal, JSON and MessagePack can carry, made from names that are bytes.

Names of cgroups, files and processes are bytes. Inside a process they are decoded with `surrogateescape`,
so that the same bytes reach the kernel again; whatever leaves the process is made `printable` first.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

_BYTES: Final = range(0xDC80, 0xDD00)  # what surrogateescape makes of a byte that is not UTF-8
# Characters that Python calls printable and that no one sees: joiners, fillers, variation selectors, a blank.
_UNSEEN: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def printable(name: str | bytes) -> str:
    r"""Return the name as valid UTF-8 in which every character without a glyph is escaped.

    A byte that is not UTF-8 and an ASCII control become `\xff` and `\x1b`, any other character without a
    glyph (C1 controls, bidirectional overrides, zero-width characters, line separators, lone surrogates)
    `\u202e`. The result is for people and records: a backslash is kept as it is, so the original name cannot
    be told from it.
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escape(ord(char)) for char in text)
    return _UNSEEN.sub(_escaped, text)


def is_printable(name: str) -> bool:
    """Return whether `printable` leaves the name as it is."""
    return name.isprintable() and _UNSEEN.search(name) is None


def seen(name: str) -> str:
    """Return the name without the characters that have no glyph."""
    return _UNSEEN.sub("", "".join(char for char in name if char.isprintable() or char.isspace()))


def paragraph(text: str) -> str:
    """Return a message of several lines with each made `printable`; those after the first are indented, so
    that a text from elsewhere cannot begin a line and pass for one of ours.
    """
    first, *others = text.split("\n")
    return "\n".join(
        [printable(first), *(f"  {printable(line.rstrip())}" for line in others if line.strip())]
    )


def first_of(names: Sequence[str], most: int, mark: str = ", ") -> str:
    """Return the first of these names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return mark.join(names[:most]) + more


def encodable(text: str) -> str:
    """Return the text with lone surrogates escaped as `printable` does, and all else as it is.

    UTF-8, JSON and MessagePack can hold it.
    """
    return _SURROGATE.sub(_escaped, text)


def encodable_all(value: Any) -> Any:
    """Return a value of JSON in which every text, also of a key, is `encodable`."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {
            encodable(key) if isinstance(key, str) else key: encodable_all(one) for key, one in value.items()
        }
    return [encodable_all(one) for one in value] if isinstance(value, list | tuple) else value


def name_bytes(name: str) -> bytes:
    """Return the bytes of a name that was decoded with `surrogateescape`."""
    return name.encode("utf-8", "surrogateescape")


def _escaped(found: re.Match[str]) -> str:
    return _escape(ord(found[0]))


def _escape(point: int) -> str:
    if point in _BYTES:
        return f"\\x{point - 0xDC00:02x}"
    if point < 0x80:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"
