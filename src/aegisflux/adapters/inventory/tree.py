"""A file system below a root, read with care: users may have planted what lies there.

Paths are those that a process inside of the root would use. `real` follows links as such a process would,
never out of the root. Folders are opened a component at a time without following links; only regular files
are read, and never more than was asked for; nothing that is opened can make us wait.
"""

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MAX_LINKS: Final = 40
CHUNK, MOST_AT_ONCE = 4096, 8 << 20
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Mark = tuple[int, int, int, int]


class Folder:
    """An open folder; `path` is where it lies below the root."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd, self.path = fd, path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def names(self, most: int) -> list[str]:
        """Names in it, sorted, so many at most; without those that are no UTF-8."""
        return self._listed(most, folders=False)

    def folders(self, most: int) -> list[str]:
        """Names of the folders in it, not of links to folders."""
        return self._listed(most, folders=True)

    def _listed(self, most: int, *, folders: bool) -> list[str]:
        found: list[str] = []
        with os.scandir(self._fd) as entries:
            for count, entry in enumerate(entries):
                if count >= most:
                    break
                if entry.name.isprintable() and (not folders or entry.is_dir(follow_symlinks=False)):
                    found.append(entry.name)
        return sorted(found)

    def child(self, name: str) -> "Folder":
        """A folder in it; raises OSError."""
        return Folder(os.open(name, _FOLDER, dir_fd=self._fd), f"{self.path.rstrip('/')}/{name}")

    def has(self, name: str) -> bool:
        """Whether there is a regular file of that name."""
        return stat.S_ISREG(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode)

    def open(self, name: str) -> int:
        """A descriptor of a regular file in it; raises OSError."""
        if not self.has(name):
            raise OSError(f"{self.path.rstrip('/')}/{name}: expected a regular file")
        fd = os.open(name, _FILE, dir_fd=self._fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(f"{self.path.rstrip('/')}/{name}: expected a regular file")
        return fd

    def read(self, name: str, most: int) -> bytes:
        """The beginning of a regular file in it; raises OSError."""
        with os.fdopen(self.open(name), "rb", buffering=0) as file:
            parts: list[bytes] = []
            left, piece = most, max(CHUNK, min(os.fstat(file.fileno()).st_size + 1, MOST_AT_ONCE))
            while left > 0 and (part := file.read(min(left, piece))):
                parts.append(part)
                left -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)


class Tree:
    """What lies below a root. Where links lead is remembered, so that a Tree is for one look."""

    def __init__(self, root: Path) -> None:
        self._root = str(root).rstrip("/")
        self._real: dict[str, str] = {}
        self._links: dict[str, str] = {}

    def on_disk(self, path: str) -> str:
        """The path for the whole system."""
        return self._root + path

    def real(self, path: str) -> str:
        """Where the path leads, without links. What is not there stands for itself."""
        known = self._real.get(path)
        if known is None:
            known = self._real[path] = self._followed(path)
        return known

    def _followed(self, path: str) -> str:
        at, links = "", MAX_LINKS
        names = path.split("/")[::-1]
        while names:
            name = names.pop()
            if name == "..":
                at = at.rpartition("/")[0]
            elif name not in ("", "."):
                target = self.link(f"{at}/{name}") if links > 0 else ""
                if not target:
                    at = f"{at}/{name}"
                    continue
                links -= 1
                at = "" if target.startswith("/") else at
                names.extend(target.split("/")[::-1])
        return at or "/"

    def link(self, path: str) -> str:
        """What the link at a path without other links says; empty where there is none."""
        known = self._links.get(path)
        if known is None:
            try:
                known = str(Path(self._root + path).readlink())
            except (OSError, ValueError):
                known = ""
            self._links[path] = known
        return known

    def folder(self, path: str) -> Folder:
        """The folder at a path that has no links; raises OSError."""
        if ".." in path.split("/"):
            raise OSError(f"{path}: expected a path without ..")
        fd = os.open(self._root or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in path.strip("/").split("/"):
            if name:
                try:
                    below = os.open(name, _FOLDER, dir_fd=fd)
                finally:
                    os.close(fd)
                fd = below
        return Folder(fd, path)

    def read(self, path: str, most: int) -> bytes:
        """The beginning of a file, links followed; raises OSError."""
        above, _, name = self.real(path).rpartition("/")
        with self.folder(above or "/") as folder:
            return folder.read(name, most)

    def mark(self, path: str) -> Mark | None:
        """What changes when the file or folder does; None where there is none."""
        try:
            found = os.lstat(self._root + self.real(path))
        except (OSError, ValueError):
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def is_program(self, path: str) -> bool:
        """Whether a file, at a path without links, is one that can be executed."""
        try:
            mode = os.lstat(self._root + path).st_mode
        except (OSError, ValueError):
            return False
        return stat.S_ISREG(mode) and mode & 0o111 != 0
