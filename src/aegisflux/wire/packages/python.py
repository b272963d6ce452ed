"""What lies beside an installed Python package: METADATA or PKG-INFO, RECORD, entry_points.txt."""

import re
from collections.abc import Iterable
from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.inventory import Package
from aegisflux.wire.packages.common import MAX_FILES, text

_NAME: Final = re.compile(r"[A-Z0-9](?:[A-Z0-9._-]*[A-Z0-9])?", re.I | re.A)
_HEADER: Final = re.compile(rb"(Name|Version):[ \t]*(.*)", re.I)
_RECORDED: Final = re.compile(rb'^"?((?:\.\./)+bin/[^/",\r\n]+)[",]', re.M)
_SECTION: Final = re.compile(r"\[(.*)\]")
_SCRIPTS: Final = ("console_scripts", "gui_scripts")


def normalised(name: str) -> str:
    """A project's name by PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_metadata(data: bytes, where: str) -> Package:
    """The package of METADATA or PKG-INFO; raises Invalid without a name and a version."""
    found: dict[str, str] = {}
    for line in data.replace(b"\r\n", b"\n").split(b"\n"):
        if not line.strip():
            break
        field = _HEADER.fullmatch(line)
        if field:
            found.setdefault(field[1].decode().lower(), text(field[2]))
    name, version = found.get("name", ""), found.get("version", "")
    if not _NAME.fullmatch(name):
        raise Invalid("Name", "a project's name", name)
    if not version:
        raise Invalid(f"Version of {name}", "a value", version)
    return Package(type="pypi", name=normalised(name), version=version, where=where)


def recorded(record: bytes, site: str, prefix: str) -> tuple[str, ...]:
    """Programs of a RECORD, which lies in the folder `site`: those in `bin` of its own environment only."""
    depth = site.removeprefix(prefix).count("/")
    up = b"../" * depth + b"bin/"
    names = (raw[len(up) :] for raw in _RECORDED.findall(record) if raw.startswith(up))
    return _programs((text(name) for name in names), prefix)


def declared(entry_points: bytes, prefix: str) -> tuple[str, ...]:
    """Programs that entry_points.txt asks for."""
    section = ""
    names: list[str] = []
    for line in entry_points.decode("utf-8", "replace").splitlines():
        head = _SECTION.fullmatch(line.strip())
        if head:
            section = head[1].strip()
        elif section in _SCRIPTS and "=" in line and not line.lstrip().startswith(("#", ";")):
            names.append(line.partition("=")[0].strip())
    return _programs((text(name.encode("utf-8", "replace")) for name in names), prefix)


def _programs(names: Iterable[str], prefix: str) -> tuple[str, ...]:
    good = {name for name in names if name not in ("", ".", "..") and "/" not in name}
    return tuple(f"{prefix.rstrip('/')}/bin/{name}" for name in sorted(good)[:MAX_FILES])
