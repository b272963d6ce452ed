"""Secrets as files: a directory of mode 0700, files of mode 0600, written whole."""

import os
import re
import secrets as randomness
import stat
from collections.abc import Callable
from pathlib import Path

from aegisflux.domain.errors import Invalid, Unavailable

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class FileSecrets:
    """`Secrets` below one directory, which is made when missing; refuses one that others may read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _strict(directory)

    def path(self, name: str) -> Path:
        """The file of a secret, for servers that read it themselves."""
        if not NAME.fullmatch(name):
            raise Invalid("secret", NAME.pattern, name)
        return self.directory / name

    def read(self, name: str) -> bytes | None:
        """See `Secrets.read`; a file that others may read is Unavailable, not used."""
        path = self.path(name)
        try:
            _strict(path)
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, value: bytes) -> None:
        """See `Secrets.write`: a new file is synced, then takes the name."""
        path = self.path(name)
        temporary = self._draft(path, value)
        temporary.replace(path)
        self._sync()

    def remove(self, name: str) -> None:
        """See `Secrets.remove`."""
        path = self.path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"secret {path}: cannot be removed: {error.strerror}") from error
        self._sync()

    def obtain(self, name: str, make: Callable[[], bytes]) -> bytes:
        """See `Secrets.obtain`; of two that make one at once, the first wins for both."""
        kept = self.read(name)
        if kept is not None:
            return kept
        path = self.path(name)
        temporary = self._draft(path, make())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        self._sync()
        return path.read_bytes()

    def _draft(self, path: Path, value: bytes) -> Path:
        draft = path.with_name(f".{path.name}.{os.getpid()}.{randomness.token_hex(4)}")
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable(f"secret {path}: cannot be written: {error.strerror}") from error
        return draft

    def _sync(self) -> None:
        handle = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _strict(path: Path) -> None:
    found = path.stat()
    wrong = stat.S_IMODE(found.st_mode) & 0o077
    if wrong or found.st_uid not in (os.geteuid(), 0):
        mode = "0700" if stat.S_ISDIR(found.st_mode) else "0600"
        raise Unavailable(
            f"{path}: expected mode {mode} and this user as owner, "
            f"got mode {stat.S_IMODE(found.st_mode):04o} and owner {found.st_uid}"
        )
