"""A cgroup that is bound at birth has a name that root gave: whoever else makes a directory of that name, in
whatever place and state, gets none of the service's rights. And what cannot be bound costs nothing else.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from aegisflux.adapters.datapath.bpf import mapping
from aegisflux.adapters.datapath.bpf.mapping import LITERALS
from aegisflux.domain.errors import AegisError, OverLimit, Refused
from aegisflux.domain.selectors import MAX_PATH, parse_selector
from aegisflux.ports.datapath import Binding
from tests.support import probes
from tests.support.kernel import Kernel
from tests.support.netns import Host, Lab, cgroup_root
from tests.support.unprivileged import UID, delegate, drop

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT = 9
CAP_DAC_OVERRIDE, CLONE_NEWUSER = 1, 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Lab() as lab, Kernel(lab) as kernel:
        lab.host("app")
        yield kernel


def by_root(path: str) -> None:
    os.mkdir(path)


def by_user(path: str) -> None:
    drop()
    os.mkdir(path)


def by_overriding_user(path: str) -> None:
    """Not root, but with the right to write where root alone writes."""
    drop(keep=(CAP_DAC_OVERRIDE,))
    os.mkdir(path)


def in_own_userns(path: str, outside: int) -> None:
    """Root of a user namespace that a user (or root without its rights) made."""
    if outside:
        drop()
    if _libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {outside} 1")
    assert os.getuid() == 0
    os.mkdir(path)


def by_users_namespace(path: str) -> None:
    in_own_userns(path, UID)


def by_roots_namespace(path: str) -> None:
    in_own_userns(path, 0)


def plain(_: Path) -> None:
    """As mkdir makes it: root's, 0755."""


def given(path: Path) -> None:
    delegate(path)


def taken_back(path: Path) -> None:
    delegate(path)
    os.chown(path, 0, 0)


def all_write(path: Path) -> None:
    path.chmod(0o777)


def group_writes(path: Path) -> None:
    os.chown(path, 0, UID)
    path.chmod(0o775)


def read_only(path: Path) -> None:
    path.chmod(0o555)


class Birth(NamedTuple):
    """The state of the parent (or of its parent: `above`), the maker of the directory, and whether the
    service gets it."""

    folder: Callable[[Path], None]
    maker: Callable[[str], None]
    bound: bool
    above: bool = False


BIRTHS = [
    Birth(plain, by_root, True),
    Birth(read_only, by_root, True),
    Birth(taken_back, by_root, True),
    Birth(given, by_root, False),
    Birth(given, by_user, False),
    Birth(given, by_root, False, above=True),
    Birth(all_write, by_root, False),
    Birth(all_write, by_user, False),
    Birth(all_write, by_root, False, above=True),
    Birth(group_writes, by_root, False),
    Birth(given, by_users_namespace, False),
    Birth(plain, by_roots_namespace, False),
    Birth(plain, by_overriding_user, False),
]


def name_of(birth: Birth) -> str:
    return f"{birth.folder.__name__}{'-above' * birth.above}-{birth.maker.__name__}"


def relative(path: Path) -> str:
    return str(path.relative_to(cgroup_root()))


def is_bound(kernel: Kernel, path: Path) -> bool:
    known = kernel.datapath._mapping
    assert known is not None
    return known._present().get(path.stat().st_ino) == SLOT


def made(host: Host, birth: Birth, folder: Path) -> Path:
    """The new directory, in a folder of that kind."""
    folder.mkdir()
    parent = folder / "inner" if birth.above else folder
    parent.mkdir(exist_ok=True)
    birth.folder(folder)
    path = parent / "web"
    host.call(in_cgroup_of_root, birth.maker, str(path))
    return path


def in_cgroup_of_root(maker: Callable[[str], None], path: str) -> None:
    with suppress(PermissionError):  # where only root may; then it is not there, and not the service's
        maker(path)


@pytest.mark.parametrize("birth", [pytest.param(b, id=name_of(b)) for b in BIRTHS])
def test_only_a_name_that_root_gave_is_bound_at_birth(kernel: Kernel, birth: Birth) -> None:
    app = kernel.lab.hosts["app"]
    folder = app.cgroup / name_of(birth)
    path = folder / "inner" / "web" if birth.above else folder / "web"
    kernel.datapath.literals({relative(path): SLOT})
    assert made(app, birth, folder) == path
    assert path.exists(), f"{birth.maker.__name__} could not make it: this proves nothing"
    assert is_bound(kernel, path) is birth.bound


def test_the_delegated_directory_itself_is_the_services(kernel: Kernel) -> None:
    """Root named it and gave it away later, as systemd does with Delegate=; a process of it is governed."""
    app = kernel.lab.hosts["app"]
    path = app.cgroup / "delegated"
    kernel.datapath.literals({relative(path): SLOT, relative(path / "sub"): SLOT + 1})
    path.mkdir()
    delegate(path)
    app.call(by_user, str(path / "sub"))
    assert is_bound(kernel, path)
    assert not is_bound(kernel, path / "sub")


