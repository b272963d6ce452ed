"""The `cgroup` of a failsafe line: the path of a cgroup below the v2 root, and nothing else.

The kernel compares it with the path of each new cgroup. A selector, a glob or a path of the file system would
be compared too and never match: whoever wrote it would be locked out without a word.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from aegisflux.domain.cgroup_paths import EXPECTED, misread
from aegisflux.domain.errors import Invalid
from aegisflux.domain.globs import SPECIAL
from aegisflux.domain.selectors import named_by_others, too_long
from aegisflux.domain.text import is_printable, printable

EXAMPLE: Final = "system.slice/ssh.service"


def failsafe_path(text: str, mounts: Iterable[str] = (), name: str = "failsafe.cgroup") -> str:
    """The path without slashes around it; raises Invalid, which says what to write instead.

    mounts: where cgroup v2 trees are mounted on this host
    """
    path = text.strip("/")
    if not path:
        raise Invalid(name, f"{EXPECTED}, such as {EXAMPLE} (leave `cgroup` out for every cgroup)", text)
    if wrong := misread(path, mounts):
        write = wrong.meant if wrong.meant and not SPECIAL.search(wrong.meant) else EXAMPLE
        raise Invalid(name, f"{EXPECTED}, not {wrong.kind} (write {write})", text)
    if SPECIAL.search(path):
        raise Invalid(name, f"{EXPECTED}, not a glob (one line for each, such as {EXAMPLE})", text)
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise Invalid(name, f"{EXPECTED}, without empty, . or .. components", text)
    if text != text.strip() or any(not (part.strip() and is_printable(part)) for part in path.split("/")):
        raise Invalid(name, f"{EXPECTED}, of printable characters without spaces around it", text)
    if why := too_long(path):
        raise Invalid(name, why, text)
    return path


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
