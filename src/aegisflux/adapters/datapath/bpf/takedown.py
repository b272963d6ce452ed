"""What of ours a kernel has attached, and its end, by the kernel's own list: it needs no pin and no note."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from aegisflux.adapters.datapath.bpf import elsewhere, objects
from aegisflux.adapters.datapath.bpf.elsewhere import Budget
from aegisflux.adapters.datapath.bpf.owner import Marker, owner_of, owners_marked
from aegisflux.adapters.datapath.bpf.pins import ATTACH, FOLDER, erase
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.panic import Attached, Kind, Owner, describe
from aegisflux.runtime.cgroupfs import paths_of, shallow_first, v2_root

PREFIX: Final = "aegis_"
CGROUP_KINDS: Final = {8, 9, 13, 18}  # cgroup_skb, cgroup_sock, sock_ops, cgroup_sock_addr
ALL_CGROUPS: Final = 0xEFFFFFFB  # inode of the first cgroup namespace
MAX_HOLDERS: Final = 8
WALK_SECONDS: Final = 2.0
HOLDER_SECONDS: Final = 1.0
PINS_CUT: Final = (
    "the mount namespaces of this host are too many or too large: not all were searched for pins; "
    "what is pinned there is detached all the same"
)
WALK_CUT: Final = (
    "the cgroups of this host are too many: not all were asked for programs that were attached without a link"
)


class Kernel:
    """This kernel's attachments of ours; `agent.rescue.Kernel`. One serves one command: it searches other
    mount namespaces at most once."""

    def __init__(self) -> None:
        self._elsewhere: list[Path] | None = None
        self._cut: set[str] = set()

    def linked(self) -> list[Attached]:
        """What links of ours attach: root alone chooses what this costs. Raises Unavailable where the kernel
        does not tell."""
        try:
            return _named(self._links({}), elsewhere.here)[0]
        except OSError as error:
            raise _refused(error) from None

    def attached(self) -> list[Attached]:
        """Everything of ours that is attached anywhere. Raises Unavailable where the kernel does not tell."""
        known: dict[int, Owner | None] = {}
        try:
            found, nameless = _named(self._links(known), elsewhere.here)
            if nameless:
                found = _named(found, self._everywhere)[0]
            linked = {one.program for one in objects.links()}
            ours = {p.number: p for p in objects.programs() if p.name.startswith(PREFIX)}
            loose = {n: p for n, p in ours.items() if n not in linked and p.kind in CGROUP_KINDS}
            owners = {number: owner_of(p.maps, known) for number, p in loose.items()}
            for number, cgroup, attach_type in self._without_links(owners):
                owner = owners[number]
                name, instance = ours[number].name, owner.instance if owner else ""
                found.append(Attached(number, name, "legacy", 0, cgroup, attach_type, owner, instance))
        except OSError as error:
            raise _refused(error) from None
        return found

    def _links(self, known: dict[int, Owner | None]) -> list[Attached]:
        """Of links, as far as owners' maps name them. Only the programs of links are asked: a user may load
        programs, and attach none."""
        asked: dict[int, objects.Program | None] = {}
        found = []
        for link in objects.links():
            if link.program not in asked:
                asked[link.program] = objects.numbered(link.program)
            program = asked[link.program]
            if program is None or not program.name.startswith(PREFIX):
                continue
            if link.kind == objects.CGROUP and not link.cgroup:
                continue  # detached, and held by somebody
            owner = owner_of(program.maps, known)
            kind: Kind = "link" if link.kind == objects.CGROUP else "tracepoint"
            of = owner.instance if owner else ""
            place = (link.number, link.cgroup, link.attach_type)
            found.append(Attached(link.program, program.name, kind, *place, owner, of))
        return found

    def _without_links(self, owners: Mapping[int, Owner | None]) -> Iterator[tuple[int, int, int]]:
        """(program, cgroup, attach type) of what BPF_PROG_ATTACH attached: first where their owners say, then
        from the top down, what root made before what users made."""
        if not owners:
            return
        budget, seen = Budget(WALK_SECONDS), set[int]()
        first = paths_of({owner.attach for owner in owners.values() if owner})
        for number, folder in (*first.items(), *_walk(budget)):
            if number not in seen:
                seen.add(number)
                for program, attach_type in _programs_at(folder, owners.keys()):
                    yield program, number, attach_type
        if budget.is_spent:
            self._cut.add(WALK_CUT)

    def _everywhere(self) -> list[Path]:
        if self._elsewhere is None:
            budget = Budget()
            self._elsewhere = elsewhere.everywhere(budget)
            if budget.is_spent:
                self._cut.add(PINS_CUT)
        return self._elsewhere

    def cut(self) -> list[str]:
        """Which searches were too large to be ended, in words."""
        return sorted(self._cut)

    def visible(self, places: Collection[int]) -> set[int] | None:
        """Which of these cgroups this process sees, None where it sees all of the host's."""
        with suppress(OSError):
            if Path("/proc/self/ns/cgroup").stat().st_ino == ALL_CGROUPS:
                return None
        return set(paths_of(places))

    def detach(self, attached: Iterable[Attached]) -> None:
        """End these, those that judge packets first; what could not be ended is still attached."""
        for one in sorted(attached, key=lambda a: a.name not in ("aegis_egress", "aegis_ingress")):
            with suppress(OSError, KeyError):  # KeyError: a cgroup that went, or that is not seen from here
                if one.kind == "link":
                    objects.detach_link(one.link_id)
                elif one.kind == "legacy":
                    _detach_legacy(paths_of({one.cgroup_id})[one.cgroup_id], one)

    def unpin(self, attached: Iterable[Attached]) -> list[str]:
        """Remove the instances' folders of pins in which a link of these is pinned: in the file systems that
        are seen from here, and where these have not all in those of other mount namespaces; what could not be
        removed, in words."""
        links = {one.link_id for one in attached if one.link_id}
        found = {n: folder for n, folder in elsewhere.pinned_links(elsewhere.here()) if n in links}
        folders = set(found.values())
        if links - found.keys():
            folders |= {f for number, f in elsewhere.pinned_links(self._everywhere()) if number in links}
        failed = []
        for folder in folders:
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
        path = paths_of({one.place}).get(one.place, "")
        shown = "/" + path.removeprefix(str(v2_root(part=True))).strip("/") if path else ""
        return describe(one, shown, _holders(one))


