"""The software of a host: what `ports.inventory` promises, from the file system below a root."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from aegisflux.adapters.inventory import distribution
from aegisflux.adapters.inventory.environments import Environment, Search, read_environment
from aegisflux.adapters.inventory.tree import Mark, Tree
from aegisflux.domain.errors import AegisError, OverLimit
from aegisflux.domain.inventory import MAX_PACKAGES, Package, PackageInventory, System, digest_of
from aegisflux.wire.inventory import encode_inventory
from aegisflux.wire.packages.common import Listed, Parsed, is_metadata
from aegisflux.wire.packages.osrelease import parse_os_release
from aegisflux.wire.records import text_of

SECONDS: Final = 20.0
MAX_FAILED: Final = 16
OS_RELEASE: Final = ("/etc/os-release", "/usr/lib/os-release")
MANAGERS: Final = {
    "dpkg": distribution.read_dpkg,
    "rpm": distribution.read_rpm,
    "apk": distribution.read_apk,
}
Marks = tuple[tuple[str, Mark | None], ...]


class HostSoftware:
    """See `ports.inventory.Software`. Packages of a database that cannot be read stay as they last were.

    root:      where the host's file system lies
    kernel:    release and machine of the kernel that runs; those of uname by default
    seconds:   how long a look may take; then what is left is not read, and `failed` says so
    """

    def __init__(
        self,
        root: Path = Path("/"),
        kernel: tuple[str, str] | None = None,
        seconds: float = SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._seconds, self._monotonic = root, seconds, monotonic
        self._kernel = kernel or (os.uname().release, os.uname().machine)
        self._marks: Marks | None = None
        self._last: dict[str, bytes] = {}
        self._of_processes: set[str] = set()

    def changed(self) -> bool:
        """See `Software.changed`."""
        if self._marks is None:
            return True
        tree = Tree(self._root)
        return self._marks != _marks(tree, Search(tree, self._deadline()).all(set(self._of_processes)))

    def take(self, host_id: str, taken_ns: int) -> PackageInventory:
        """See `Software.take`."""
        tree, late, failed = Tree(self._root), self._deadline(), _Failed()
        search = Search(tree, late)
        found = search.all(self._of_processes)
        self._marks = _marks(tree, found)
        system = [one for name in MANAGERS for one in self._of_manager(name, tree, late, failed).listed]
        owned = frozenset(_real(tree, file) for one in system for file in one.files if is_metadata(file))
        packages = {_package(tree, one, "") for one in system}
        for environment in found:
            if len(packages) >= MAX_PACKAGES:
                failed.add("python", f"more than {MAX_PACKAGES} packages")
                break
            packages |= _of_environment(tree, environment, owned, late, failed)
        for trouble in search.troubles:
            failed.add("python", trouble)
        return _fitted(host_id, taken_ns, self._system(tree), packages, failed)

    def _deadline(self) -> Callable[[], bool]:
        end = self._monotonic() + self._seconds
        return lambda: self._monotonic() > end

    def _of_manager(self, name: str, tree: Tree, late: Callable[[], bool], failed: "_Failed") -> Parsed:
        try:
            parsed = MANAGERS[name](tree, late)
        except Exception as error:  # noqa: BLE001 - one database that cannot be read leaves the others
            failed.add(name, _said(error))
            return msgspec.msgpack.decode(self._last[name], type=Parsed) if name in self._last else Parsed()
        for trouble in parsed.troubles:
            failed.add(name, trouble)
        self._last[name] = msgspec.msgpack.encode(parsed)
        return parsed

    def _system(self, tree: Tree) -> System:
        data = b""
        for path in OS_RELEASE:
            try:
                data = tree.read(path, 1 << 16)
                break
            except OSError:
                continue
        return parse_os_release(data, *self._kernel)


class _Failed:
    """What could not be read, in words, with a bound."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def add(self, what: str, why: str) -> None:
        text = f"{what}: {why}".encode("utf-8", "replace").decode()
        self.said.append("".join(c if c.isprintable() else "\ufffd" for c in text)[:256])

    def all(self) -> tuple[str, ...]:
        more = len(self.said) - MAX_FAILED
        return (*self.said[:MAX_FAILED], *([f"{more} more"] if more > 0 else []))


