"""Headers of rpm, as its databases hold them: a big-endian index of tags, and their data behind it."""

from collections.abc import Iterable
from struct import Struct, unpack_from
from typing import Final

from aegisflux.domain.errors import Invalid
from aegisflux.domain.inventory import MAX_PACKAGES, Package
from aegisflux.wire.packages.common import MAX_FILES, Listed, Parsed, counted, matters, needed, path, text

MAX_HEADER: Final = 64 << 20
MAX_TAGS: Final = 0xFFFF
NAME, VERSION, RELEASE, EPOCH, ARCH, SOURCERPM = 1000, 1001, 1002, 1003, 1022, 1044
OLDFILENAMES, DIRINDEXES, BASENAMES, DIRNAMES = 1027, 1116, 1117, 1118
INT32: Final = 4
STRINGS: Final = (6, 8, 9)
NOT_SOFTWARE: Final = "gpg-pubkey"
_INTRO: Final = Struct(">II")
_ENTRY: Final = Struct(">IIiI")
_WANTED: Final = frozenset(
    (NAME, VERSION, RELEASE, EPOCH, ARCH, SOURCERPM, OLDFILENAMES, DIRINDEXES, BASENAMES, DIRNAMES)
)


def parse_headers(blobs: Iterable[bytes]) -> Parsed:
    """The packages of all headers; an Invalid from `blobs` ends them."""
    found: list[Listed] = []
    troubles: list[str] = []
    try:
        for number, blob in enumerate(blobs, 1):
            if len(found) >= MAX_PACKAGES:
                troubles.append(f"more than {MAX_PACKAGES} packages")
                break
            _add(found, troubles, number, blob)
    except Invalid as error:
        troubles.insert(0, str(error))
    return Parsed(tuple(found), counted(troubles))


def _add(found: list[Listed], troubles: list[str], number: int, blob: bytes) -> None:
    try:
        listed = parse_header(blob)
    except Invalid as error:
        troubles.append(f"header {number}: {error}")
        return
    if listed is not None:
        found.append(listed)


def parse_header(blob: bytes) -> Listed | None:
    """The package of a header, None for a key that rpm keeps as one; raises Invalid."""
    header = _Header(blob)
    name = needed(header.text(NAME), "NAME")
    if name == NOT_SOFTWARE:
        return None
    version = needed(header.text(VERSION), f"VERSION of {name}")
    release = header.text(RELEASE)
    full = f"{version}-{release}" if release else version
    source, source_version = _source(header.text(SOURCERPM))
    if (source, source_version) == (name, full):
        source = source_version = ""
    epoch = header.numbers(EPOCH)
    package = Package(
        type="rpm",
        name=name,
        version=(f"{epoch[0]}:{full}" if epoch else full)[:256],
        arch=header.text(ARCH),
        source=source,
        source_version=source_version,
    )
    return Listed(package, _files(header))


class _Header:
    """The tags of a header that are wanted."""

    def __init__(self, blob: bytes) -> None:
        if not _INTRO.size <= len(blob) <= MAX_HEADER:
            raise Invalid("header", f"{_INTRO.size} to {MAX_HEADER} bytes", len(blob))
        tags, size = _INTRO.unpack_from(blob)
        start = _INTRO.size + tags * _ENTRY.size
        if tags > MAX_TAGS or start + size > len(blob):
            raise Invalid("header", f"{tags} tags and {size} bytes of data", len(blob))
        self._data = blob[start : start + size]
        entries = _ENTRY.iter_unpack(blob[_INTRO.size : start])
        self._tags = {tag: (kind, at, count) for tag, kind, at, count in entries if tag in _WANTED}

    def text(self, tag: int) -> str:
        """A tag's first string."""
        found = self.strings(tag, 1)
        return text(found[0]) if found else ""

    def strings(self, tag: int, most: int | None = None) -> list[bytes]:
        """A tag's strings, at most so many; none where it is not there."""
        kind, at, count = self._tags.get(tag, (STRINGS[0], 0, 0))
        if count == 0:
            return []
        if kind not in STRINGS or not 0 <= at < len(self._data):
            raise Invalid(f"tag {tag}", f"strings within {len(self._data)} bytes", f"type {kind} at {at}")
        count = count if most is None else min(count, most)
        if count == 1:
            return [self._data[at:].partition(b"\0")[0]]
        found = self._data[at:].split(b"\0", min(count, len(self._data)))
        if len(found) <= count:
            raise Invalid(f"tag {tag}", f"{count} strings", len(found) - 1)
        return found[:count]

    def numbers(self, tag: int) -> tuple[int, ...]:
        """A tag's numbers; none where it is not there."""
        kind, at, count = self._tags.get(tag, (INT32, 0, 0))
        if kind != INT32 or not 0 <= at <= at + 4 * count <= len(self._data):
            raise Invalid(f"tag {tag}", f"{count} numbers within {len(self._data)} bytes", at)
        return unpack_from(f">{count}I", self._data, at)


def _source(file: str) -> tuple[str, str]:
    """Name and version of `name-version-release.src.rpm`."""
    for suffix in (".src.rpm", ".nosrc.rpm"):
        parts = file.removesuffix(suffix).rsplit("-", 2)
        if file.endswith(suffix) and len(parts) == 3:
            return parts[0], f"{parts[1]}-{parts[2]}"
    return "", ""


def _files(header: _Header) -> tuple[str, ...]:
    folders, names, where = header.strings(DIRNAMES), header.strings(BASENAMES), header.numbers(DIRINDEXES)
    if len(names) != len(where) or any(index >= len(folders) for index in where):
        raise Invalid("DIRINDEXES", f"a folder for each of {len(names)} names", f"{len(where)} numbers")
    raw = [folders[index] + name for index, name in zip(where, names, strict=True)]
    found: list[str] = []
    for one in raw or header.strings(OLDFILENAMES):
        file = path(one)
        if file and matters(file) and len(found) < MAX_FILES:
            found.append(file)
    return tuple(found)
