"""A thin binding to libbpf 1: file descriptors and bytes, no policy. Errors are OSError with the errno."""

import ctypes
import ctypes.util
import os
import struct
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any, Final

from aegisflux.domain.errors import Unavailable

BPF_ANY: Final = 0
ARRAY, LRU_HASH = 2, 9
F_INNER_MAP: Final = 1 << 12
BPF_MAP_FREEZE, BPF_OBJ_GET_INFO_BY_FD, BPF_MAP_GET_FD_BY_ID = 22, 15, 14
_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
LOG_BYTES: Final = 16 << 20
DEBUG: Final = 2  # LIBBPF_DEBUG


class _Sized(ctypes.Structure):
    sz: int

    def __init__(self, **fields: Any) -> None:
        super().__init__(sz=ctypes.sizeof(type(self)), **fields)


class MapCreateOpts(_Sized):
    _fields_ = [
        ("sz", c_size_t), ("btf_fd", c_uint32), ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32), ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32), ("map_flags", c_uint32), ("map_extra", c_uint64),
        ("numa_node", c_uint32), ("map_ifindex", c_uint32),
    ]  # fmt: skip


class BatchOpts(_Sized):
    _fields_ = [("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64)]


class TestRunOpts(_Sized):
    _fields_ = [
        ("sz", c_size_t), ("data_in", c_void_p), ("data_out", c_void_p), ("data_size_in", c_uint32),
        ("data_size_out", c_uint32), ("ctx_in", c_void_p), ("ctx_out", c_void_p), ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32), ("retval", c_uint32), ("repeat", c_int), ("duration", c_uint32),
        ("flags", c_uint32), ("cpu", c_uint32), ("batch_size", c_uint32),
    ]  # fmt: skip


PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
SAMPLE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)

_POINTERS: Final = (
    "bpf_object__open_file", "bpf_object__find_map_by_name", "bpf_object__find_program_by_name",
    "bpf_object__next_map", "bpf_object__next_program", "bpf_program__attach_iter", "ring_buffer__new",
    "bpf_object__btf", "btf__type_by_id",
    "bpf_map__name", "bpf_program__name", "bpf_map__inner_map",
)  # fmt: skip


@cache
def lib() -> ctypes.CDLL:
    """libbpf, with its complaints kept for `last_words`. Raises Unavailable where it is not installed."""
    try:
        found = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as err:
        raise Unavailable(f"libbpf.so.1 cannot be loaded ({err}); install the package libbpf1") from None
    for name in _POINTERS:
        getattr(found, name).restype = c_void_p
    for name in ("bpf_map__name", "bpf_program__name", "btf__name_by_offset"):
        getattr(found, name).restype = c_char_p
    found.libbpf_set_print(_PRINTER)
    return found


_WORDS: list[str] = []


def _keep(level: int, form: bytes, args: int) -> int:
    """Warnings, and information. Of what is for debugging there are a thousand lines for each load."""
    if level >= DEBUG:
        return 0
    text = ctypes.create_string_buffer(LOG_BYTES)
    ctypes.CDLL(None).vsnprintf(text, len(text), form, c_void_p(args))
    _WORDS.append(text.value.decode(errors="replace").rstrip())
    del _WORDS[:-40]
    return 0


_PRINTER: Final = PRINT(_keep)


def last_words() -> str:
    """What libbpf printed last, newest last; then forgotten."""
    text = "\n".join(_WORDS)
    _WORDS.clear()
    return text


def check(result: int, what: str) -> int:
    """The result, or OSError."""
    if result < 0:
        code = ctypes.get_errno() or -result
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def not_null(pointer: int | None, what: str) -> c_void_p:
    if not pointer:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return c_void_p(pointer)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _number() -> int:
    return _SYS_BPF.get(os.uname().machine, 321)


class Attr(ctypes.Union):
    """The attribute of the system call, as 32-bit or as 64-bit fields."""

    _fields_ = [("words", c_uint32 * 36), ("longs", c_uint64 * 18)]


def bpf(
    number_of_command: int, words: dict[int, int] | None = None, longs: dict[int, int] | None = None
) -> int:
    """The bare system call with the attribute's 32- and 64-bit fields by their index."""
    attr = Attr()
    for i, word in (words or {}).items():
        attr.words[i] = word
    for i, number in (longs or {}).items():
        attr.longs[i] = number
    return command(number_of_command, attr)


def command(number_of_command: int, attr: Attr) -> int:
    """The system call, which may write into the attribute."""
    return check(
        _libc().syscall(_number(), number_of_command, byref(attr), ctypes.sizeof(attr)),
        f"bpf command {number_of_command}",
    )


