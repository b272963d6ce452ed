"""The programs in the kernel: load them over pinned maps, attach them by pinned links, or take both over.

Pins lie in `<bpffs>/aegisflux/<instance>/v<layout>/`: `maps/<name>` and `links/<name>`. A restart is an
upgrade: new programs over the same maps, and each link exchanged in place.
"""

import ctypes
import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_void_p
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf, objects
from aegisflux.domain.errors import Unavailable
from aegisflux.wire.layout import LAYOUT

BPF_FS_MAGIC: Final = 0xCAFE4A11
ATTACH: Final = {
    "aegis_ingress": 0, "aegis_egress": 1, "aegis_create": 2, "aegis_sockops": 3,
    "aegis_connect4": 10, "aegis_connect6": 11, "aegis_sendmsg4": 14, "aegis_sendmsg6": 15,
    "aegis_option": 22,
}  # fmt: skip
ORDER: Final = (
    "aegis_create", "aegis_option", "aegis_sockops", "aegis_connect4", "aegis_connect6", "aegis_sendmsg4",
    "aegis_sendmsg6", "aegis_egress", "aegis_ingress",
)  # fmt: skip
TRACEPOINTS: Final = {"aegis_mkdir": "cgroup_mkdir", "aegis_release": "cgroup_release"}
"""Programs that hear of cgroups wherever they are made, and of which tracepoint."""
CUTTERS: Final = ("aegis_cut_tcp", "aegis_cut_udp")
SETTLE: Final = "aegis_settle"
"""Moves what waits in flows' records to the accounts; pinned for who reads these."""
NO_PACKET: Final = bytes(64)
"""What a test run wants at least."""
OBJECT: Final = "aegis.bpf.o"
FOLDER: Final = "aegisflux"
CONNTRACK: Final = Path("/sys/kernel/btf/nf_conntrack")
"""Types of the connection tracking where it is a module, which comes with the first rule that needs it."""


def object_path(name: str = OBJECT) -> Path:
    """Compiled programs: in the wheel, or in the checkout. Raises Unavailable."""
    package = Path(__file__).resolve().parents[3]
    for path in (package / "_bpf" / name, package.parents[1] / "bpf" / "build" / name):
        if path.exists():
            return path
    raise Unavailable(f"{name} is neither in the package nor in bpf/build; run make -C bpf")


def mounted_bpffs(path: Path) -> None:
    """Make sure that a BPF file system is there. Raises Unavailable."""
    if _is_bpffs(path):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
    if libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700"):
        raise Unavailable(
            f"{path} is no BPF file system and cannot be mounted: {os.strerror(ctypes.get_errno())}"
        )


def private_folder(path: Path) -> Path:
    """Make a folder that root alone can enter; raises OSError, or Unavailable where another user prevents it.

    By the kernel's defaults anyone may make folders in a BPF file system. One that another user made before
    us, or could open and lock, would keep us from our own pins.
    """
    for _ in range(8):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            path.chmod(0o700)
            return path
        _take_from(path)
    raise Unavailable(f"{path}: user {found.st_uid} makes it again and again; it must be root's alone")


