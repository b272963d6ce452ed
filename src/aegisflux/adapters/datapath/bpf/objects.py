"""BPF objects of this kernel by number: programs, links and maps, whoever made them."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from aegisflux.adapters.datapath.bpf import libbpf

PROG_DETACH: Final = 9
PROG_GET_NEXT_ID, MAP_GET_NEXT_ID, LINK_GET_NEXT_ID = 11, 12, 31
PROG_GET_FD_BY_ID, LINK_GET_FD_BY_ID = 13, 30
PROG_QUERY, LINK_DETACH, PROG_BIND_MAP = 16, 34, 35
CGROUP: Final = 3  # of enum bpf_link_type
MAX_MAPS: Final = 256
MAX_ATTACHED: Final = 64
NAME: Final = 16


class Program(NamedTuple):
    """`name` is cut to 15 characters by the kernel."""

    number: int
    kind: int
    name: str
    maps: tuple[int, ...]


class Link(NamedTuple):
    """`cgroup` is 0 where the link is detached, and for other kinds than CGROUP."""

    number: int
    kind: int
    program: int
    cgroup: int
    attach_type: int


def programs() -> Iterator[Program]:
    """Yield every program. Raises OSError where the kernel does not let us."""
    for number in _numbers(PROG_GET_NEXT_ID):
        with suppress(FileNotFoundError), by_number(PROG_GET_FD_BY_ID, number) as fd:
            yield program(fd)


def numbered(number: int) -> Program | None:
    """The program of this number, None where it went. Raises OSError."""
    with suppress(FileNotFoundError), by_number(PROG_GET_FD_BY_ID, number) as fd:
        return program(fd)
    return None


def program(fd: int) -> Program:
    """The program behind a descriptor."""
    maps = (ctypes.c_uint32 * MAX_MAPS)()
    info = bytearray(232)
    info[52:56] = MAX_MAPS.to_bytes(4, "little")
    info[56:64] = ctypes.addressof(maps).to_bytes(8, "little")
    found = libbpf.object_info(fd, bytes(info))
    count = min(_u32(found, 52), MAX_MAPS)
    return Program(_u32(found, 4), _u32(found, 0), _text(found[64 : 64 + NAME]), tuple(maps[:count]))


def links() -> Iterator[Link]:
    """Yield every link. Raises OSError."""
    for number in _numbers(LINK_GET_NEXT_ID):
        with suppress(FileNotFoundError), by_number(LINK_GET_FD_BY_ID, number) as fd:
            yield link(fd)


def link(fd: int) -> Link:
    """The link behind a descriptor."""
    found = libbpf.object_info(fd, bytes(64))
    kind = _u32(found, 0)
    of_cgroup = kind == CGROUP
    cgroup = int.from_bytes(found[16:24], "little") if of_cgroup else 0
    return Link(_u32(found, 4), kind, _u32(found, 8), cgroup, _u32(found, 24) if of_cgroup else 0)


def maps_named(name: str) -> Iterator[int]:
    """Yield a descriptor of each map of that name, closed when the next is asked for. Raises OSError."""
    for number in _numbers(MAP_GET_NEXT_ID):
        with suppress(FileNotFoundError), by_number(libbpf.BPF_MAP_GET_FD_BY_ID, number) as fd:
            if map_name(fd) == name:
                yield fd


def map_name(fd: int) -> str:
    """The name of a map, at most 15 characters."""
    return _text(libbpf.object_info(fd, bytes(80))[24 : 24 + NAME])


def bind_map(prog: int, map_fd: int) -> None:
    """Let a program hold a map that its code does not use. Raises OSError."""
    libbpf.bpf(PROG_BIND_MAP, {0: prog, 1: map_fd})


def detach_link(number: int) -> None:
    """End a link of a cgroup at once, whoever holds it. Raises OSError."""
    with by_number(LINK_GET_FD_BY_ID, number) as fd:
        libbpf.bpf(LINK_DETACH, {0: fd})


def attached_to(cgroup: int, attach_type: int) -> list[int]:
    """Numbers of the programs that are attached at the cgroup behind a descriptor, by links or without."""
    found = (ctypes.c_uint32 * MAX_ATTACHED)()
    attr = libbpf.Attr()
    attr.words[0], attr.words[1] = cgroup, attach_type
    attr.longs[2], attr.words[6] = ctypes.addressof(found), MAX_ATTACHED
    try:
        libbpf.command(PROG_QUERY, attr)
    except OSError:  # an attach type that this kernel does not know
        return []
    return list(found[: min(attr.words[6], MAX_ATTACHED)])


def detach_program(cgroup: int, number: int, attach_type: int) -> None:
    """Undo BPF_PROG_ATTACH. Raises OSError."""
    with by_number(PROG_GET_FD_BY_ID, number) as fd:
        libbpf.bpf(PROG_DETACH, {0: cgroup, 1: fd, 2: attach_type})


@contextmanager
def by_number(command: int, number: int) -> Iterator[int]:
    """A descriptor of an object. Raises FileNotFoundError where it went meanwhile."""
    fd = libbpf.bpf(command, {0: number})
    try:
        yield fd
    finally:
        os.close(fd)


def _numbers(command: int) -> Iterator[int]:
    number = 0
    while True:
        attr = libbpf.Attr()
        attr.words[0] = number
        try:
            libbpf.command(command, attr)
        except FileNotFoundError:
            return
        number = attr.words[1]
        yield number


def _u32(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "little")


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
