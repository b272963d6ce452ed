"""/lib/apk/db/installed: stanzas of `X:value`. F is a folder, the R after it are its files."""

from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.inventory import MAX_PACKAGES, Package
from aegisflux.wire.packages.common import MAX_FILES, Listed, Parsed, counted, matters, needed, path, text

_FIELDS: Final = (b"P", b"V", b"A", b"o")


def parse_installed(data: bytes) -> Parsed:
    """All packages."""
    found: list[Listed] = []
    troubles: list[str] = []
    fields: dict[bytes, str] = {}
    files: list[str] = []
    folder = b"/"
    for number, line in enumerate((*data.split(b"\n"), b""), 1):
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
            if len(found) >= MAX_PACKAGES:
                troubles.append(f"more than {MAX_PACKAGES} packages")
                break
            try:
                found += [Listed(_package(fields), tuple(files))] if fields else []
            except Invalid as error:
                troubles.append(f"stanza before line {number}: {error}")
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
