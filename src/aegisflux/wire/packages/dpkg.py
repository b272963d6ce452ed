"""/var/lib/dpkg/status: stanzas of `Field: value`; and the lists of files beside it, a path a line."""

import re
from collections.abc import Iterator
from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.inventory import Package
from aegisflux.wire.packages.common import (
    MAX_FILES,
    Listed,
    Parsed,
    counted,
    gives_up,
    matters,
    needed,
    path,
    text,
)

UNPACKED: Final = (b"installed", b"unpacked", b"half-configured", b"triggers-awaited", b"triggers-pending")
_FIELD: Final = re.compile(rb"^(Package|Status|Version|Architecture|Source):[ \t]*([^\r\n]*)", re.M | re.I)
_GAP: Final = re.compile(rb"\n{2,}")
_LINE: Final = re.compile(rb"^/[^\n]+", re.M)
_SOURCE: Final = re.compile(rb"([^\s(]+)(?:\s*\(\s*([^\s)]+)\s*\))?\s*", re.A)


def parse_status(data: bytes) -> Parsed:
    """The packages whose files are there. A stanza without `Status` (status.d of images) is installed."""
    found: list[Listed] = []
    troubles: list[str] = []
    for number, stanza in enumerate(_stanzas(data), 1):
        try:
            package = _package(stanza)
            if package is None:
                continue
            if gives_up(found, troubles):
                break
            found.append(Listed(package))
        except Invalid as error:
            if gives_up(found, troubles):
                break
            troubles.append(f"stanza {number}: {error}")
    return Parsed(tuple(found), counted(troubles))


def parse_list(data: bytes) -> tuple[str, ...]:
    """The files of a package that matter."""
    found: list[str] = []
    for line in _LINE.finditer(data):
        file = path(line[0])
        if file and matters(file):
            found.append(file)
            if len(found) >= MAX_FILES:
                break
    return tuple(found)


def _stanzas(data: bytes) -> Iterator[bytes]:
    at = 0
    for gap in _GAP.finditer(data):
        if data[at : gap.start()].strip():
            yield data[at : gap.start()]
        at = gap.end()
    if data[at:].strip():
        yield data[at:]


def _package(stanza: bytes) -> Package | None:
    fields: dict[bytes, bytes] = {}
    for name, value in _FIELD.findall(stanza):
        fields.setdefault(name.lower(), value)
    status = fields.get(b"status", b"install ok installed").split()
    if not status or status[-1] not in UNPACKED:
        return None
    name = needed(text(fields.get(b"package", b"")), "Package")
    version = needed(text(fields.get(b"version", b"")), f"Version of {name}")
    source, source_version = _source(fields.get(b"source", b""), version)
    return Package(
        type="deb",
        name=name,
        version=version,
        arch=text(fields.get(b"architecture", b"")),
        source=source,
        source_version=source_version,
    )


def _source(value: bytes, version: str) -> tuple[str, str]:
    found = _SOURCE.fullmatch(value)
    if found is None:
        return "", ""
    return text(found[1]), text(found[2]) if found[2] else version
