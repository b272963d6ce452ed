"""Panic and resume from outside of the agents: of one, or of all that are on this host.

The flags come first, so that no agent puts back what is taken; then the pins go, whoever made them; then
the agents that run are told. Nothing of it waits for a network, and one failure does not stop the rest.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from aegisflux.agent import notes, remember
from aegisflux.agent.control import SOCKET, ask
from aegisflux.agent.notes import Note
from aegisflux.agent.state import FileStore
from aegisflux.domain.errors import Refused, Unavailable

ASK_SECONDS: Final = 3.0
TRIES: Final = 3

RemovePins = Callable[[Path, str], None]


class Meant(NamedTuple):
    """Whom a command is about: agents, and (BPF file system, instance) of what else is pinned."""

    agents: tuple[Note, ...]
    pins: tuple[tuple[Path, str], ...]
    others: tuple[str, ...] = ()


def meant(
    settings: Note,
    known: Iterable[Note],
    pinned: Iterable[tuple[Path, str]],
    instance: str | None,
    *,
    said: bool,
) -> Meant:
    """One instance that is named, by --instance or by settings that somebody `said` and that agree with an
    agent of this host; otherwise every one.
    """
    agents, pins = {note.state_dir: note for note in known}, set(pinned)
    if instance is None and said and _agrees(settings, agents.get(settings.state_dir)):
        chosen = [agents.get(settings.state_dir, settings)]
    elif instance is not None:
        chosen = [note for note in agents.values() if note.instance == instance]
        pins_of = {pin for pin in pins if pin[1] == instance}
        others = tuple(sorted({name for _, name in pins - pins_of}))
        return Meant(tuple(chosen), tuple(sorted(pins_of)), others)
    else:
        if notes.is_enrolled(Path(settings.state_dir)) or not (agents or pins):
            agents.setdefault(settings.state_dir, settings)
        return Meant(tuple(agents.values()), tuple(sorted(pins)))
    own = {(Path(n.bpffs).resolve(), n.instance) for n in chosen if n.datapath != "simulated"}
    others = tuple(sorted({name for _, name in pins - own}))
    return Meant(tuple(chosen), tuple(sorted(own)), others)


def _agrees(settings: Note, own: Note | None) -> bool:
    if own is None:
        return notes.is_enrolled(Path(settings.state_dir))
    return own.instance == settings.instance


def panic(about: Meant, why: str, remove: RemovePins) -> list[str]:
    """Remove every enforcement of these; the failures, in words."""
    failed = []
    for note in about.agents:
        try:
            store = FileStore(Path(note.state_dir))
            if remember.read_panic(store) is None:
                remember.write_panic(store, remember.Panic(time.time(), why))
        except Unavailable as error:
            failed.append(f"{note.instance}: panicked until its agent loads again: {error}")
    failed += _without_pins(about, remove)
    for note in about.agents:
        _told(note, {"do": "panic", "why": why})
    return failed + _without_pins(about, remove)


def resume(about: Meant) -> tuple[list[Note], list[Note]]:
    """End the panic of those that are in one: (those that run, those that do not)."""
    running: list[Note] = []
    idle: list[Note] = []
    for note in about.agents:
        store = FileStore(Path(note.state_dir))
        if remember.read_panic(store) is not None:
            store.delete(remember.PANIC)
            (running if _told(note, {"do": "resume"}) else idle).append(note)
    return running, idle


def _without_pins(about: Meant, remove: RemovePins) -> list[str]:
    failed = []
    for folder, instance in about.pins:
        for _ in range(TRIES):  # an agent may be pinning at this moment
            try:
                remove(folder, instance)
            except (OSError, Unavailable) as error:
                trouble = f"{instance}: {error}"
            else:
                trouble = f"{instance}: its pins below {folder} come back: stop its agent"
            if not (folder / notes.PINS / instance).exists():
                break
        else:
            failed.append(trouble)
    return failed


def _told(note: Note, question: dict[str, str]) -> bool:
    try:
        list(ask(Path(note.state_dir) / SOCKET, question, ASK_SECONDS))
    except (Unavailable, Refused):
        return False
    return True
