"""Panic: whether it stands, by what each medium says, and which programs of a kernel it is about.

A panic is kept on several media (the kernel, /run, the state folder), since any of them may be full or
read-only at the moment that it is needed. Each holds at most one `Panic`. A medium from which it
cannot be deleted is overruled by another medium that says that this very panic ended.
"""

from collections.abc import Collection, Iterable
from typing import Final, Literal

from msgspec import Struct

from aegisflux.domain.bounds import EpochTime

DAMAGED: Final = 0.0  # the time of a panic whose record cannot be read

Kind = Literal["link", "legacy", "tracepoint"]


class Panic(Struct, frozen=True, omit_defaults=True):
    """A panic as one medium records it: it began `at` (wall clock, seconds), and may have ended.

    `at` is the panic's name: an ending ends the panic of exactly that time.
    """

    at: EpochTime
    why: str = ""
    ended: bool = False


def standing(words: Iterable[Panic]) -> Panic | None:
    """Return the earliest panic that nothing ends, None when this host is in no panic."""
    said = list(words)
    ended = {word.at for word in said if word.ended}
    stands = [word for word in said if not word.ended and word.at not in ended]
    return min(stands, key=lambda word: word.at, default=None)


class Owner(Struct, frozen=True, omit_defaults=True):
    """Whose a program is, as a map that is bound to it says: the agent's instance, and where to find it.

    attach: number of the cgroup that the instance is attached at
    """

    instance: str
    bpffs: str = ""
    state_dir: str = ""
    attach: int = 0
    attach_cgroup: str = ""


class Attached(Struct, frozen=True):
    """One attachment of a program of ours that the kernel holds.

    kind:        by a link, by the older BPF_PROG_ATTACH, or to a tracepoint (which judges nothing)
    link_id:     0 without a link
    cgroup_id:   0 for a tracepoint
    attach_type: the kernel's number
    owner:       None where the program does not say
    instance:    by its owner, else by the folder that its link is pinned in, else empty
    """

    program_id: int
    name: str
    kind: Kind
    link_id: int = 0
    cgroup_id: int = 0
    attach_type: int = 0
    owner: Owner | None = None
    instance: str = ""

    @property
    def judges(self) -> bool:
        """Whether it can refuse a packet or a call."""
        return self.kind != "tracepoint"

    @property
    def place(self) -> int:
        """The cgroup that it is about, 0 where that is unknown."""
        return self.cgroup_id or (self.owner.attach if self.owner else 0)


def chosen(
    attached: Iterable[Attached], instances: Collection[str] | None, visible: Collection[int] | None
) -> list[Attached]:
    """Return what a panic is about: of these instances, or of every one where `instances` is None.

    `visible` are the cgroups that this process can see where it does not see all of the host's (it lives in a
    cgroup namespace): what is attached elsewhere belongs to another host in all but name.
    """
    return [
        one
        for one in attached
        if (instances is None or one.instance in instances)
        and (visible is None or not one.place or one.place in visible)
    ]


def describe(one: Attached, path: str, holders: Iterable[str]) -> str:
    """Return what is left of an enforcement in words: program, cgroup, and who holds it."""
    where = f"at {path}" if path else f"at cgroup {one.place}" if one.place else "at no cgroup"
    how = f"link {one.link_id}" if one.link_id else "attached without a link"
    of = f" of instance {one.instance}" if one.instance else ""
    held = ", ".join(holders) or "no process and no pin that can be seen"
    return f"program {one.program_id} ({one.name}){of} {where}, {how}, held by {held}"
