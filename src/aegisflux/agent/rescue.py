"""Panic and resume from outside of the agents: of one, or of all that are on this host.

Panic acts first and writes afterwards:

1. what links of these instances attach is detached, by the kernel's own list: before anything whose cost a
   user of this host chooses (processes, mounts, cgroups, other programs and maps);
2. each instance is marked in the kernel's memory, so that no agent attaches its programs again;
3. the agents that run are told, and nobody waits for one that is stuck;
4. everything else of these that the kernel holds is detached and unpinned;
5. the kernel is asked again: what is still attached is an error that names it;
6. the panic is written to /run and to the state folders, as far as they can be written.

Nothing of it waits for a network, and one failure does not stop the rest.
"""

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from aegisflux.agent import notes
from aegisflux.agent.control import Call
from aegisflux.agent.notes import Note
from aegisflux.agent.panics import Flags, Medium, RunMedium, StateMedium, reason
from aegisflux.agent.state import FileStore
from aegisflux.domain.errors import AegisError, Unavailable
from aegisflux.domain.panic import Attached, Owner, Panic, chosen

ANSWER_SECONDS: Final = 1.0
RESUME_SECONDS: Final = 3.0
TRIES: Final = 3

Pin = tuple[Path, str]


class Kernel(Protocol):
    """What the kernel holds of ours, whoever attached it."""

    def linked(self) -> list[Attached]:
        """What is attached by links, at a cost that no user chooses; raises Unavailable as `attached`."""
        ...

    def attached(self) -> list[Attached]:
        """Everything of ours that is attached; raises Unavailable where the kernel does not list it."""
        ...

    def cut(self) -> list[str]:
        """Which searches were too large to be ended, in words."""
        ...

    def visible(self, places: Collection[int]) -> set[int] | None:
        """Which of these cgroups this process sees, None where it sees all of the host's."""
        ...

    def detach(self, attached: Iterable[Attached]) -> None:
        """End these; what could not be ended stays in `attached()`."""
        ...

    def unpin(self, attached: Iterable[Attached]) -> list[str]:
        """Remove the folders of pins of these, wherever they are mounted; failures in words."""
        ...

    def erase(self, bpffs: Path, instance: str) -> None:
        """Remove an instance's folder of pins; raises OSError."""
        ...

    def marker(self, bpffs: Path, instance: str, state_dir: str = "") -> Medium:
        """The marker of an instance's panic in the kernel."""
        ...

    def marked(self) -> list[Owner]:
        """Whose panics are marked in the kernel."""
        ...

    def describe(self, one: Attached) -> str:
        """Name an attachment, and who holds it."""
        ...


class Meant(NamedTuple):
    """Whom a command is about: agents, and (BPF file system, instance) of what else is pinned.

    instances: their names, None for every one of this host
    """

    agents: tuple[Note, ...]
    pins: tuple[Pin, ...]
    others: tuple[str, ...] = ()
    instances: frozenset[str] | None = None

    @property
    def simulated(self) -> bool:
        """Whether this is about named agents whose datapaths are simulated, and about nothing else."""
        named = self.instances is not None and bool(self.agents) and not self.pins
        return named and all(note.datapath == "simulated" for note in self.agents)


class Outcome(NamedTuple):
    """What a panic came to.

    found:     instances that something was removed of, or whose agent runs
    left:      what still enforces, in words; empty: nothing does
    unwritten: (instance, medium and reason) of what could not be written
    fleeting:  instances whose panic no medium holds: it lasts as long as their agent runs, if one does
    idle:      instances that are enrolled here, of which nothing runs or is attached: they stay so
    cut:       what was not searched to its end, in words
    """

    found: tuple[str, ...]
    left: tuple[str, ...]
    unwritten: tuple[tuple[str, str], ...]
    fleeting: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()


def meant(
    settings: Note,
    known: Iterable[Note],
    pinned: Iterable[Pin],
    instance: str | None,
    *,
    said: bool,
) -> Meant:
    """One instance that is named, by --instance or by settings that the caller `said` and that agree with an
    agent of this host; otherwise every one.
    """
    agents, pins = {note.state_dir: note for note in known}, set(pinned)
    if instance is None and said and _agrees(settings, agents.get(settings.state_dir)):
        picked = [agents.get(settings.state_dir, settings)]
    elif instance is not None:
        picked = [note for note in agents.values() if note.instance == instance]
        pins_of = {pin for pin in pins if pin[1] == instance}
        others = tuple(sorted({name for _, name in pins - pins_of}))
        return Meant(tuple(picked), tuple(sorted(pins_of)), others, frozenset({instance}))
    else:
        if notes.is_enrolled(Path(settings.state_dir)) or not (agents or pins):
            agents.setdefault(settings.state_dir, settings)
        return Meant(tuple(agents.values()), tuple(sorted(pins)))
    own = {(Path(n.bpffs).resolve(), n.instance) for n in picked if n.datapath != "simulated"}
    others = tuple(sorted({name for _, name in pins - own}))
    return Meant(tuple(picked), tuple(sorted(own)), others, frozenset(n.instance for n in picked))


