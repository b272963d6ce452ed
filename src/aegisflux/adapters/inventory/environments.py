"""Python environments: those of the system, those that lie where people put them, those of processes.

A prefix is an environment when it has `lib/python3*/site-packages` or `dist-packages`. The search is bounded
in depth and number, follows no links, and does not enter file systems that another host or a user serves.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from aegisflux.adapters.inventory.tree import Folder, Tree
from aegisflux.domain.errors import Invalid
from aegisflux.runtime import procfs
from aegisflux.wire.packages import python
from aegisflux.wire.packages.common import Listed, Parsed, counted

MAX_ENVIRONMENTS: Final = 256
MAX_OF_PROCESSES: Final = 64
MAX_PACKAGES: Final = 2_000  # of one environment
MAX_FOLDERS: Final = 400  # of one home, or of one folder below the others
MAX_HOMES: Final = 64
MAX_NAMES: Final = 2_000
MAX_METADATA: Final = 64 << 10
MAX_RECORD: Final = 8 << 20
MAX_PROCESSES: Final = 16_384
MAX_MOUNTS: Final = 4 << 20
SYSTEM: Final = ("/usr", "/usr/local")
ABOVE: Final = ("/opt", "/srv", "/var/www", "/usr/local", "/home")
DEPTH: Final = 3
USUAL: Final = (".venv", "venv", "env")
SKIPPED: Final = frozenset(
    ("bin", "include", "lib", "lib64", "man", "node_modules", "proc", "sbin", "src", "sys", "__pycache__")
)
HIDDEN: Final = (".conda", ".local", ".pyenv", ".venv", ".virtualenv")
# not counted as depth: ~/.local/share/uv/tools/black
TOOLS: Final = re.compile(r"/\.local(?:/share(?:/pipx(?:/venvs)?|/uv(?:/tools)?)?)?\Z")
LOCAL_KINDS: Final = frozenset((
    "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs",
    "squashfs", "tmpfs", "xfs", "zfs",
))  # fmt: skip
_LIBRARY: Final = re.compile(r"python3(?:\.\d+t?)?")
_PYTHON: Final = re.compile(r"(/.{1,1000})/bin/python[0-9.]{0,8}t?", re.S)

Late = Callable[[], bool]


class Environment(NamedTuple):
    """A prefix, and its folders of packages."""

    prefix: str
    sites: tuple[str, ...]


class Search:
    """One look for environments. `troubles`: where it did not look everywhere, in words."""

    def __init__(self, tree: Tree, late: Late) -> None:
        self._tree, self._late = tree, late
        self._away = _away(tree)
        self.troubles: list[str] = []

    def all(self, of_processes: set[str]) -> tuple[Environment, ...]:
        """Those of the system first, each once. `of_processes` remembers what processes told."""
        found: dict[str, Environment] = {}
        for environment in self._lying():
            found.setdefault(environment.prefix, environment)
            if len(found) >= MAX_ENVIRONMENTS:
                self.troubles.append(f"more than {MAX_ENVIRONMENTS} environments")
                break
        told: dict[str, Environment] = {}
        for prefix in sorted(of_processes | self._running()):
            told_of = self._at(prefix) if prefix not in found and not self._away(prefix) else None
            if told_of is not None and len(told) < MAX_OF_PROCESSES:
                told[prefix] = told_of
        of_processes.clear()
        of_processes.update(told)
        if self._late():
            self.troubles.append("no time to look everywhere")
        return (*found.values(), *told.values())

    def _lying(self) -> Iterator[Environment]:
        real = self._tree.real
        for prefix in dict.fromkeys(map(real, SYSTEM)):
            environment = self._at(prefix)
            if environment:
                yield environment
        yield from self._below(real("/root"), DEPTH)
        for above in dict.fromkeys(map(real, ABOVE)):
            if self._away(above):
                continue
            yield from self._below(above, 0)
            names = [name for name in self._folders(above) if name not in SKIPPED]
            if len(names) > MAX_HOMES:
                self.troubles.append(f"{above}: {len(names) - MAX_HOMES} folders not searched")
            for name in names[:MAX_HOMES]:
                yield from self._below(f"{above}/{name}", DEPTH)

    def _below(self, start: str, depth: int) -> Iterator[Environment]:
        """Breadth first, so that a deep tree hides nothing that lies high."""
        queue = deque([(start, depth)])
        looked = 0
        while queue and not self._late():
            path, left = queue.popleft()
            if self._away(path):
                continue
            looked += 1
            if looked > MAX_FOLDERS:
                self.troubles.append(
                    f"{start}: has more than {MAX_FOLDERS} folders; the rest was not searched"
                )
                return
            names = self._folders(path)
            environment = self._at(path) if "lib" in names or "lib64" in names else None
            if environment:
                yield environment
            below = left if TOOLS.search(path) else left - 1
            if below >= 0:
                queue.extend((f"{path}/{name}", below) for name in names if _entered(path, name))

    def _at(self, prefix: str) -> Environment | None:
        found = [
            f"{prefix}/{lib}/{library}/{kind}"
            for lib in ("lib", "lib64")
            for library in self._folders(f"{prefix}/{lib}")
            if _LIBRARY.fullmatch(library)
            for kind in self._folders(f"{prefix}/{lib}/{library}")
            if kind in ("site-packages", "dist-packages")
        ]
        return Environment(prefix, tuple(found)) if found else None

    def _running(self) -> set[str]:
        """Where environments of running interpreters may lie: above their binary, or where they work.

        Links alone are read: the arguments of a process lie in its own memory, and it can let us wait there.
        """
        found: set[str] = set()
        try:
            with self._tree.folder("/proc") as folder:
                numbers = [name for name in folder.names(MAX_PROCESSES * 2) if name.isdecimal()]
        except OSError:
            return found
        for number in numbers[:MAX_PROCESSES]:
            binary = _PYTHON.fullmatch(self._tree.link(f"/proc/{number}/exe"))
            if binary is None or self._late():
                continue
            work = self._tree.link(f"/proc/{number}/cwd")
            found.add(binary[1])
            found.update(f"{work.rstrip('/')}/{name}" for name in USUAL if work.startswith("/"))
        return {self._tree.real(path) for path in found if path.isprintable() and not self._away(path)}

    def _folders(self, path: str) -> list[str]:
        try:
            with self._tree.folder(path) as folder:
                return folder.folders(MAX_NAMES)
        except (OSError, ValueError):
            return []


def _entered(path: str, name: str) -> bool:
    if name in SKIPPED or (name.startswith(".") and not name.startswith(HIDDEN)):
        return False
    if path.endswith("/.local"):
        return name == "share"
    return not path.endswith("/.local/share") or name in ("pipx", "uv")


def _away(tree: Tree) -> Callable[[str], bool]:
    """Whether a path lies on a file system that is not of this host's own disks."""
    try:
        text = os.fsdecode(tree.read("/proc/self/mountinfo", MAX_MOUNTS))
    except OSError:
        text = ""
    found = procfs.mounts(text)
    remote = {one.point for one in found if one.point != "/" and one.kind not in LOCAL_KINDS}
    return lambda path: any(path == place or path.startswith(place + "/") for place in remote)