@pytest.mark.parametrize("unit", ["{}", "{}@1", "my-{}@1", "{}@a-b"])
def test_a_unit_is_bound_where_systemd_makes_it(kernel: Kernel, unit: str) -> None:
    """Before any agent saw it: also an instance of a template, which has a slice of its own."""
    path = cgroup_root() / parse_selector("unit:" + unit.format(kernel.lab.name)).paths()[0]
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    kernel.datapath.literals({relative(path): SLOT})
    try:
        path.mkdir(parents=True)
        assert is_bound(kernel, path)
    finally:
        for folder in missing:
            if folder == path or folder.name.startswith("system-"):
                folder.rmdir()
            else:
                with suppress(OSError):  # another test is in system.slice
                    folder.rmdir()


OTHERS = ["x" * (MAX_PATH + 1), "x" * 255, "é" * 127, "x" * 5000, "a\0b"]


@pytest.mark.parametrize("bad", OTHERS, ids=range(len(OTHERS)))
def test_a_path_that_is_no_key_costs_itself_only(kernel: Kernel, bad: str) -> None:
    app = kernel.lab.hosts["app"]
    path = app.cgroup / f"beside{OTHERS.index(bad)}"
    with pytest.raises(Refused):
        kernel.datapath.literals({bad: SLOT, relative(path): SLOT})
    assert list(kernel.datapath.refusals()) == [bad]
    path.mkdir()
    assert is_bound(kernel, path)
    kernel.datapath.literals({})
    assert kernel.datapath.refusals() == {}


def test_the_longest_path_that_is_accepted_is_bound(kernel: Kernel) -> None:
    top = kernel.lab.hosts["app"].cgroup
    first = top / ("x" * 100)
    room = MAX_PATH - len(relative(first)) - 1
    for name, bound in (("y" * room, True), ("y" * room + "z", False)):
        path = first / name
        with suppress(Refused):
            kernel.datapath.literals({relative(first / ("y" * room)): SLOT, relative(path): SLOT})
        path.mkdir(parents=True)
        assert is_bound(kernel, path) is bound
        path.rmdir()


def test_a_full_list_of_literals_takes_those_that_fit(kernel: Kernel) -> None:
    top = "a"
    paths = {f"{top}/n{n}": SLOT for n in range(LITERALS + 5)}
    with pytest.raises(OverLimit, match="literals"):
        kernel.datapath.literals(paths)
    assert len(kernel.datapath.refusals()) == 5
    kernel.datapath.literals({})


def test_a_full_map_of_cgroups_takes_those_that_fit_and_again_when_there_is_room(kernel: Kernel) -> None:
    app = kernel.lab.hosts["app"]
    path = app.cgroup / "last"
    path.mkdir()
    mine = Binding(path.stat().st_ino, relative(path), SLOT)
    root = Binding(1, "/", SLOT)
    many = [Binding(10**12 + n, f"none/{n}", SLOT) for n in range(17_000)]
    try:
        with pytest.raises(AegisError):
            kernel.datapath.bind([root, mine, *many])
        assert is_bound(kernel, path)
        assert "/" in kernel.datapath.refusals()
        assert "cgroups" in kernel.datapath.refusals()["none/16999"]
        kernel.datapath.bind([Binding(n.cgroup_id + 10**6, n.path, SLOT) for n in many[:4000]] + [mine])
        assert kernel.datapath.refusals() == {}
    finally:
        kernel.datapath.bind([])
    assert app.call(probes.tcp, "10.77.0.1", 9, cgroup="last") != "EPERM"


def test_what_users_make_costs_an_agent_no_more_than_two_looks_at_the_tree(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a restart, when the kernel knows cgroups that the agent does not; living ones are let go."""
    top = kernel.lab.hosts["app"].cgroup
    paths = [top / f"old{n}" for n in range(2)]
    looks: list[Path] = []
    living = mapping._living

    def look(root: Path) -> dict[int, str]:
        looks.append(root)
        return living(root)

    for path in paths:
        path.mkdir()
    kernel.datapath.bind([Binding(p.stat().st_ino, relative(p), SLOT) for p in paths])
    monkeypatch.setattr(mapping, "_living", look)
    known, gone = kernel.datapath._mapping, 10**12
    assert known is not None
    known._put(gone, SLOT)  # of a cgroup that was removed, and has a socket yet: else the kernel takes it out
    known._bound = {}  # as after a restart
    for _ in range(5):
        kernel.datapath.bind([])
        kernel.datapath.mend()
    assert len(looks) == 2
    assert gone in known._present(), "sockets of a cgroup that is gone may live"
    assert not any(is_bound(kernel, path) for path in paths)
