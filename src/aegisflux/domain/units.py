r"""How systemd names the cgroups of its units, as far as a name alone tells.

Sources: `unit_name_is_valid`, `slice_build_parent_slice`, `unit_set_default_slice` and `cg_needs_escape` of
systemd. A unit without `Slice=` is in `system.slice`; an instance of a template in a slice of the template;
a slice is where the dashes of its name say.
"""

import re
from typing import Final

DEFAULT_SLICE: Final = "system.slice"
WITH_CGROUPS: Final = ("service", "socket", "scope", "slice", "mount", "swap")
_SUFFIX: Final = re.compile(rf"\.({'|'.join(WITH_CGROUPS)}|device|automount|target|path|timer)\Z")
_AT_ROOT: Final = ("init.scope", "-.mount")  # units that systemd starts with, in its root slice
_SLICE: Final = ".slice"
_KNOWN: Final = (
    "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids", "bpf-firewall", "bpf-devices",
    "bpf-foreign", "bpf-socket-bind", "bpf-restrict-network-interfaces", "bpf-bind-network-interface",
)  # fmt: skip
_KERNELS: Final = ("hugetlb", "rdma", "misc", "dmem", "perf_event", "net_cls", "net_prio", "freezer", "debug")
_TAKEN: Final = re.compile(r"[._]|cgroup\.|(notify_on_release|release_agent|tasks)\Z")
_CONTROLLER_NAME: Final = re.compile(rf"({'|'.join(_KNOWN)})\.[^.]*\Z")
_CONTROLLER: Final = re.compile(rf"({'|'.join((*_KNOWN, *_KERNELS))})\.")


def suffix_of(name: str) -> str | None:
    """The type of unit that a name ends with, None where it ends with none."""
    found = _SUFFIX.search(name)
    return found[1] if found else None


def is_slice(name: str) -> bool:
    """Whether it is the name of a slice."""
    return name.endswith(_SLICE)


def slice_names(name: str) -> tuple[str, ...]:
    """The slices from the root of the tree down to this one: `a-b.slice` is in `a.slice`.

    Empty where systemd has no slice of that name, and for the root, `-.slice`.
    """
    parts = name.removesuffix(_SLICE).split("-")
    if "" in parts or "@" in name:
        return ()
    return tuple("-".join(parts[:n]) + _SLICE for n in range(1, len(parts) + 1))


def own_place(name: str) -> tuple[str, ...]:
    """Names from the root of the tree to a unit that has one place only; empty for one of any slice."""
    if is_slice(name):
        return slice_names(name)
    return (name,) if name in _AT_ROOT else ()


def has_place_in(path: tuple[str, ...], place: tuple[str, ...], top: tuple[str, ...]) -> bool:
    """Whether a path is a slice's place inside of another slice, at `top`; the tree may begin anywhere."""
    own = slice_names(top[-1])
    root = top[: len(top) - len(own)]
    return len(place) > len(own) and place[: len(own)] == own and top == root + own and path == root + place


def default_paths(name: str) -> tuple[str, ...]:
    """Where the cgroup of a unit is unless its host says otherwise.

    Which names are escaped differs between versions of systemd; then there is more than one path.
    """
    place = own_place(name) or (*_default_slices(name), name)
    every = ("/".join(map(directory, place)) for directory in (_directory, _older_directory))
    return tuple(dict.fromkeys(every))


def unescaped(directory: str) -> str:
    """The name of the unit whose directory it is."""
    return directory.removeprefix("_")


def _default_slices(unit: str) -> tuple[str, ...]:
    template, _, instance = unit.rpartition(".")[0].partition("@")
    if not (template and instance):
        return (DEFAULT_SLICE,)
    return DEFAULT_SLICE, f"system-{_escaped(template)}.slice"


def _escaped(name: str) -> str:
    r"""A part of a unit's name as systemd escapes it: `-` is `\x2d`, since it separates slices."""
    plain = re.compile(r"[A-Za-z0-9:_.]")
    return "".join(
        char if plain.fullmatch(char) and not (at == 0 and char == ".") else _hex(char)
        for at, char in enumerate(name)
    )


def _hex(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode())


def _directory(unit: str) -> str:
    """With `_` before it where the kernel may use such a name itself: all that begins like a controller's."""
    return "_" + unit if _TAKEN.match(unit) or _CONTROLLER.match(unit) else unit


def _older_directory(unit: str) -> str:
    """As before systemd 253: of controllers, only those that it knows and that are all before the suffix."""
    return "_" + unit if _TAKEN.match(unit) or _CONTROLLER_NAME.match(unit) else unit