def _marks(tree: Tree, found: Iterable[Environment]) -> Marks:
    sites = [site for environment in found for site in environment.sites]
    return tuple((path, tree.mark(path)) for path in (*distribution.WATCHED, *OS_RELEASE, *sites))


def _of_environment(
    tree: Tree, environment: Environment, owned: frozenset[str], late: Callable[[], bool], failed: _Failed
) -> set[Package]:
    what = f"python {environment.prefix[:80]}"
    try:
        parsed = read_environment(tree, environment, owned, late)
    except Exception as error:  # noqa: BLE001 - one environment that cannot be read leaves the others
        failed.add(what, _said(error))
        return set()
    for trouble in parsed.troubles:
        failed.add(what, trouble)
    return {_package(tree, one, environment.prefix) for one in parsed.listed}


def _package(tree: Tree, listed: Listed, prefix: str) -> Package:
    """The package with its programs, by the paths that the kernel knows them by."""
    paths = {_real(tree, path) for path in listed.files if not is_metadata(path)}
    within = f"{prefix}/" if prefix else "/"
    found = {path for path in paths if path.startswith(within) and tree.is_program(path)}
    # A link may lead to a name that is no text: it stands here as in the events of the process.
    programs = tuple(sorted(text_of(os.fsencode(path)) for path in found))
    where = text_of(os.fsencode(listed.package.where))
    return msgspec.structs.replace(listed.package, binaries=programs, where=where)


def _real(tree: Tree, path: str) -> str:
    """The path with the links of its folders followed, its own link not: that belongs to somebody else."""
    folder, _, name = path.rpartition("/")
    return f"{tree.real(folder or '/').rstrip('/')}/{name}"


def _fitted(
    host_id: str, taken_ns: int, system: System, packages: set[Package], failed: _Failed
) -> PackageInventory:
    """The inventory, so that it can be sent; raises OverLimit should nothing help."""
    said = failed.said
    for why, chosen in _smaller(packages):
        failed.said = [*([f"packages: {why}"] if why else []), *said]
        ordered = sorted(chosen)
        inventory = PackageInventory(
            host_id=host_id,
            taken_ns=taken_ns,
            digest=digest_of(system, ordered),
            system=system,
            packages=tuple(ordered),
            failed=failed.all(),
        )
        try:
            encode_inventory(inventory)
        except OverLimit:
            continue
        return inventory
    raise OverLimit("inventory_packages", MAX_PACKAGES, len(packages), f"inventory of {host_id}")


def _smaller(packages: set[Package]) -> Iterator[tuple[str, list[Package]]]:
    """All packages, then what is left when what anybody may have put there goes first; each with its why."""
    system = sorted(one for one in packages if one.type != "pypi")
    python = sorted(one for one in packages if one.type == "pypi")
    over = len(packages) - MAX_PACKAGES
    system, python = system[:MAX_PACKAGES], python[: max(0, MAX_PACKAGES - len(system))]
    yield f"{over} over {MAX_PACKAGES} left out" if over > 0 else "", system + python
    yield "too large: programs of Python left out", system + _bare(python)
    yield "too large: those of Python left out", system
    yield "too large: those of Python and all programs left out", _bare(system)
    yield "too large: all but 2000 left out", _bare(system[:2000])


def _bare(packages: Iterable[Package]) -> list[Package]:
    return [msgspec.structs.replace(one, binaries=()) for one in packages]


def _said(error: Exception) -> str:
    if isinstance(error, AegisError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return f"{type(error).__name__}: {error}"
