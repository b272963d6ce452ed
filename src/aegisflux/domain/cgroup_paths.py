"""What is no path of a cgroup although it may look like one: where it is written, it would never match.

One meaning for the `cgroup` of failsafe lines, for selectors and for the setting `unit_slices`.
"""

import re
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from aegisflux.domain.globs import SPECIAL
from aegisflux.domain.text import is_printable
from aegisflux.domain.units import WITH_CGROUPS

EXPECTED: Final = "the path of a cgroup below the root of the cgroup v2 tree"
MOUNTS: Final = ("sys/fs/cgroup", "sys/fs/cgroup/unified")  # where distributions mount the tree
_PREFIX: Final = re.compile(r"(unit|cgroup|service|slice|scope|path|systemd|docker|pod|\d*):", re.IGNORECASE)
_PROC_LINE: Final = re.compile(r"\d+:[^/:]*:")  # a line of /proc/<pid>/cgroup
_SUFFIX: Final = re.compile(r"\.[a-z]+\Z")
_UNIT_FILE: Final = re.compile(r"(?:etc|run|lib|usr/lib|usr/local/lib)/systemd/system/(?:.*/)?([^/]+)")
_LIST: Final = re.compile(rf"\{{[^{{}}]*,[^{{}}]*\}}|\.(?:{'|'.join(WITH_CGROUPS)}),")


class Misread(NamedTuple):
    """What a text is instead of a path, and the path that is meant, empty where that is not known."""

    kind: str
    meant: str


def misread(text: str, mounts: Iterable[str] = ()) -> Misread | None:
    """What a text is instead of the path of a cgroup or a glob over such paths; None where it may be one.

    mounts: where cgroup v2 trees are mounted, beside where distributions mount them
    """
    path = text.strip("/")
    if (inside := below_mount(path, mounts)) is not None:
        return Misread("of the file system", inside)
    if found := _UNIT_FILE.fullmatch(path):
        return Misread("of the file system", _of_unit(found[1]))
    if _PREFIX.match(path):
        return Misread("a selector", _meant(path))
    if _LIST.search(path) or path.startswith("!"):
        return Misread("a list or a negation (one for each)", "")
    return None


def below_mount(path: str, mounts: Iterable[str] = ()) -> str | None:
    """What is meant below a mount of cgroups, None where the path lies below none."""
    folders: Collection[str] = {*(mount.strip("/") for mount in mounts), *MOUNTS} - {""}
    for folder in sorted(folders, key=len, reverse=True):
        if within(path, folder):
            return path.strip("/")[len(folder) :].strip("/")
    return None


def within(path: str, folder: str) -> bool:
    """Whether a cgroup is another, or lies below it; slashes around either do not count."""
    inner, outer = path.strip("/"), folder.strip("/")
    return inner == outer or inner.startswith(outer + "/")


def _meant(path: str) -> str:
    """The path that a selector, or a line of /proc/<pid>/cgroup, stands for."""
    kind, _, rest = path.partition(":")
    rest = rest.strip("/ ")
    if found := _PROC_LINE.match(path):
        rest = path[found.end() :].strip("/ ")
    if not rest or not is_printable(rest):
        return ""
    return _of_unit(rest) if kind.lower() in ("unit", "service") else rest


def _of_unit(name: str) -> str:
    if SPECIAL.search(name):
        return ""
    return f"system.slice/{name if _SUFFIX.search(name) else name + '.service'}"
