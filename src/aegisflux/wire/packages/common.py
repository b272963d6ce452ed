"""What the parsers share: what they give back, bounded texts, and which files of a package matter."""

import re
from typing import Final

from msgspec import Struct

from aegisflux.domain.errors import Invalid
from aegisflux.domain.inventory import MAX_PACKAGES, Package

MAX_TEXT: Final = 256
MAX_PATH: Final = 4096
MAX_FILES: Final = 2_000
TOLD: Final = 3
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PROGRAM_FOLDERS: Final = ("/bin", "/sbin", "/usr/games")
_OTHER_FOLDERS: Final = ("/usr/lib", "/lib", "/opt/")


class Listed(Struct, frozen=True):
    """A package as its database has it, and those of its files that `matters` names."""

    package: Package
    files: tuple[str, ...] = ()


class Parsed(Struct, frozen=True):
    """All that could be read, and what could not, in words."""

    listed: tuple[Listed, ...] = ()
    troubles: tuple[str, ...] = ()


def text(raw: bytes) -> str:
    """Bytes as a short text; what is not UTF-8, and control characters, stand as U+FFFD."""
    return _CONTROL.sub("\ufffd", raw[: MAX_TEXT * 4].strip().decode("utf-8", "replace"))[:MAX_TEXT]


def path(raw: bytes) -> str:
    """Bytes as an absolute path, empty for what is none, is too long, or no UTF-8."""
    if len(raw) > MAX_PATH or not raw.startswith(b"/"):
        return ""
    try:
        found = raw.decode()
    except UnicodeDecodeError:
        return ""
    return "" if _CONTROL.search(found) else found


def matters(file: str) -> bool:
    """Whether a file of a package may be a program, or tells of a Python package."""
    folder, _, name = file.rpartition("/")
    if folder.endswith(_PROGRAM_FOLDERS):
        return True
    if is_metadata(file):
        return True
    return "." not in name and folder.startswith(_OTHER_FOLDERS)


def is_metadata(file: str) -> bool:
    """Whether a file tells of a Python package."""
    told = file.endswith((".dist-info/METADATA", ".egg-info/PKG-INFO", ".egg-info"))
    return told and "-packages/" in file


def needed(value: str, what: str) -> str:
    """The value; raises Invalid when it is empty."""
    if not value:
        raise Invalid(what, "a value", value)
    return value


def gives_up(found: list[Listed], troubles: list[str]) -> bool:
    """Whether there are more packages, or troubles, than anybody wants; the first trouble then says so."""
    for what, count in (("packages", len(found)), ("troubles", len(troubles))):
        if count >= MAX_PACKAGES:
            troubles.insert(0, f"more than {MAX_PACKAGES} {what}")
            return True
    return False


def counted(troubles: list[str]) -> tuple[str, ...]:
    """The first troubles, and how many more there were."""
    more = len(troubles) - TOLD
    return (*troubles[:TOLD], *([f"{more} more"] if more > 0 else []))
