"""Who writes in a directory of the cgroup tree (ADR 0028): the one answer for services and failsafe rules."""

import os
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from aegisflux.domain.selectors import root_only
from aegisflux.domain.text import name_bytes

MEMBERS: Final = (b"cgroup.procs", b"cgroup.threads")  # who may write them may move processes


def given_by_root(folder: bytes, roots: Collection[int] = (0,)) -> bool:
    """Whether root alone makes directories in it and moves processes into it; false where it is gone."""
    try:
        found = [os.stat(folder)]  # noqa: PTH116 - a Path would be text
    except OSError:
        return False
    for name in MEMBERS:
        with suppress(OSError):
            found.append(os.stat(folder + b"/" + name))  # noqa: PTH116 - a Path would be text
    return all(root_only(one.st_uid, one.st_mode, roots) for one in found)


def named_by_root(root: bytes, path: str) -> bool:
    """Whether root alone names the cgroup at `path`, and moves processes into it from outside.

    This asks each directory above it. One that does not exist gives no name; who makes it is asked then.
    """
    here, above = root, [root]
    for part in name_bytes(path).split(b"/")[:-1]:
        here += b"/" + part
        above.append(here)
    return all(given_by_root(folder) for folder in above if os.path.lexists(folder))