def _agrees(settings: Note, own: Note | None) -> bool:
    if own is None:
        return notes.is_enrolled(Path(settings.state_dir))
    return own.instance == settings.instance


def with_kernel(
    known: Iterable[Note],
    attached: Iterable[Attached],
    visible: set[int] | None = None,
    marked: Iterable[Owner] = (),
) -> list[Note]:
    """The notes, and one for each agent that only the kernel knows: its note is lost, or /run is."""
    found = {note.state_dir: note for note in known}
    owners = [one.owner for one in chosen(attached, None, visible) if one.owner is not None]
    if visible is None:  # a marker does not say where its instance is attached
        owners += marked
    for owner in owners:
        if owner.state_dir:
            bpffs = owner.bpffs or str(notes.BPFFS)
            made = Note("-", owner.state_dir, owner.instance, owner.attach_cgroup, bpffs, "bpf")
            found.setdefault(made.state_dir, made)
    return list(found.values())


def end_at_once(about: Meant, kernel: Kernel) -> list[Attached]:
    """Detach what links of these instances attach, and nothing else; what that was. It may be attached again
    by an agent that runs: `panic` sees to that."""
    view = _View(kernel, about)
    there = [one for one in view.linked() if one.judges]
    kernel.detach(there)
    return there


def panic(
    about: Meant,
    why: str,
    kernel: Kernel,
    wall: Callable[[], float] = time.time,
    ended: Iterable[Attached] = (),
) -> Outcome:
    """Remove every enforcement of these, and keep it so until it is resumed. `ended` is what of them was
    detached already."""
    view = _View(kernel, about)
    before = [*ended, *end_at_once(about, kernel)]
    there = list(dict.fromkeys([*before, *view.attached()]))
    flags = {note.state_dir: flags_of(note, kernel) for note in about.agents}
    fresh = Panic(wall(), why)
    panics = {state: found.standing() or fresh for state, found in flags.items()}
    unwritten = _marked(about, there, kernel, fresh, panics)
    # an agent may know that the panic of a medium that nobody can write has ended: this one has not
    calls = [_told(note, fresh) for note in about.agents]
    unpinned = _taken_down(about, there, view)
    until = time.monotonic() + ANSWER_SECONDS
    running = [note for note, call in zip(about.agents, calls, strict=True) if call.answer(until) is not None]
    if left := view.judging():  # an agent may have been attaching while we detached
        unpinned = _taken_down(about, left, view)
        left = view.judging()
    found = {one.instance for one in there} | {name for _, name in about.pins}
    found |= {note.instance for note in running}
    idle = {note.instance for note in about.agents if notes.is_enrolled(note.state)} - found
    fleeting = []
    for note in about.agents:
        if note.instance not in found | idle:
            continue  # there never was an agent
        flag = flags[note.state_dir]
        failed = [(note.instance, text) for text in flag.keep(panics[note.state_dir])]
        unwritten += [one for one in failed if one not in unwritten]
        if len(failed) == len(flag.media):
            fleeting.append(note.instance)
    return Outcome(
        tuple(sorted(found)),
        (*view.trouble, *map(kernel.describe, left)),
        (*unwritten, *unpinned),
        tuple(fleeting),
        tuple(sorted(idle)),
        tuple(kernel.cut()),
    )


class _View:
    """What of these instances the kernel has attached, where this process may see it."""

    def __init__(self, kernel: Kernel, about: Meant) -> None:
        self.kernel, self._instances = kernel, about.instances
        self._simulated = about.simulated
        self.trouble: tuple[str, ...] = ()

    def linked(self) -> list[Attached]:
        return self._chosen(self.kernel.linked)

    def attached(self) -> list[Attached]:
        return self._chosen(self.kernel.attached)

    def _chosen(self, listed: Callable[[], list[Attached]]) -> list[Attached]:
        try:
            found = listed()
        except Unavailable as error:
            # a simulation runs where the kernel refuses everything, and has nothing in it
            self.trouble = () if self._simulated else (str(error),)
            return []
        self.trouble = ()
        return chosen(found, self._instances, self.kernel.visible({one.place for one in found}))

    def judging(self) -> list[Attached]:
        return [one for one in self.attached() if one.judges]


