"""The `cgroup` of a failsafe line: the path of a cgroup below the v2 root, and nothing else.

The kernel compares it with the path of each new cgroup. A selector, a glob or a path of the file system would
be compared too and never match: whoever wrote it would be locked out without a word.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.globs import SPECIAL
from aegisflux.domain.selectors import named_by_others, too_long
from aegisflux.domain.text import is_printable, printable

MOUNT: Final = "sys/fs/cgroup"  # where cgroups are mounted, on every distribution
EXAMPLE: Final = "system.slice/ssh.service"
EXPECTED: Final = "the path of a cgroup below the root of the cgroup v2 tree"
_PREFIX: Final = re.compile(r"(unit|cgroup|service|slice|scope|path|systemd|docker|pod|\d*):", re.IGNORECASE)
_PROC_LINE: Final = re.compile(r"\d+:[^/:]*:")  # a line of /proc/<pid>/cgroup
_SUFFIX: Final = re.compile(r"\.[a-z]+\Z")


def failsafe_path(text: str, mounts: Iterable[str] = (), name: str = "failsafe.cgroup") -> str:
    """The path without slashes around it; raises Invalid, which says what to write instead.

    mounts: where cgroup v2 trees are mounted on this host
    """
    path = text.strip("/")
    if not path:
        raise Invalid(name, f"{EXPECTED}, such as {EXAMPLE} (leave `cgroup` out for every cgroup)", text)
    if inside := _below_mount(path, mounts):
        raise Invalid(name, f"{EXPECTED}, not of the file system (write {inside[0] or EXAMPLE})", text)
    if _PREFIX.match(path):
        raise Invalid(name, f"{EXPECTED}, not a selector (write {_meant(path)})", text)
    if SPECIAL.search(path):
        raise Invalid(name, f"{EXPECTED}, not a glob (one line for each, such as {EXAMPLE})", text)
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise Invalid(name, f"{EXPECTED}, without empty, . or .. components", text)
    if text != text.strip() or any(not (part.strip() and is_printable(part)) for part in path.split("/")):
        raise Invalid(name, f"{EXPECTED}, of printable characters without spaces around it", text)
    if why := too_long(path):
        raise Invalid(name, why, text)
    return path


def within(path: str, folder: str) -> bool:
    """Whether a cgroup is another, or lies below it; slashes around either do not count."""
    inner, outer = path.strip("/"), folder.strip("/")
    return inner == outer or inner.startswith(outer + "/")


def absent(lines: Sequence[tuple[int, str | None]], exists: Callable[[str], bool]) -> tuple[str, ...]:
    """Lines (number in the setting, cgroup) whose cgroup is not there now, in words."""
    return tuple(
        f"failsafe {number} ({printable(path)}): no such cgroup yet"
        for number, path in lines
        if path is not None and not exists(path.strip("/"))
    )


def void(lines: Iterable[tuple[int, str | None]], delegated: Collection[str]) -> tuple[str, ...]:
    """Lines (number in the setting, cgroup) that exempt nothing now, since others than root give what they
    name its name (ADR 0028), in words."""
    return tuple(
        printable(f"failsafe {number} ({path}): exempts nothing: {why}")
        for number, path in lines
        if path is not None and (why := named_by_others(path.strip("/"), delegated))
    )


def _below_mount(path: str, mounts: Iterable[str]) -> tuple[str] | None:
    """What is meant below a mount of cgroups, None where the path lies below none."""
    folders: Collection[str] = {*(mount.strip("/") for mount in mounts), MOUNT} - {""}
    for folder in sorted(folders, key=len, reverse=True):
        if within(path, folder):
            return (path[len(folder) :].strip("/"),)
    return None


def _meant(path: str) -> str:
    """The path that a selector, or a line of /proc/<pid>/cgroup, stands for."""
    kind, _, rest = path.partition(":")
    rest = rest.strip("/ ")
    if found := _PROC_LINE.match(path):
        rest = path[found.end() :].strip("/ ")
    if not rest or SPECIAL.search(rest) or not is_printable(rest):
        return EXAMPLE
    if kind.lower() in ("unit", "service"):
        return f"system.slice/{rest if _SUFFIX.search(rest) else rest + '.service'}"
    return rest
