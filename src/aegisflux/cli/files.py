"""Files of users that are given other bytes: all or none of them, and whatever else they are stays."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from aegisflux.domain.errors import Unavailable


def replaced(file: Path, body: bytes) -> None:
    """Give a file other bytes, all or none of them; where it has them already, nothing is written.

    Its owner, group, mode and extended attributes stay, and a link to it does. A file that has more names
    (hard links), is mounted by itself, or whose owner this user cannot give, is written in place, while its
    former bytes lie beside it.
    """
    target = file.resolve()
    former = target.read_bytes()
    if former == body:
        return
    if target.stat().st_nlink > 1 or not _exchanged(target, body):
        _overwritten(target, former, body)


def _exchanged(target: Path, body: bytes) -> bool:
    """Whether a new file like it could take its place."""
    with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as beside:
        try:
            beside.write(body)
            beside.flush()
            _liken(beside.fileno(), target)
            os.fsync(beside.fileno())
            Path(beside.name).replace(target)
        except BaseException as error:
            Path(beside.name).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EBUSY):
                return False
            raise
    return True


def _liken(fd: int, target: Path) -> None:
    """Give an open file the owner, mode and extended attributes of another; raises OSError for the owner."""
    was, own = target.stat(), os.fstat(fd)
    if (was.st_uid, was.st_gid) != (own.st_uid, own.st_gid):
        os.fchown(fd, was.st_uid, was.st_gid)
    os.fchmod(fd, was.st_mode & 0o7777)
    for name in os.listxattr(target):
        with suppress(OSError):  # one that only the kernel gives
            os.setxattr(fd, name, os.getxattr(target, name))


def _overwritten(target: Path, former: bytes, body: bytes) -> None:
    """Write a file in place; where that fails, the error names where its former bytes are."""
    with target.open("r+b") as out:  # before anything is made: it may be read-only
        with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as beside:
            try:
                beside.write(former + b"\0" * (len(body) - len(former)))  # as much room as is needed
                beside.truncate(len(former))
                os.fsync(beside.fileno())
            except BaseException:
                Path(beside.name).unlink(missing_ok=True)
                raise
        try:
            out.write(body)
            out.truncate()
            out.flush()
            os.fsync(out.fileno())
        except OSError as error:
            raise Unavailable(
                f"{target}: expected to be written in place, got {error.strerror}; "
                f"what it was is in {beside.name}"
            ) from error
    Path(beside.name).unlink(missing_ok=True)