def _told(note: Note, panic: Panic) -> Call:
    return Call(note.state, {"do": "panic", "why": panic.why, "at": panic.at})


def _marked(
    about: Meant, there: list[Attached], kernel: Kernel, flag: Panic, panics: dict[str, Panic]
) -> list[tuple[str, str]]:
    """Mark every instance in the kernel; what could not be marked."""
    places = {(Path(n.bpffs), n.instance): panics[n.state_dir] for n in about.agents if n.datapath == "bpf"}
    places |= {pin: flag for pin in about.pins if pin not in places}
    known = {instance for _, instance in places}
    home = next((Path(n.bpffs) for n in about.agents), notes.BPFFS)
    places |= {(home, one.instance): flag for one in there if one.instance not in known | {""}}
    failed = []
    states = {(Path(n.bpffs), n.instance): n.state_dir for n in about.agents}
    for (folder, instance), panic in places.items():
        medium = kernel.marker(folder, instance, states.get((folder, instance), ""))
        try:
            medium.write(panic)
        except (AegisError, OSError) as error:
            failed.append((instance, f"{medium.name}: {reason(error)}"))
    return failed


def _taken_down(about: Meant, there: list[Attached], view: _View) -> list[tuple[str, str]]:
    """Detach and unpin; pins that could not be removed."""
    failed: list[tuple[str, str]] = []
    for _ in range(TRIES):  # an agent may be attaching at this moment
        view.kernel.detach(there)
        failed = [("", text) for text in view.kernel.unpin(there)]
        for folder, instance in about.pins:
            try:
                view.kernel.erase(folder, instance)
            except OSError as error:
                failed.append((instance, f"{folder / notes.PINS / instance}: {error.strerror}"))
        there = view.judging()
        if not there:
            break
    return failed


def flags_of(note: Note, kernel: Kernel) -> Flags:
    """The media of an agent's panic; a state folder that is gone is not made again."""
    media: list[Medium] = []
    if note.datapath == "bpf":
        media.append(kernel.marker(Path(note.bpffs), note.instance, note.state_dir))
    media.append(RunMedium(note.state_dir))
    media.append(_StateFolder(note.state))
    return Flags(media)


class _StateFolder:
    """A state folder that another process may have taken away."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.name = folder, f"the state folder {folder}"

    def read(self, _thorough: bool = False, /) -> Panic | None:
        return self._medium().read() if self._folder.is_dir() else None

    def write(self, panic: Panic) -> None:
        if not self._folder.is_dir():
            raise Unavailable("it does not exist")
        self._medium().write(panic)

    def delete(self) -> None:
        if self._folder.is_dir():
            self._medium().delete()

    def _medium(self) -> StateMedium:
        return StateMedium(FileStore(self._folder))


class Resumed(NamedTuple):
    """What a resume came to: agents that run, agents that do not, and what still holds the panic."""

    running: tuple[Note, ...]
    idle: tuple[Note, ...]
    stuck: tuple[tuple[str, str], ...] = ()
    nameless: tuple[str, ...] = ()


def resume(
    about: Meant, kernel: Kernel, marked: Iterable[Pin] = (), wall: Callable[[], float] = time.time
) -> Resumed:
    """End the panic of those that are in one; `marked` are instances that the kernel says are."""
    running: list[Note] = []
    idle: list[Note] = []
    stuck: list[tuple[str, str]] = []
    for note in about.agents:
        flags = flags_of(note, kernel)
        names = [word.at for word in flags.words(thorough=True) if not word.ended]
        stands = flags.standing(thorough=True) is not None
        if stands:
            stuck += [(note.instance, text) for text in flags.end()]
        # an agent that was told and could write nothing knows it alone
        question = {"do": "resume", "at": wall(), "ended": names}
        answer = Call(note.state, question).answer(time.monotonic() + RESUME_SECONDS)
        if answer is not None and (stands or not answer.get("calm", False)):
            running.append(note)
        elif stands:
            idle.append(note)
    named = {note.instance for note in about.agents}
    nameless = []
    for folder, instance in marked:
        if instance not in named and (about.instances is None or instance in about.instances):
            medium = kernel.marker(folder, instance)
            try:
                medium.delete()
                nameless.append(instance)
            except (AegisError, OSError) as error:
                stuck.append((instance, f"{medium.name}: {reason(error)}"))
    return Resumed(tuple(running), tuple(idle), tuple(stuck), tuple(nameless))
