"""Cgroups that failsafe rules name: a rule is about a path, and every cgroup that has it or had it.

systemd makes a service's cgroup anew at each start, with another number. The kernel adds the new number when
the path is created (`on_mkdir`), so that a rule follows its service while no agent runs; the agent adds what
was there before it, and what the kernel could not (the hook was taken away).
"""

from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.domain.errors import Refused
from aegisflux.domain.flow import FailsafeRule
from aegisflux.domain.selectors import root_only
from aegisflux.domain.text import name_bytes
from aegisflux.wire import layout

MAX_GONE: Final = 1024  # of cgroups that are gone; the map has room for 4,096


class FollowedCgroups:
    """The maps `failsafe_paths` and `failsafe_cgroups`."""

    def __init__(self, maps: dict[str, int], root: Path) -> None:
        self._paths_fd, self._cgroups_fd = maps["failsafe_paths"], maps["failsafe_cgroups"]
        self._root = root
        self._paths: dict[str, int] = {}

    def follow(self, rules: Iterable[FailsafeRule]) -> None:
        """Make these rules' cgroups the followed ones; those that a path had before stay known."""
        self._paths = {path: name_of(path) for rule in rules if (path := path_of(rule))}
        wanted = {literal_key(path): number.to_bytes(8, "little") for path, number in self._paths.items()}
        for key in libbpf.keys(self._paths_fd, layout.MAX_PATH):
            if key not in wanted:
                libbpf.delete(self._paths_fd, key)
        self.mend()

    def mend(self) -> bool:
        """Put back what is missing, and what the kernel did not see; whether anything was."""
        changed = False
        for path, number in self._paths.items():
            key, value = literal_key(path), number.to_bytes(8, "little")
            changed |= _put(self._paths_fd, key, value)
            with suppress(OSError):
                found = (self._root / path).stat().st_ino
                if self._is_named_by_root(path):
                    changed |= _put(self._cgroups_fd, found.to_bytes(8, "little"), value)
        self._forget_gone()
        return changed

    def _is_named_by_root(self, path: str) -> bool:
        """Whether only root can have given a directory its name; see `domain.selectors`."""
        above = [(self._root / path).parents[i].stat() for i in range(path.count("/") + 1)]
        return all(root_only(one.st_uid, one.st_mode) for one in above)

    def _forget_gone(self) -> None:
        """Bound the cgroups that are gone: those with the lowest numbers are the oldest."""
        known = sorted(int.from_bytes(key, "little") for key in libbpf.keys(self._cgroups_fd, 8))
        live = set()
        for path in self._paths:
            with suppress(OSError):
                live.add((self._root / path).stat().st_ino)
        gone = [number for number in known if number not in live]
        for number in gone[:-MAX_GONE] if len(gone) > MAX_GONE else ():
            libbpf.delete(self._cgroups_fd, number.to_bytes(8, "little"))


def path_of(rule: FailsafeRule) -> str:
    """The cgroup's path without slashes around it, empty where the rule is about every cgroup."""
    return (rule.cgroup or "").strip("/")


def name_of(path: str) -> int:
    """A number for a path, the same for every agent: never 0."""
    return int.from_bytes(sha256(name_bytes(path)).digest()[:8], "little") or 1


def literal_key(path: str) -> bytes:
    """A path as the kernel's map holds it; raises Refused where it is too long."""
    raw = name_bytes("/" + path.strip("/"))
    if b"\0" in raw:
        raise Refused("cgroup path with a NUL byte: expected none")
    if len(raw) >= layout.MAX_PATH - 1:  # a longer path, cut off by the kernel, must equal none
        raise Refused(f"cgroup path of {len(raw)} bytes: expected fewer than {layout.MAX_PATH - 1}")
    return raw.ljust(layout.MAX_PATH, b"\0")


def _put(fd: int, key: bytes, value: bytes) -> bool:
    if libbpf.lookup(fd, key, len(value)) == value:
        return False
    libbpf.update(fd, key, value)
    return True
