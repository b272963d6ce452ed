"""The databases of the distribution's package managers."""

import os
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote

import msgspec

from aegisflux.adapters.inventory.tree import Folder, Tree
from aegisflux.domain.errors import OverLimit, Unavailable
from aegisflux.wire.packages import apk, dpkg, rpm, rpmfiles
from aegisflux.wire.packages.common import Listed, Parsed

MAX_DATABASE: Final = 64 << 20
MAX_LIST: Final = 16 << 20
MAX_NAMES: Final = 20_000
STATUS: Final = "/var/lib/dpkg/status"
STATUS_FOLDER: Final = "/var/lib/dpkg/status.d"
LISTS: Final = "/var/lib/dpkg/info"
INSTALLED: Final = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")
RPM_FOLDERS: Final = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
SQLITE, NDB, BDB = "rpmdb.sqlite", "Packages.db", "Packages"
WAL: Final = "rpmdb.sqlite-wal"
WATCHED: Final = (
    STATUS,
    STATUS_FOLDER,
    *INSTALLED,
    *(f"{folder}/{name}" for folder in RPM_FOLDERS for name in (SQLITE, WAL, NDB, BDB)),
)
Late = Callable[[], bool]


def read_dpkg(tree: Tree, late: Late) -> Parsed:
    """The packages of dpkg with their files; raises OSError, OverLimit."""
    found = [dpkg.parse_status(_whole(tree, STATUS))] if tree.mark(STATUS) else []
    unread: list[str] = []
    found += [dpkg.parse_status(data) for data in _stanzas(tree, unread)]
    listed = [one for parsed in found for one in parsed.listed]
    troubles = [*unread, *(trouble for parsed in found for trouble in parsed.troubles)]
    if not listed or not tree.mark(LISTS):
        return Parsed(tuple(listed), tuple(troubles))
    with tree.folder(tree.real(LISTS)) as folder:
        for index, one in enumerate(listed):
            if late():
                troubles.append(f"no time for the files of {len(listed) - index} packages")
                break
            listed[index] = msgspec.structs.replace(one, files=_files(folder, one))
    return Parsed(tuple(listed), tuple(troubles))


def _stanzas(tree: Tree, unread: list[str]) -> Iterator[bytes]:
    """A file for each package; one that cannot be read is named, and leaves the others."""
    if tree.mark(STATUS_FOLDER):
        with tree.folder(tree.real(STATUS_FOLDER)) as folder:
            for name in folder.names(MAX_NAMES):
                try:
                    if not name.endswith(".md5sums") and folder.has(name):
                        yield folder.read(name, 1 << 20)
                except OSError as error:
                    unread.append(f"{STATUS_FOLDER}/{name[:60]}: {error.strerror or error}")


def _files(folder: Folder, listed: Listed) -> tuple[str, ...]:
    package = listed.package
    for name in (f"{package.name}.list", f"{package.name}:{package.arch}.list"):
        try:
            return dpkg.parse_list(folder.read(name, MAX_LIST))
        except (OSError, ValueError):
            continue
    return ()


def read_apk(tree: Tree, _late: Late) -> Parsed:
    """The packages of apk; raises OSError, OverLimit."""
    for path in INSTALLED:
        if tree.mark(path):
            return apk.parse_installed(_whole(tree, path))
    return Parsed()


def read_rpm(tree: Tree, late: Late) -> Parsed:
    """The packages of rpm; raises OSError, Unavailable."""
    folders = dict.fromkeys(tree.real(folder) for folder in RPM_FOLDERS)
    for name, reader in ((SQLITE, _sqlite), (NDB, _ndb), (BDB, _bdb)):
        for folder in folders:
            if tree.mark(f"{folder}/{name}"):
                return reader(tree, folder, late)
    return Parsed()


def _sqlite(tree: Tree, folder: str, late: Late) -> Parsed:
    """What a transaction has not yet moved out of the log beside the database counts too."""
    import sqlite3

    with tree.folder(folder) as opened:
        if not opened.has(SQLITE):
            raise OSError(f"{folder}/{SQLITE}: expected a regular file")
    log = tree.mark(f"{folder}/{WAL}")
    how = "mode=ro" if log and log[2] else "mode=ro&immutable=1"
    where = quote(tree.on_disk(f"{folder}/{SQLITE}"))
    try:
        database = sqlite3.connect(f"file:{where}?{how}", uri=True, timeout=2)
        try:
            database.set_progress_handler(late, 10_000)
            database.execute("pragma trusted_schema = off")
            database.execute("pragma cache_size = -1024")
            rows = database.execute(
                "select blob from Packages where typeof(blob) = 'blob' and length(blob) <= ? order by hnum",
                (rpm.MAX_HEADER,),
            )
            return rpm.parse_headers(row[0] for row in rows)
        finally:
            database.close()
    except sqlite3.Error as error:
        raise Unavailable(f"{folder}/{SQLITE}: {error}") from None


def _ndb(tree: Tree, folder: str, late: Late) -> Parsed:
    return _by_position(tree, f"{folder}/{NDB}", rpmfiles.ndb_headers, late)


def _bdb(tree: Tree, folder: str, late: Late) -> Parsed:
    return _by_position(tree, f"{folder}/{BDB}", rpmfiles.bdb_headers, late)


def _by_position(
    tree: Tree, path: str, headers: Callable[[rpmfiles.Reader], Iterator[bytes]], late: Late
) -> Parsed:
    above, _, name = tree.real(path).rpartition("/")
    with tree.folder(above) as folder:
        fd = folder.open(name)

    def read(at: int, size: int) -> bytes:
        if late():
            raise Unavailable(f"{path}: no time to read it")
        return os.pread(fd, size, at)

    try:
        return rpm.parse_headers(headers(read))
    finally:
        os.close(fd)


def _whole(tree: Tree, path: str) -> bytes:
    data = tree.read(path, MAX_DATABASE + 1)
    if len(data) > MAX_DATABASE:
        raise OverLimit("database_bytes", MAX_DATABASE, len(data), path)
    return data