def _refused(error: OSError) -> Unavailable:
    return Unavailable(f"the kernel does not list its BPF programs: {error.strerror}; run as root")


def _named(found: list[Attached], tops: Callable[[], list[Path]]) -> tuple[list[Attached], bool]:
    """These with the names that pins in these file systems give to those without an owner; whether some have
    none still."""
    if all(one.instance for one in found):
        return found, False
    pinned = {number: folder.name for number, folder in elsewhere.pinned_links(tops())}
    named = [one if one.instance else replace(one, instance=pinned.get(one.link_id, "")) for one in found]
    return named, not all(one.instance for one in named)


def _walk(budget: Budget) -> Iterator[tuple[int, str]]:
    with suppress(Unavailable, OSError):
        yield from shallow_first(v2_root(part=True), budget.take)


def _programs_at(folder: str, wanted: Collection[int]) -> list[tuple[int, int]]:
    """(program, attach type) of these programs at a cgroup."""
    found = []
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for attach_type in ATTACH.values():
                with suppress(OSError):  # a kernel without this type has the others
                    found += [(n, attach_type) for n in objects.attached_to(fd, attach_type) if n in wanted]
        finally:
            os.close(fd)
    return found


def _detach_legacy(folder: str, one: Attached) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        objects.detach_program(fd, one.program_id, one.attach_type)
    finally:
        os.close(fd)


def _holders(one: Attached) -> list[str]:
    """Processes that hold the program or its link, and pins of the link."""
    texts = [f"prog_id:\t{one.program_id}", *([f"link_id:\t{one.link_id}"] if one.link_id else [])]
    wanted = {text.encode() for text in texts}
    found: list[str] = []
    budget = Budget(HOLDER_SECONDS)  # any user has processes and descriptors as many as they like
    for process in elsewhere.processes():
        if not budget.take() or len(found) >= MAX_HOLDERS:
            break
        with suppress(OSError):
            infos = Path(f"/proc/{process}/fdinfo").iterdir()
            if any(_says(info, wanted) for info in takewhile(lambda _: budget.take(), infos)):
                name = Path(f"/proc/{process}/comm").read_bytes().strip()
                found.append(f"process {process} ({name.decode('ascii', 'backslashreplace')})")
    with suppress(OSError):
        pinned = elsewhere.pinned_links(elsewhere.here())
        found += [str(folder) for number, folder in pinned if number == one.link_id]
    return found[:MAX_HOLDERS]


def _says(info: Path, wanted: set[bytes]) -> bool:
    """Whether one of these lines stands in a file of /proc; one that is closed meanwhile hides no other."""
    with suppress(OSError):
        return not wanted.isdisjoint(info.read_bytes().split(b"\n"))
    return False