def _take_from(path: Path) -> None:
    """Take away what another user made; where we pinned something below it, make it ours instead."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
    elif not any(files for _, _, files in os.walk(path)):
        shutil.rmtree(path)
    else:
        for folder, _, _ in os.walk(path):
            os.chown(folder, os.geteuid(), os.getegid(), follow_symlinks=False)


def _is_bpffs(path: Path) -> bool:
    buffer = (ctypes.c_long * 32)()
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.statfs(os.fsencode(path), buffer) == 0 and buffer[0] & 0xFFFFFFFF == BPF_FS_MAGIC


class Pinned:
    """One instance's maps, programs and links."""

    def __init__(self, attach: Path, instance: str, bpffs: Path, path: Path | None = None) -> None:
        self.attach, self.bpffs, self._path = attach, bpffs, path
        self.top = bpffs / FOLDER / instance
        self.home = self.top / f"v{LAYOUT}"
        self.maps: dict[str, int] = {}
        self.programs: dict[str, int] = {}
        self.cutters = False
        self._object: libbpf.Object | None = None
        self._former: list[libbpf.Object] = []
        self._knew_conntrack = False
        self._locks: list[int] = []

    @property
    def is_open(self) -> bool:
        return self._object is not None

    def program(self, name: str) -> c_void_p:
        assert self._object is not None
        return self._object.programs()[name]

    def open(self, prepare: Callable[[], None]) -> bool:
        """Load, let the caller prepare the maps, attach; True where nothing of this layout was attached
        before. What another layout has attached judges on, until `retire`. Raises Unavailable."""
        if self._object is not None:
            return False
        mounted_bpffs(self.bpffs)
        self._make_home()
        try:
            self._load()
            prepare()
            fresh = not any((self.home / "links").iterdir())
            self._attach_all()
        except OSError as err:
            self.close()
            raise Unavailable(f"datapath at {self.attach}: {err}") from None
        return fresh

    def close(self) -> None:
        """Let go of descriptors and the lock; pins stay."""
        if self._object is not None:
            self._object.close()
        for former in self._former:
            former.close()
        self._object, self._former = None, []
        self.maps, self.programs = {}, {}
        while self._locks:
            os.close(self._locks.pop())

    def remove(self) -> None:
        """Detach everything at once and unpin it, whoever attached it."""
        for home in self.top.glob("v*"):
            _detach(home)
        self.close()
        erase(self.top)

    def retire(self) -> bool:
        """Detach and unpin what other layouts left; whether there was anything."""
        others = self.others()
        for home in others:
            _detach(home)
            erase(home)
        return bool(others)

    def others(self) -> list[Path]:
        """The homes of other layouts."""
        return [home for home in self.top.glob("v*") if home != self.home]

    def mend(self, may_attach: Callable[[], bool] = lambda: True) -> list[str]:
        """Attach and pin again what somebody took away; its names. `may_attach` is asked at the last moment.
        Raises Unavailable."""
        assert self._object is not None
        try:
            missing = [name for name in self.maps if not (self.home / "maps" / name).exists()]
            loose = [name for name in (*ORDER, *TRACEPOINTS) if not self._is_attached(name)]
            if (missing or loose) and not may_attach():
                raise Unavailable("this instance is in panic: its programs are not attached again")
            if missing:
                self._make_home()
                for name in missing:
                    libbpf.pin(self.maps[name], str(self.home / "maps" / name))
            if not self._knew_conntrack and CONNTRACK.exists():
                self._reload()
            if loose:
                self._attach_all()
        except OSError as err:
            raise Unavailable(f"datapath at {self.attach}: {err}") from None
        return loose or missing

    def _is_attached(self, name: str) -> bool:
        try:
            link = libbpf.obj_get(str(self.home / "links" / name))
        except OSError:
            return False
        try:
            found = objects.link(link)
        finally:
            os.close(link)
        ours = objects.program(self.programs[name]).number
        return found.program == ours and (name in TRACEPOINTS or found.cgroup != 0)

    def attached(self) -> list[str]:
        """Names of the links that are pinned. Raises PermissionError: the folder is root's alone."""
        with suppress(FileNotFoundError):
            return sorted(p.name for p in (self.home / "links").iterdir())
        return []

    def _make_home(self) -> None:
        """Our folders, and the locks: ours, and those of agents of other layouts."""
        private_folder(self.top.parent)
        for folder in (self.home / "maps", self.home / "links"):
            folder.mkdir(parents=True, exist_ok=True)
        held = {os.fstat(fd).st_ino for fd in self._locks}
        for home in self.top.glob("v*"):
            if home.stat().st_ino not in held:
                self._take_lock(home)

    def _take_lock(self, home: Path) -> None:
        fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            self.close()
            raise Unavailable(f"{home}: another agent of this instance holds the datapath") from None
        self._locks.append(fd)

    def _load(self) -> None:
        libbpf.last_words()
        self._knew_conntrack = CONNTRACK.exists()
        found = libbpf.Object(str(self._path or object_path()))
        try:
            self.cutters = libbpf.kernel_has_function("bpf_sock_destroy")
            for name in () if self.cutters else CUTTERS:
                found.without(name)
            names = [
                name for name in found.maps() if not name.startswith((".", "aegis_b")) and "." not in name
            ]
            taken = self._reuse(found, names)
            found.load()
            self.maps = {name: found.map_fd(name) for name in names}
            skipped = () if self.cutters else CUTTERS
            self.programs = {name: found.prog_fd(name) for name in found.programs() if name not in skipped}
            for name in names:
                if name not in taken:
                    libbpf.pin(self.maps[name], str(self.home / "maps" / name))
            settle = self.home / SETTLE
            settle.unlink(missing_ok=True)
            libbpf.pin(self.programs[SETTLE], str(settle))
        except OSError as err:
            found.close()
            words = libbpf.last_words().splitlines()[-4:]
            raise Unavailable(f"{err}: {' / '.join(words)}") from None
        self._object = found

    def _reload(self) -> None:
        """Exchange the programs in place: they are relocated against the types that the kernel knows at their
        loading. The object before stays open, since its maps' descriptors are in use."""
        maps, former = self.maps, self._object
        assert former is not None
        self._load()
        self.maps = maps
        self._former.append(former)
        self._attach_all()

    def _reuse(self, found: libbpf.Object, names: list[str]) -> set[str]:
        taken = set()
        for name in names:
            path = self.home / "maps" / name
            if path.exists():
                fd = libbpf.obj_get(str(path))
                found.reuse(name, fd)
                os.close(fd)
                taken.add(name)
        return taken

    def _attach_all(self) -> None:
        target = os.open(self.attach, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in ORDER:
                self._attach(name, target)
        finally:
            os.close(target)
        for name, tracepoint in TRACEPOINTS.items():
            pin = self.home / "links" / name
            pin.unlink(missing_ok=True)
            link = libbpf.raw_tracepoint(tracepoint, self.programs[name])
            libbpf.pin(link, str(pin))
            os.close(link)

    def _attach(self, name: str, target: int) -> None:
        pin = self.home / "links" / name
        if pin.exists():
            link = libbpf.obj_get(str(pin))
            try:
                libbpf.link_update(link, self.programs[name])
                return
            except OSError:
                pin.unlink()
            finally:
                os.close(link)
        link = libbpf.link_create(self.programs[name], target, ATTACH[name])
        try:
            libbpf.pin(link, str(pin))
        finally:
            os.close(link)


def _detach(home: Path) -> None:
    """End all links of a layout, those that judge packets first; a link that another process holds too."""
    for name in sorted(_names(home / "links"), key=lambda n: n not in ("aegis_egress", "aegis_ingress")):
        pin = home / "links" / name
        with suppress(OSError):
            fd = libbpf.obj_get(str(pin))
            libbpf.lib().bpf_link_detach(fd)
            os.close(fd)
        pin.unlink(missing_ok=True)


def erase(top: Path) -> None:
    """Unpin everything; somebody else may be doing the same, so that what was listed may be gone."""
    for home, folders, pins in os.walk(top, topdown=False):  # `rglob` raises where a folder goes meanwhile
        folder = Path(home)
        links = [name for name in folders if (folder / name).is_symlink()]
        for name in (*pins, *links):
            (folder / name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            folder.rmdir()


def _names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return sorted(path.name for path in folder.iterdir())
    return []
