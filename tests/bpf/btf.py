"""Sizes and field offsets of structures, from the BTF of the compiled object."""

import ctypes
from ctypes import c_char_p, c_uint32, c_void_p
from pathlib import Path
from typing import NamedTuple

from aegisflux.adapters.datapath.bpf import libbpf


class Type(ctypes.Structure):
    _fields_ = [("name", c_uint32), ("info", c_uint32), ("size", c_uint32)]


class Member(ctypes.Structure):
    _fields_ = [("name", c_uint32), ("type", c_uint32), ("offset", c_uint32)]


class Shape(NamedTuple):
    size: int
    fields: dict[str, int]


def shapes(path: Path) -> dict[str, Shape]:
    """Every structure of the object: its size, and its fields' offsets in bytes."""
    lib = libbpf.lib()
    lib.btf__parse.restype = lib.btf__type_by_id.restype = c_void_p
    lib.btf__name_by_offset.restype = c_char_p
    btf = c_void_p(lib.btf__parse(str(path).encode(), None))

    def name(offset: int) -> str:
        return bytes(lib.btf__name_by_offset(btf, offset)).decode()

    found = {}
    for number in range(1, lib.btf__type_cnt(btf)):
        at = lib.btf__type_by_id(btf, number)
        kind = Type.from_address(at)
        if kind.info >> 24 & 31 != 4 or not name(kind.name):
            continue
        members = (Member * (kind.info & 0xFFFF)).from_address(at + ctypes.sizeof(Type))
        found[name(kind.name)] = Shape(kind.size, {name(m.name): (m.offset & 0xFFFFFF) // 8 for m in members})
    lib.btf__free(btf)
    return found
