"""What agents of other layouts left judging: which cgroups their maps bind, and taking over from them.

Only what layouts have in common is read: the pinned maps `cgroups` (u64 id to u32 slot), `literals` (path to
slot) and `controls` (whose epoch voids what sockets remember). A map of another form is left alone.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.control import Control
from aegisflux.wire import layout

ID_SIZE: Final = 8
SLOT_SIZE: Final = 4


def bound(homes: Collection[Path]) -> dict[int, int]:
    """The slot of each cgroup that one of these layouts binds; the agent's own cgroup is none."""
    found: dict[int, int] = {}
    for home in homes:
        for fd in _pinned(home, "cgroups", ID_SIZE, SLOT_SIZE):
            for key in libbpf.keys(fd, ID_SIZE):
                value = libbpf.lookup(fd, key, SLOT_SIZE)
                slot = int.from_bytes(value or b"", "little")
                if value is not None and slot < layout.SLOT_AGENT:
                    found[int.from_bytes(key, "little")] = slot
    return found


def hand_over(homes: Collection[Path], ids: Collection[int], kept: Collection[str]) -> None:
    """Let these layouts bind these cgroups no more, and at birth none but the `kept` paths."""
    names = {b"/" + os.fsencode(path.strip("/")) for path in kept}
    for home in homes:
        changed = False
        for fd in _pinned(home, "cgroups", ID_SIZE, SLOT_SIZE):
            for number in ids:
                changed |= libbpf.delete(fd, number.to_bytes(ID_SIZE, "little"))
        for fd in _pinned(home, "literals", layout.MAX_PATH, SLOT_SIZE):
            for key in libbpf.keys(fd, layout.MAX_PATH):
                if key.rstrip(b"\0") not in names:
                    libbpf.delete(fd, key)
        if changed:
            _void(home)


def _void(home: Path) -> None:
    """Void what sockets remember of their slot."""
    for fd in _pinned(home, "controls", SLOT_SIZE, layout.CONTROL.size):
        control = Control(fd)
        control.raise_epoch()
        control.close()


def _pinned(home: Path, name: str, key_size: int, value_size: int) -> Iterator[int]:
    """Yield the pinned map of this name, nothing where there is none of this form."""
    fd = None
    with suppress(OSError):
        fd = libbpf.obj_get(str(home / "maps" / name))
    if fd is None:
        return
    try:
        if libbpf.map_info(fd)[2:4] == (key_size, value_size):
            yield fd
    finally:
        os.close(fd)
