"""/lib/apk/db/installed: stanzas of `X:value`. F is a folder, the R after it are its files."""

import re
from itertools import chain
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

_LINES: Final = re.compile(rb"[^\n]+|\n{2,}")  # all that lies between stanzas is one
_FIELDS: Final = (b"P", b"V", b"A", b"o")


def parse_installed(data: bytes) -> Parsed:
    """All packages."""
    found: list[Listed] = []
    troubles: list[str] = []
    fields: dict[bytes, str] = {}
    files: list[str] = []
    folder = b"/"
    number = 0
    for line in chain((match[0] for match in _LINES.finditer(data)), (b"",)):
        key, _, value = line.rstrip(b"\r").partition(b":")
        if key in _FIELDS:
            fields.setdefault(key, text(value))
        elif key == b"F":
            folder = b"/" + value + b"/" if value else b"/"
        elif key == b"R":
            file = path(folder + value)
            if len(files) < MAX_FILES and file and matters(file):
                files.append(file)
        elif not line.strip():
            number += 1
            if fields and gives_up(found, troubles):
                break
            try:
                found += [Listed(_package(fields), tuple(files))] if fields else []
            except Invalid as error:
                troubles.append(f"stanza {number}: {error}")
            fields, files, folder = {}, [], b"/"
    return Parsed(tuple(found), counted(troubles))


def _package(fields: dict[bytes, str]) -> Package:
    name = needed(fields.get(b"P", ""), "P")
    version = needed(fields.get(b"V", ""), f"V of {name}")
    origin = fields.get(b"o", "")
    own = origin in ("", name)
    return Package(
        type="apk",
        name=name,
        version=version,
        arch=fields.get(b"A", ""),
        source="" if own else origin,
        source_version="" if own else version,
    )