def map_create(kind: int, name: str, key: int, value: int, entries: int, flags: int = 0) -> int:
    """A new map's descriptor."""
    opts = MapCreateOpts(map_flags=flags)
    return check(
        lib().bpf_map_create(kind, name.encode()[:15], key, value, entries, byref(opts)), f"map {name}"
    )


def map_freeze(fd: int) -> None:
    bpf(BPF_MAP_FREEZE, {0: fd})


def map_fd_by_id(number: int) -> int:
    return bpf(BPF_MAP_GET_FD_BY_ID, {0: number})


def object_info(fd: int, info: bytes) -> bytes:
    """What the kernel says of an object, as large as `info`, which holds what the kernel is asked for."""
    buffer = ctypes.create_string_buffer(info, len(info))
    bpf(BPF_OBJ_GET_INFO_BY_FD, {0: fd, 1: len(info)}, {1: ctypes.addressof(buffer)})
    return buffer.raw


def map_info(fd: int) -> tuple[int, int, int, int, int]:
    """(type, id, key size, value size, entries)."""
    kind, number, key, value, entries = struct.unpack_from("=5I", object_info(fd, bytes(80)))
    return kind, number, key, value, entries


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """The value, or None where the key is not there."""
    value = ctypes.create_string_buffer(size)
    if lib().bpf_map_lookup_elem(fd, key, value) < 0:
        if ctypes.get_errno() == 2:
            return None
        check(-1, "map look-up")
    return value.raw


