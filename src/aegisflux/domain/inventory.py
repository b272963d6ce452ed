"""Which software a host has: packages of its distribution and of its Python environments, whole."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from aegisflux.domain.bounds import Nanoseconds
from aegisflux.domain.manifest import HostId

MAX_PACKAGES: Final = 20_000
Short = Annotated[str, Meta(max_length=256)]
PackageType = Literal["deb", "rpm", "apk", "pypi"]


class Package(Struct, frozen=True, kw_only=True, omit_defaults=True, order=True):
    """One installed package. Without a source of its own, `source` and `source_version` are empty.

    version:  as its package manager writes it, with epoch and release
    where:    the environment it lies in (Python), empty for the system
    binaries: paths of its programs, to find the package of a process
    """

    type: PackageType
    name: Short
    version: Short
    arch: Short = ""
    source: Short = ""
    source_version: Short = ""
    where: Annotated[str, Meta(max_length=4096)] = ""
    binaries: tuple[Annotated[str, Meta(max_length=4096)], ...] = ()


class System(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """/etc/os-release, and the kernel that runs."""

    id: Short = ""
    version_id: Short = ""
    name: Short = ""
    kernel: Short = ""
    arch: Short = ""


class PackageInventory(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All packages of a host, sorted; sent again when `digest` changes. `failed`: what could not be read."""

    host_id: HostId
    taken_ns: Nanoseconds
    digest: Short
    system: System
    packages: Annotated[tuple[Package, ...], Meta(max_length=MAX_PACKAGES)]
    failed: tuple[Short, ...] = ()


class PackageDelta(Struct, frozen=True, kw_only=True):
    """What changed between two inventories; a new version is `removed` and `added`."""

    added: tuple[Package, ...]
    removed: tuple[Package, ...]


def digest_of(system: System, packages: Iterable[Package]) -> str:
    """`sha256:` over the sorted packages and the system: the same software gives the same digest."""
    body = msgspec.msgpack.encode([system, sorted(packages)])
    return "sha256:" + sha256(body).hexdigest()


def delta(before: Iterable[Package], after: Iterable[Package]) -> PackageDelta:
    """What was added and removed, sorted."""
    old, new = set(before), set(after)
    return PackageDelta(added=tuple(sorted(new - old)), removed=tuple(sorted(old - new)))
