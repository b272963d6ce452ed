"""Whose programs are, and that an instance is in panic: two small maps that the kernel finds by their names.

The owner's map is bound to each program of an instance, so that a panic that finds a program knows whose it
is, whatever happened to pins, notes and state folders. The marker of a panic is pinned in the BPF file system
but found by its name, so that an agent sees it that has another one, or had its own mounted anew.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from aegisflux.adapters.datapath.bpf import libbpf, objects
from aegisflux.adapters.datapath.bpf.pins import mounted_bpffs, private_folder
from aegisflux.domain.errors import BROKEN
from aegisflux.domain.panic import DAMAGED, Owner, Panic

OWNER: Final = "aegis_instance"
MARKER: Final = "aegis_panic"
SIZE: Final = 4096
MARKERS: Final = "aegisflux-panic"
FIRST: Final = bytes(4)


class Marked(Panic, frozen=True):
    """A marker's value: a panic, the instance that it is about, and where its agent is found."""

    instance: str = ""
    bpffs: str = ""
    state_dir: str = ""


def bind_owner(owner: Owner, programs: list[int]) -> None:
    """Let these programs say whose they are. A kernel that cannot bind maps leaves them nameless."""
    with suppress(OSError):
        fd = _made(OWNER, msgspec.json.encode(owner))
        try:
            libbpf.map_freeze(fd)
            for program in programs:
                objects.bind_map(program, fd)
        finally:
            os.close(fd)


def owner_of(maps: tuple[int, ...], known: dict[int, Owner | None]) -> Owner | None:
    """The owner that one of a program's maps names; `known` keeps what was read, by the map's number."""
    for number in maps:
        if number not in known:
            known[number] = None
            with suppress(OSError, *BROKEN), objects.by_number(libbpf.BPF_MAP_GET_FD_BY_ID, number) as fd:
                if objects.map_name(fd) == OWNER:
                    known[number] = msgspec.json.decode(_value(fd), type=Owner)
        if (owner := known[number]) is not None:
            return owner
    return None


class Marker:
    """The marker of one instance's panic in the kernel: a medium of `agent.panics.Flags`."""

    def __init__(self, instance: str, bpffs: Path, state_dir: str = "") -> None:
        self._where = (instance, str(bpffs), state_dir)
        self.name = f"the kernel ({bpffs / MARKERS})"
        self._instance, self._pin, self._bpffs = instance, bpffs / MARKERS / instance, bpffs

    def read(self, thorough: bool = False, /) -> Panic | None:
        """What the marker says. `thorough` looks through all maps of the kernel, else only at its pin."""
        if self._pin.exists():
            fd = libbpf.obj_get(str(self._pin))
            try:
                return _word(fd)
            finally:
                os.close(fd)
        return next((word for _, word in self._found()), None) if thorough else None

    def write(self, word: Panic) -> None:
        """Say this; raises OSError, or Unavailable without a BPF file system."""
        value = _padded(msgspec.json.encode(Marked(word.at, word.why[:1000], word.ended, *self._where)))
        found = False
        for fd, _ in self._found():
            libbpf.update(fd, FIRST, value)
            found = True
        if found and self._pin.exists():
            return
        mounted_bpffs(self._bpffs)
        private_folder(self._pin.parent)
        fd = _made(MARKER, value.rstrip(b"\0"))
        try:
            self._pin.unlink(missing_ok=True)
            libbpf.pin(fd, str(self._pin))
        finally:
            os.close(fd)

    def delete(self) -> None:
        """Say nothing any more. Raises OSError where it is pinned in a read-only file system."""
        self._pin.unlink(missing_ok=True)
        for fd, word in self._found():  # pinned elsewhere: what cannot be unpinned says that it has ended
            libbpf.update(fd, FIRST, _padded(msgspec.json.encode(Marked(word.at, "", True, *self._where))))
        with suppress(OSError):
            self._pin.parent.rmdir()

    def _found(self) -> Iterator[tuple[int, Panic]]:
        return ((fd, _panic(one)) for fd, one in _markers() if one.instance == self._instance)


def owners_marked() -> list[Owner]:
    """Whose panics are marked in this kernel, wherever the markers are pinned."""
    return [Owner(one.instance, one.bpffs, one.state_dir) for _, one in _markers() if not one.ended]


def marked(folder: Path) -> list[str]:
    """Instances that have a marker in this BPF file system."""
    with suppress(OSError):
        return sorted(path.name for path in (folder / MARKERS).iterdir())
    return []


def _markers() -> Iterator[tuple[int, Marked]]:
    """Every marker of this kernel with its descriptor, which is closed when the next is asked for. A map that
    is none of ours, of the same name, hides no other."""
    with suppress(OSError):
        for fd in objects.maps_named(MARKER):
            with suppress(OSError, *BROKEN):
                yield fd, msgspec.json.decode(_value(fd), type=Marked)


def _word(fd: int) -> Panic:
    try:
        return _panic(msgspec.json.decode(_value(fd), type=Marked))
    except BROKEN:
        return Panic(DAMAGED, "the marker in the kernel is damaged")


def _panic(found: Marked) -> Panic:
    return Panic(found.at, found.why, found.ended)


def _made(name: str, value: bytes) -> int:
    fd = libbpf.map_create(libbpf.ARRAY, name, 4, SIZE, 1)
    libbpf.update(fd, FIRST, _padded(value))
    return fd


def _padded(value: bytes) -> bytes:
    return value[:SIZE].ljust(SIZE, b"\0")


def _value(fd: int) -> bytes:
    _, _, key, size, _ = libbpf.map_info(fd)
    if (key, size) != (4, SIZE):
        raise OSError(22, "another map of this name")
    return (libbpf.lookup(fd, FIRST, SIZE) or b"").rstrip(b"\0")
