"""What of ours a kernel has attached, and its end, by the kernel's own list: it needs no pin and no note."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf, objects
from aegisflux.adapters.datapath.bpf.owner import Marker, owner_of, owners_marked
from aegisflux.adapters.datapath.bpf.pins import ATTACH, FOLDER, erase
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.panic import Attached, Kind, Owner, describe
from aegisflux.runtime import procfs
from aegisflux.runtime.cgroupfs import numbered, v2_root

PREFIX: Final = "aegis_"
CGROUP_KINDS: Final = {8, 9, 13, 18}  # cgroup_skb, cgroup_sock, sock_ops, cgroup_sock_addr
ALL_CGROUPS: Final = 0xEFFFFFFB  # inode of the first cgroup namespace
MAX_HOLDERS: Final = 8


class Kernel:
    """This kernel's attachments of ours; `agent.rescue.Kernel`."""

    def attached(self) -> list[Attached]:
        """Everything of ours that is attached anywhere. Raises Unavailable where the kernel does not tell."""
        try:
            return self._attached()
        except OSError as error:
            raise Unavailable(
                f"the kernel does not list its BPF programs: {error.strerror}; run as root"
            ) from None

    def _attached(self) -> list[Attached]:
        known: dict[int, Owner | None] = {}
        ours = {p.number: p for p in objects.programs() if p.name.startswith(PREFIX)}
        if not ours:
            return []
        pinned = {number: folder.name for number, folder in _pinned_folders()}
        owners = {number: owner_of(p.maps, known) for number, p in ours.items()}
        found, linked = [], set[int]()
        for link in objects.links():
            if link.program not in ours:
                continue
            linked.add(link.program)
            if link.kind == objects.CGROUP and not link.cgroup:
                continue  # detached, and held by somebody
            owner = owners[link.program]
            kind: Kind = "link" if link.kind == objects.CGROUP else "tracepoint"
            instance = owner.instance if owner else pinned.get(link.number, "")
            found.append(
                Attached(
                    link.program,
                    ours[link.program].name,
                    kind,
                    link.number,
                    link.cgroup,
                    link.attach_type,
                    owner,
                    instance,
                )
            )
        loose = {n for n, p in ours.items() if n not in linked and p.kind in CGROUP_KINDS}
        for number, cgroup, attach_type in _without_links(loose):
            owner = owners[number]
            instance = owner.instance if owner else ""
            found.append(
                Attached(number, ours[number].name, "legacy", 0, cgroup, attach_type, owner, instance)
            )
        return found

    def visible(self) -> set[int] | None:
        """The cgroups that this process sees, None where it sees all of the host's."""
        with suppress(OSError):
            if Path("/proc/self/ns/cgroup").stat().st_ino == ALL_CGROUPS:
                return None
        return set(_cgroups())

    def detach(self, attached: Iterable[Attached]) -> None:
        """End these, those that judge packets first; what could not be ended is still attached."""
        paths: dict[int, str] = {}
        for one in sorted(attached, key=lambda a: a.name not in ("aegis_egress", "aegis_ingress")):
            with suppress(OSError, KeyError):  # KeyError: a cgroup that went, or that is not seen from here
                if one.kind == "link":
                    objects.detach_link(one.link_id)
                elif one.kind == "legacy":
                    paths = paths or _cgroups()
                    _detach_legacy(paths[one.cgroup_id], one)

    def unpin(self, attached: Iterable[Attached]) -> list[str]:
        """Remove the instances' folders of pins in which a link of these is pinned, in every BPF file system
        that some process of this host has; what could not be removed, in words."""
        links, failed = {one.link_id for one in attached if one.link_id}, []
        for folder in {folder for number, folder in _pinned_folders() if number in links}:
            try:
                erase(folder)
            except OSError as error:
                failed.append(f"{folder}: {error.strerror}")
        return failed

    def erase(self, bpffs: Path, instance: str) -> None:
        """Remove an instance's folder of pins. Raises OSError."""
        erase(bpffs / FOLDER / instance)

    def marker(self, bpffs: Path, instance: str, state_dir: str = "") -> Marker:
        """The marker of an instance's panic."""
        return Marker(instance, bpffs, state_dir)

    def marked(self) -> list[Owner]:
        """Whose panics are marked, wherever the markers are pinned."""
        return owners_marked()

    def describe(self, one: Attached) -> str:
        """Name what is left: program, cgroup, and which processes and pins hold it."""
        root = v2_root(part=True)
        path = _cgroups().get(one.place, "")
        shown = "/" + path.removeprefix(str(root)).strip("/") if path else ""
        return describe(one, shown, _holders(one))


