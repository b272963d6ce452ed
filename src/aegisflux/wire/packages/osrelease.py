"""/etc/os-release: assignments of a shell."""

import re
from typing import Final

from aegisflux.domain.inventory import System
from aegisflux.wire.packages.common import text

_LINE: Final = re.compile(rb"[ \t]*([A-Z][A-Z0-9_]*)=(.*)")
_ESCAPE: Final = re.compile(rb'\\([$"\'\\`])')


def parse_os_release(data: bytes, kernel: str, arch: str) -> System:
    """The system that the file names; a file without ID is that of `linux`, as its manual says."""
    found: dict[bytes, str] = {}
    for line in data.split(b"\n"):
        match = _LINE.fullmatch(line.strip())
        if match:
            found[match[1]] = text(_unquoted(match[2]))
    return System(
        id=found.get(b"ID", "linux") or "linux",
        version_id=found.get(b"VERSION_ID", ""),
        name=found.get(b"PRETTY_NAME", "") or found.get(b"NAME", ""),
        kernel=text(kernel.encode("utf-8", "replace")),
        arch=text(arch.encode("utf-8", "replace")),
    )


def _unquoted(value: bytes) -> bytes:
    if len(value) >= 2 and value[:1] == value[-1:] and value[:1] in (b"'", b'"'):
        inner = value[1:-1]
        return inner if value[:1] == b"'" else _ESCAPE.sub(rb"\1", inner)
    return _ESCAPE.sub(rb"\1", value)