def read_environment(tree: Tree, environment: Environment, owned: frozenset[str], late: Late) -> Parsed:
    """Its packages, without those that the distribution owns: their metadata are among `owned`."""
    found: list[Listed] = []
    troubles: list[str] = []
    for site in environment.sites:
        try:
            folder = tree.folder(site)
        except OSError as error:  # the others of the environment are read nevertheless
            troubles.append(f"{site[-60:]}: {error.strerror or error}")
            continue
        with folder:
            names = [n for n in folder.names(MAX_PACKAGES * 20) if n.endswith((".dist-info", ".egg-info"))]
            for name in names[:MAX_PACKAGES]:
                if late():
                    troubles.append("no time for all packages")
                    break
                if not owned.isdisjoint((f"{site}/{name}", f"{site}/{name}/{_told(name)}")):
                    continue
                try:
                    found.append(_read(folder, name, environment.prefix))
                except (OSError, ValueError, Invalid) as error:
                    troubles.append(f"{name[:60]}: {error}")
    return Parsed(tuple(found), counted(troubles))


def _told(name: str) -> str:
    return "METADATA" if name.endswith(".dist-info") else "PKG-INFO"


def _read(site: Folder, name: str, prefix: str) -> Listed:
    if name.endswith(".egg-info") and site.has(name):
        return Listed(python.parse_metadata(site.read(name, MAX_METADATA), prefix))
    with site.child(name) as folder:
        package = python.parse_metadata(folder.read(_told(name), MAX_METADATA), prefix)
        programs = python.recorded(_optional(folder, "RECORD", MAX_RECORD), site.path, prefix)
        if not programs:
            programs = python.declared(_optional(folder, "entry_points.txt", MAX_METADATA), prefix)
    return Listed(package, programs)


def _optional(folder: Folder, name: str, most: int) -> bytes:
    try:
        return folder.read(name, most)
    except OSError:
        return b""