def _cgroups() -> dict[int, str]:
    """Path by number of every cgroup that we see."""
    with suppress(Unavailable, OSError):
        return dict(numbered(v2_root(part=True)))
    return {}


def _without_links(loose: set[int]) -> Iterator[tuple[int, int, int]]:
    """(program, cgroup, attach type) of what BPF_PROG_ATTACH attached."""
    if not loose:
        return
    for number, folder in _cgroups().items():
        with suppress(OSError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for attach_type in ATTACH.values():
                    with suppress(OSError):  # a kernel without this type has the others
                        for program in loose & set(objects.attached_to(fd, attach_type)):
                            yield program, number, attach_type
            finally:
                os.close(fd)


def _detach_legacy(folder: str, one: Attached) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        objects.detach_program(fd, one.program_id, one.attach_type)
    finally:
        os.close(fd)


def _pinned_folders() -> Iterator[tuple[int, Path]]:
    """(link, the instance's folder) of every link that is pinned in a folder of ours, wherever mounted."""
    for top in bpf_file_systems():
        folders: list[Path] = []
        with suppress(OSError):
            folders = [folder for folder in (top / FOLDER).iterdir() if not folder.is_symlink()]
        for folder in folders:
            with suppress(OSError):  # a folder that cannot be read leaves the others
                for path in (*folder.glob("*/*/*"), *folder.glob("*/*")):
                    # Any user may mount a BPF file system in an own namespace, and link to our pins there.
                    if "links" in path.parent.name and not path.is_symlink():
                        with suppress(OSError):
                            yield _link_number(path), folder


def _link_number(pin: Path) -> int:
    fd = libbpf.obj_get(str(pin))
    try:
        return objects.link(fd).number
    finally:
        os.close(fd)


def bpf_file_systems() -> list[Path]:
    """One path to each BPF file system that some process has mounted; ours first."""
    found: dict[int, Path] = {}
    seen: set[str] = set()
    for process in ("self", *_processes()):
        with suppress(OSError):
            namespace = str(Path(f"/proc/{process}/ns/mnt").readlink())
            if namespace in seen:
                continue
            seen.add(namespace)
            root = Path("/") if process == "self" else Path(f"/proc/{process}/root")
            for mount in procfs.mounts(procfs.kernel_text(Path(f"/proc/{process}/mountinfo"))):
                path = root / mount.point.lstrip("/")
                with suppress(OSError):  # one that cannot be reached leaves the others
                    if mount.kind == "bpf":
                        found.setdefault(path.stat().st_dev, path)
    return list(found.values())


def _processes() -> list[str]:
    return sorted((path.name for path in Path("/proc").iterdir() if path.name.isdigit()), key=int)


def _holders(one: Attached) -> list[str]:
    """Processes that hold the program or its link, and pins of the link."""
    texts = [f"prog_id:\t{one.program_id}", *([f"link_id:\t{one.link_id}"] if one.link_id else [])]
    wanted = {text.encode() for text in texts}
    found = []
    for process in _processes():
        with suppress(OSError):
            if any(_says(info, wanted) for info in Path(f"/proc/{process}/fdinfo").iterdir()):
                name = Path(f"/proc/{process}/comm").read_bytes().strip()
                found.append(f"process {process} ({name.decode('ascii', 'backslashreplace')})")
    with suppress(OSError):
        found += [str(folder) for number, folder in _pinned_folders() if number == one.link_id]
    return found[:MAX_HOLDERS]


def _says(info: Path, wanted: set[bytes]) -> bool:
    """Whether one of these lines stands in a file of /proc; one that is closed meanwhile hides no other."""
    with suppress(OSError):
        return not wanted.isdisjoint(info.read_bytes().split(b"\n"))
    return False
