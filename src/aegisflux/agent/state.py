"""What an agent must not forget, on disk: one folder of mode 0700 with one lock."""

import fcntl
import os
from pathlib import Path
from typing import Final

from aegisflux.domain.errors import Unavailable

CONTENTS: Final = "contents"


class FileStore:
    """`Store` in a folder: write, fsync, rename, fsync of the folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / CONTENTS).mkdir(mode=0o700, exist_ok=True)
            if directory.stat().st_mode & 0o077:
                directory.chmod(0o700)
        except OSError as error:
            raise Unavailable(f"state folder {directory}: {error.strerror}") from error

    def read(self, name: str) -> bytes | None:
        """The blob, None when there is none."""
        return _read(self.directory / name)

    def write(self, name: str, value: bytes) -> None:
        """Durable when it returns; raises Unavailable (the disk is full or read-only)."""
        _write(self.directory / name, value, durable=True)

    def delete(self, name: str) -> None:
        """Durable when it returns."""
        try:
            (self.directory / name).unlink(missing_ok=True)
            _sync(self.directory)
        except OSError as error:
            raise Unavailable(f"{self.directory / name}: {error.strerror}") from error

    def content(self, digest: str) -> bytes | None:
        """Sealed content as it came."""
        return _read(self._path(digest))

    def keep_content(self, digest: str, value: bytes) -> None:
        """Keep sealed content; it is checked again each time it is read, so it need not be durable."""
        _write(self._path(digest), value, durable=False)

    def keep_only(self, digests: frozenset[str]) -> None:
        """Drop every other content."""
        names = {self._path(digest).name for digest in digests}
        folder = self.directory / CONTENTS
        try:
            for path in folder.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"{folder}: {error.strerror}") from error

    def _path(self, digest: str) -> Path:
        return self.directory / CONTENTS / digest.removeprefix("sha256:")


class MemoryStore:
    """`Store` for simulations and tests; `writes` counts what would have been synced."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.contents: dict[str, bytes] = {}
        self.writes = 0

    def read(self, name: str) -> bytes | None:
        return self.blobs.get(name)

    def write(self, name: str, value: bytes) -> None:
        self.writes += 1
        self.blobs[name] = value

    def delete(self, name: str) -> None:
        self.blobs.pop(name, None)

    def content(self, digest: str) -> bytes | None:
        return self.contents.get(digest)

    def keep_content(self, digest: str, value: bytes) -> None:
        self.contents[digest] = value

    def keep_only(self, digests: frozenset[str]) -> None:
        for digest in set(self.contents) - digests:
            del self.contents[digest]


class Locked:
    """Locks on folders, held until `release` or the end of the process."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def take(self, directory: Path, what: str) -> None:
        """Lock a folder of any file system; raises Unavailable when another process holds it."""
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"{what} {directory}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise Unavailable(f"{what} {directory}: another agent holds it; stop that one first") from None
        self._held.append(fd)

    def release(self) -> None:
        """Let go of all locks."""
        while self._held:
            os.close(self._held.pop())


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _write(path: Path, value: bytes, *, durable: bool) -> None:
    draft = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(value)
            if durable:
                out.flush()
                os.fsync(out.fileno())
        draft.replace(path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
