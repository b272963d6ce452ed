"""Cgroups that failsafe rules name: a rule is about a path, and every cgroup that has it or had it.

systemd makes a service's cgroup anew at each start, with another number. The kernel adds the new number when
the path is created (`on_mkdir`), so that a rule follows its service while no agent runs; the agent adds what
was there before it, and what the kernel could not (the hook was taken away). It takes away what lies below a
directory that others than root write (ADR 0028): whenever bindings are made, and at each drift repair.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.domain.errors import Refused
from aegisflux.domain.flow import FailsafeRule
from aegisflux.domain.text import name_bytes
from aegisflux.runtime.cgroupfs import named_by_root, number_at
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
        wanted = {literal_key(path) for path in self._paths}
        for key in libbpf.keys(self._paths_fd, layout.MAX_PATH):
            if key not in wanted:
                libbpf.delete(self._paths_fd, key)
        self.mend()

    def holds(self, rule: FailsafeRule) -> bool:
        """Whether the kernel exempts what the rule names, which root alone may have named."""
        path = path_of(rule)
        return not path or libbpf.lookup(self._paths_fd, literal_key(path), 8) is not None

    def mend(self) -> bool:
        """Add what the kernel did not see, take away what not only root names; whether any changed."""
        changed = False
        for path, number in self._paths.items():
            found = number_at(self._root / path)  # whose it is, is asked after it was found
            if not named_by_root(os.fsencode(self._root), path):
                changed |= self._exempt_no_more(path, number)
                continue
            value = number.to_bytes(8, "little")
            changed |= _put(self._paths_fd, literal_key(path), value)
            with suppress(OSError):
                changed |= found is not None and _put(self._cgroups_fd, found.to_bytes(8, "little"), value)
        self._forget_gone()
        return changed

    def _exempt_no_more(self, path: str, number: int) -> bool:
        """Let the kernel add no cgroup of this path, and forget those that it has and had: a user may have
        been in them. Who gives the directory above back to root brings the rule back."""
        value, changed = number.to_bytes(8, "little"), libbpf.delete(self._paths_fd, literal_key(path))
        for key in libbpf.keys(self._cgroups_fd, 8):
            if libbpf.lookup(self._cgroups_fd, key, 8) == value:
                changed |= libbpf.delete(self._cgroups_fd, key)
        return changed

    def _forget_gone(self) -> None:
        """Bound the cgroups that are gone: those with the lowest numbers are the oldest."""
        known = sorted(int.from_bytes(key, "little") for key in libbpf.keys(self._cgroups_fd, 8))
        live = {number_at(self._root / path) for path in self._paths}
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
