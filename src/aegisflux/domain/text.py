"""Text that a terminal, JSON and MessagePack can carry, made from names that are bytes.

Names of cgroups, files and processes are bytes. Inside a process they are decoded with `surrogateescape`,
so that the same bytes reach the kernel again; whatever leaves the process is made `printable` first.
"""

from typing import Final

_BYTES: Final = range(0xDC80, 0xDD00)  # what surrogateescape makes of a byte that is not UTF-8


def printable(name: str | bytes) -> str:
    r"""Return the name as valid UTF-8 in which every character without a glyph is escaped.

    A byte that is not UTF-8 and an ASCII control become `\xff` and `\x1b`, any other character without a
    glyph (C1 controls, bidirectional overrides, line separators, lone surrogates) `\u202e`. The result is for
    people and records: a backslash is kept as it is, so the original name cannot be told from it.
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def name_bytes(name: str) -> bytes:
    """Return the bytes of a name that was decoded with `surrogateescape`."""
    return name.encode("utf-8", "surrogateescape")


def _escape(point: int) -> str:
    if point in _BYTES:
        return f"\\x{point - 0xDC00:02x}"
    if point < 0x80:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"
