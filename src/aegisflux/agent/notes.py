"""Where the agents of this host are. Each that runs leaves a note that says how, so that a command finds it
whatever its own environment says. Pins need no note: those that are there are the truth (`pinned`).
"""

import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from aegisflux.agent.control import SOCKET
from aegisflux.agent.identity import IDENTITY
from aegisflux.agent.remember import PANIC
from aegisflux.domain.errors import BROKEN, Refused, shown
from aegisflux.runtime import procfs

NOTES: Final = Path("/run/aegisflux/agents")
PINS: Final = "aegisflux"
BPFFS: Final = Path("/sys/fs/bpf")


class Note(Struct, frozen=True):
    """The settings that an agent runs, or ran, with."""

    host_id: str
    state_dir: str
    instance: str
    attach_cgroup: str
    bpffs: str
    datapath: str

    @property
    def state(self) -> Path:
        """Its state folder."""
        return Path(self.state_dir)

    @property
    def pins(self) -> Path:
        """Where its instance is pinned, while it is."""
        return Path(self.bpffs) / PINS / self.instance

    def __str__(self) -> str:
        return f"{self.instance} (host {self.host_id}, state {self.state_dir})"


def leave(note: Note, folder: Path = NOTES) -> None:
    """Write it, in place of an earlier one of this state folder; raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = folder / f".{os.getpid()}"
    draft.write_bytes(msgspec.json.encode(note))
    draft.replace(_path(note, folder))


def take_away(note: Note, folder: Path = NOTES) -> None:
    """The agent ended: forget it where nothing of it is pinned and no panic is to be ended."""
    pinned_still = note.datapath != "simulated" and note.pins.exists()
    if not pinned_still and not (Path(note.state_dir) / PANIC).exists():
        with suppress(OSError):
            _path(note, folder).unlink()


def read(folder: Path = NOTES) -> list[Note]:
    """All notes; those of agents of which nothing is left (no enrolment, no panic, no pins) are swept."""
    found = []
    for path in sorted(folder.glob("*.json")) if os.access(folder, os.R_OK | os.X_OK) else ():
        try:
            note = msgspec.json.decode(path.read_bytes(), type=Note)
        except (OSError, *BROKEN):
            continue
        if is_enrolled(note.state) or (note.state / PANIC).exists() or note.pins.exists():
            found.append(note)
        else:
            with suppress(OSError):
                path.unlink()
    return found


def is_running(note: Note) -> bool:
    """Whether an agent listens there; one that is stopped (SIGSTOP) does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(1.0)
        with suppress(OSError):  # a path that is too long for a socket
            return line.connect_ex(f"{note.state_dir}/{SOCKET}") == 0
        return False


def choose(
    notes: Iterable[Note],
    state: Path,
    instance: str | None,
    *,
    said: bool,
    running: Callable[[Note], bool] = is_running,
) -> Note | None:
    """The agent that a command means; None: go by the settings. Raises Refused when it could be several.

    An instance that is named; else the agent of the settings' state folder, where it runs or where somebody
    `said` so and one was enrolled there; else the only one that runs; else what there was. An instance
    that is named is never taken for another one: `unknown` is what is said of it.
    """
    known = [note for note in notes if instance is None or note.instance == instance]
    own = next((note for note in known if Path(note.state_dir) == state), None)
    if own is not None and running(own):
        return own
    if said and instance is None and (own is not None or is_enrolled(state)):
        return own
    live = [note for note in known if running(note)]
    if len(live) > 1:
        names = ", ".join(map(str, live))
        raise Refused(
            f"several agents run on this host: {names}; name one with --instance, or its state folder"
        )
    if live:
        return live[0]
    if own is not None or (instance is None and is_enrolled(state)):
        return own
    return known[0] if len(known) == 1 and not said else None


def unknown(instance: str, known: Iterable[str]) -> Refused:
    """What is said of an --instance that is none of this host."""
    names = ", ".join(sorted(set(known))) or "none"
    return Refused(f"--instance: expected an instance of this host ({names}), got {shown(instance)}")


def is_enrolled(state: Path) -> bool:
    """Whether an agent was enrolled in this state folder, as far as we may see."""
    with suppress(OSError):
        return (state / IDENTITY).exists()
    return False


def pinned(folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """(BPF file system, instance) of everything of ours that is pinned. By the kernel's defaults any user may
    make folders in a BPF file system: one that is not ours holds no instances."""
    found = set()
    for folder in {folder.resolve() for folder in folders}:
        with suppress(OSError):
            if (folder / PINS).lstat().st_uid == os.geteuid():
                found |= {(folder, one.name) for one in (folder / PINS).iterdir() if one.is_dir()}
    return sorted(found)


def bpf_file_systems(mountinfo: str) -> list[Path]:
    """Where they are mounted, by the text of /proc/self/mountinfo."""
    return [Path(mount.point) for mount in procfs.mounts(mountinfo) if mount.kind == "bpf"]


def _path(note: Note, folder: Path) -> Path:
    return folder / f"{sha256(os.fsencode(note.state_dir)).hexdigest()[:16]}.json"
