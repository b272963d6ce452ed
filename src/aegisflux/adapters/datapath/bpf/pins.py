"""The programs in the kernel: load them over pinned maps, attach them by pinned links, or take both over.

Pins lie in `<bpffs>/aegisflux/<instance>/v<layout>/`: `maps/<name>` and `links/<name>`. A restart is an
upgrade: new programs over the same maps, and each link exchanged in place.
"""

import ctypes
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_void_p
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.domain.errors import Unavailable
from aegisflux.wire.layout import LAYOUT

BPF_FS_MAGIC: Final = 0xCAFE4A11
ATTACH: Final = {
    "aegis_ingress": 0, "aegis_egress": 1, "aegis_create": 2, "aegis_sockops": 3,
    "aegis_connect4": 10, "aegis_connect6": 11, "aegis_sendmsg4": 14, "aegis_sendmsg6": 15,
}  # fmt: skip
ORDER: Final = (
    "aegis_create", "aegis_sockops", "aegis_connect4", "aegis_connect6", "aegis_sendmsg4", "aegis_sendmsg6",
    "aegis_egress", "aegis_ingress",
)  # fmt: skip
MKDIR: Final = "aegis_mkdir"
CUTTERS: Final = ("aegis_cut_tcp", "aegis_cut_udp")
OBJECT: Final = "aegis.bpf.o"


def object_path() -> Path:
    """The compiled programs: in the wheel, or in the checkout. Raises Unavailable."""
    package = Path(__file__).resolve().parents[3]
    for path in (package / "_bpf" / OBJECT, package.parents[1] / "bpf" / "build" / OBJECT):
        if path.exists():
            return path
    raise Unavailable(f"{OBJECT} is neither in the package nor in bpf/build; run make -C bpf")


def mounted_bpffs(path: Path) -> None:
    """Make sure that a BPF file system is there. Raises Unavailable."""
    if _is_bpffs(path):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
    if libc.mount(b"bpf", str(path).encode(), b"bpf", 0, None):
        raise Unavailable(
            f"{path} is no BPF file system and cannot be mounted: {os.strerror(ctypes.get_errno())}"
        )


def _is_bpffs(path: Path) -> bool:
    buffer = (ctypes.c_long * 32)()
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.statfs(str(path).encode(), buffer) == 0 and buffer[0] & 0xFFFFFFFF == BPF_FS_MAGIC


class Pinned:
    """One instance's maps, programs and links."""

    def __init__(self, attach: Path, instance: str, bpffs: Path, path: Path | None = None) -> None:
        self.attach, self.bpffs, self._path = attach, bpffs, path
        self.top = bpffs / "aegisflux" / instance
        self.home = self.top / f"v{LAYOUT}"
        self.maps: dict[str, int] = {}
        self.programs: dict[str, int] = {}
        self.cutters = False
        self._object: libbpf.Object | None = None
        self._lock: int | None = None

    @property
    def is_open(self) -> bool:
        return self._object is not None

    def program(self, name: str) -> c_void_p:
        assert self._object is not None
        return self._object.programs()[name]

    def open(self, prepare: Callable[[], None]) -> bool:
        """Load, let the caller prepare the maps, attach; True where nothing of this instance was attached
        before. Raises Unavailable."""
        if self._object is not None:
            return False
        mounted_bpffs(self.bpffs)
        for folder in (self.home / "maps", self.home / "links"):
            folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._load()
            prepare()
            fresh = not any((self.home / "links").iterdir())
            self._attach_all()
            self._remove_others()
        except OSError as err:
            self.close()
            raise Unavailable(f"datapath at {self.attach}: {err}") from None
        return fresh

    def close(self) -> None:
        """Let go of descriptors and the lock; pins stay."""
        if self._object is not None:
            self._object.close()
        self._object = None
        self.maps, self.programs = {}, {}
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def remove(self) -> None:
        """Detach everything at once and unpin it, whoever attached it."""
        for links in self.top.glob("v*/links"):
            names = sorted(p.name for p in links.iterdir())
            for name in sorted(names, key=lambda n: n not in ("aegis_egress", "aegis_ingress")):
                with suppress(OSError):
                    fd = libbpf.obj_get(str(links / name))
                    libbpf.lib().bpf_link_detach(fd)
                    os.close(fd)
                (links / name).unlink(missing_ok=True)
        self.close()
        for path in sorted(self.top.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        with suppress(OSError):
            self.top.rmdir()

    def attached(self) -> list[str]:
        """Names of the links that are pinned."""
        folder = self.home / "links"
        return sorted(p.name for p in folder.iterdir()) if folder.exists() else []

    def _take_lock(self) -> None:
        self._lock = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise Unavailable(f"{self.home}: another agent of this instance holds the datapath") from None

    def _load(self) -> None:
        libbpf.last_words()
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
        except OSError as err:
            found.close()
            words = libbpf.last_words().splitlines()[-4:]
            raise Unavailable(f"{err}: {' / '.join(words)}") from None
        self._object = found

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
        pin = self.home / "links" / MKDIR
        pin.unlink(missing_ok=True)
        link = libbpf.raw_tracepoint("cgroup_mkdir", self.programs[MKDIR])
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

    def _remove_others(self) -> None:
        """Other layouts' links and maps: ours are attached now."""
        for other in self.top.glob("v*"):
            if other != self.home:
                for path in sorted(other.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
                other.rmdir()