def update(fd: int, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
    check(lib().bpf_map_update_elem(fd, key, value, c_uint64(flags)), "map update")


def delete(fd: int, key: bytes) -> bool:
    """Whether it was there."""
    if lib().bpf_map_delete_elem(fd, key) < 0:
        if ctypes.get_errno() == 2:
            return False
        check(-1, "map delete")
    return True


def keys(fd: int, size: int) -> list[bytes]:
    """All keys; a map that changes meanwhile may show one twice or not at all."""
    found: list[bytes] = []
    key, following = None, ctypes.create_string_buffer(size)
    while lib().bpf_map_get_next_key(fd, key, following) == 0:
        found.append(following.raw)
        key = following.raw
    return found


def is_empty(fd: int, size: int) -> bool:
    """Whether a hash map has no entry."""
    if lib().bpf_map_get_next_key(fd, None, ctypes.create_string_buffer(size)) == 0:
        return False
    return ctypes.get_errno() == 2 or check(-1, "looking into a map") == 0


def fill(fd: int, values: bytes, size: int) -> None:
    """Write elements 0.. of an array map in one batch."""
    total = len(values) // size
    count = c_uint32(total)
    numbers = (c_uint32 * total)(*range(total))
    opts = BatchOpts()
    check(
        lib().bpf_map_update_batch(fd, numbers, values, byref(count), byref(opts)), f"filling {total} blocks"
    )
    if count.value != total:
        raise OSError(5, f"filling {total} blocks: the kernel took {count.value}")


def read_all(fd: int, size: int, total: int) -> bytes:
    """All elements of an array map."""
    values = ctypes.create_string_buffer(size * total)
    numbers, done = (c_uint32 * total)(), 0
    position, at = c_uint32(0), None
    opts = BatchOpts()
    while done < total:
        count = c_uint32(total - done)
        result = lib().bpf_map_lookup_batch(
            fd,
            at,
            byref(position),
            byref(numbers, 4 * done),
            byref(values, size * done),
            byref(count),
            byref(opts),
        )
        done += count.value
        at = byref(position)
        if result < 0:
            if ctypes.get_errno() == 2:
                break
            check(result, "reading back")
        if not count.value:
            break
    return ctypes.string_at(values, size * done)


def read_hash(fd: int, key_size: int, value_size: int, chunk: int = 4096) -> list[tuple[bytes, bytes]]:
    """All entries of a hash map that nobody changes meanwhile."""
    found: list[tuple[bytes, bytes]] = []
    names = ctypes.create_string_buffer(key_size * chunk)
    values = ctypes.create_string_buffer(value_size * chunk)
    position, at, opts = c_uint32(0), None, BatchOpts()
    while True:
        count = c_uint32(chunk)
        result = lib().bpf_map_lookup_batch(fd, at, byref(position), names, values, byref(count), byref(opts))
        if result < 0 and ctypes.get_errno() != 2:
            check(result, "reading a hash map")
        all_names, all_values = names.raw, values.raw
        found += [
            (all_names[i * key_size : (i + 1) * key_size], all_values[i * value_size : (i + 1) * value_size])
            for i in range(count.value)
        ]
        if result < 0:
            return found
        at = byref(position)


def pin(fd: int, path: str) -> None:
    check(lib().bpf_obj_pin(fd, os.fsencode(path)), f"pin {path}")


def obj_get(path: str) -> int:
    return check(lib().bpf_obj_get(os.fsencode(path)), f"pin {path}")


def link_create(prog: int, target: int, attach_type: int) -> int:
    return check(lib().bpf_link_create(prog, target, attach_type, None), "link")


def link_update(link: int, prog: int) -> None:
    check(lib().bpf_link_update(link, prog, None), "link update")


def raw_tracepoint(name: str, prog: int) -> int:
    return check(lib().bpf_raw_tracepoint_open(name.encode(), prog), f"raw tracepoint {name}")


def run_program(prog: int, data: bytes, ctx: bytes = b"", repeat: int = 1) -> tuple[int, int]:
    """(return value, ns a run) of a program over one packet with its Ethernet header."""
    packet = ctypes.create_string_buffer(data, len(data))
    context = ctypes.create_string_buffer(ctx, len(ctx)) if ctx else None
    opts = TestRunOpts(
        data_in=ctypes.addressof(packet), data_size_in=len(data), repeat=repeat,
        ctx_in=ctypes.addressof(context) if context is not None else None, ctx_size_in=len(ctx),
    )  # fmt: skip
    check(lib().bpf_prog_test_run_opts(prog, byref(opts)), "test run")
    return opts.retval, opts.duration


def run_iterator(program: c_void_p) -> bytes:
    """Attach an iterator, read it to its end (in the caller's network namespace), detach; what it wrote."""
    link = not_null(lib().bpf_program__attach_iter(program, None), "iterator")
    try:
        fd = check(lib().bpf_iter_create(lib().bpf_link__fd(link)), "iterator")
        try:
            text = b""
            while part := os.read(fd, 65536):
                text += part
            return text
        finally:
            os.close(fd)
    finally:
        lib().bpf_link__destroy(link)


class Ring:
    """The consumer of a ring buffer; `fd` is readable while something waits."""

    def __init__(self, map_fd: int, take: Callable[[bytes], bool]) -> None:
        """`take` gets each record and says whether to go on."""
        self._sample = SAMPLE(lambda _ctx, data, size: 0 if take(ctypes.string_at(data, size)) else -11)
        self._ring = not_null(lib().ring_buffer__new(map_fd, self._sample, None, None), "ring buffer")
        self.fd: int = lib().ring_buffer__epoll_fd(self._ring)

    def consume(self) -> None:
        lib().ring_buffer__consume(self._ring)

    def close(self) -> None:
        if self._ring.value:
            lib().ring_buffer__free(self._ring)
            self._ring = c_void_p(None)


class Object:
    """An opened BPF object file: maps and programs by name, before and after loading."""

    def __init__(self, path: str) -> None:
        self._ptr = not_null(lib().bpf_object__open_file(os.fsencode(path), None), path)

    def maps(self) -> dict[str, c_void_p]:
        return self._walk("map")

    def programs(self) -> dict[str, c_void_p]:
        return self._walk("program")

    def _walk(self, noun: str) -> dict[str, c_void_p]:
        following, name_of = getattr(lib(), f"bpf_object__next_{noun}"), getattr(lib(), f"bpf_{noun}__name")
        found: dict[str, c_void_p] = {}
        pointer = following(self._ptr, None)
        while pointer:
            found[name_of(c_void_p(pointer)).decode()] = c_void_p(pointer)
            pointer = following(self._ptr, c_void_p(pointer))
        return found

    def reuse(self, name: str, fd: int) -> None:
        check(lib().bpf_map__reuse_fd(self.maps()[name], fd), f"map {name}")

    def without(self, name: str) -> None:
        """Do not load this program."""
        check(lib().bpf_program__set_autoload(self.programs()[name], False), name)

    def load(self) -> None:
        """Raises OSError; `last_words` holds the verifier's."""
        check(lib().bpf_object__load(self._ptr), "loading the BPF object")

    def map_fd(self, name: str) -> int:
        return check(lib().bpf_map__fd(self.maps()[name]), f"map {name}")

    def prog_fd(self, name: str) -> int:
        return check(lib().bpf_program__fd(self.programs()[name]), f"program {name}")

    def close(self) -> None:
        if self._ptr.value:
            lib().bpf_object__close(self._ptr)
            self._ptr = c_void_p(None)


def kernel_has_function(name: str) -> bool:
    """Whether the kernel's BTF knows a function of that name."""
    lib().btf__load_vmlinux_btf.restype = c_void_p
    btf = lib().btf__load_vmlinux_btf()
    if not btf:
        return False
    try:
        return bool(lib().btf__find_by_name_kind(c_void_p(btf), name.encode(), 12) > 0)
    finally:
        lib().btf__free(c_void_p(btf))
