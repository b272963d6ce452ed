"""What /proc says of other processes: whether one is still the one we started, and who holds a port."""

import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from aegisflux.domain.errors import Unavailable

LISTEN = "0A"
PROC = Path("/proc")
_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A line of mountinfo: the folder of its file system that is mounted, where, and of which kind."""

    root: str
    point: str
    kind: str


def kernel_text(path: Path) -> str:
    """Return what a file of the kernel holds; raises OSError. Names in it are bytes: those that are not UTF-8
    stand as `surrogateescape` makes them, so that a path made of one is the right path.
    """
    return os.fsdecode(path.read_bytes())


def mounts(mountinfo: str | None = None) -> list[Mount]:
    """Return the mounts of this process, or of the text of a mountinfo; raises OSError.

    Any user may have chosen a path in it (FUSE): only a line feed ends a line and only a space a field, and
    what the kernel writes as `\\040` is a space again. A line that is not one is left out.
    """
    text = kernel_text(PROC / "self/mountinfo") if mountinfo is None else mountinfo
    found = []
    for line in text.split("\n"):
        head, _, tail = line.partition(" - ")
        fields = head.split(" ")
        if len(fields) > 4 and tail:
            found.append(Mount(_plain(fields[3]), _plain(fields[4]), tail.split(" ")[0]))
    return found


def _plain(field: str) -> str:
    """A field whose escapes (`\\040`) are characters again."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens on a port; pid None where it cannot be seen from here."""

    pid: int | None
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})" if self.pid else "a process of another user"


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which the process started; None when there is none or it is a zombie."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes()  # it holds the name of the process
        fields = text.rpartition(b")")[2].split()
        return None if fields[0] in b"ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def is_stopped(pid: int) -> bool:
    """Whether the process was stopped by a signal, such as SIGSTOP, and not continued."""
    try:
        return (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def command_line(pid: int) -> str:
    """The command of a process, at most 120 characters; empty when it is gone."""
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()[:120]


class PidFile:
    """Remembers one process by pid, start time and boot, so that a pid given to somebody else is never
    mistaken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, pid: int) -> None:
        """Remember the process."""
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps({"pid": pid, "start": start_time(pid), "boot": _boot_id()}))
        draft.replace(self.path)

    def alive(self) -> int | None:
        """The pid while that very process lives, else None."""
        try:
            kept = json.loads(self.path.read_text())
            pid, start, boot = kept["pid"], kept["start"], kept["boot"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        same = start is not None and boot == _boot_id() and start_time(pid) == start
        return int(pid) if same else None

    def remove(self) -> None:
        """Forget the process."""
        self.path.unlink(missing_ok=True)


def port_holder(port: int) -> Holder | None:
    """Who listens on the TCP port on any address of this network namespace; None when nobody does."""
    inodes = set(_listening(port))
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and _has_socket(entry, wanted):
            return Holder(int(entry.name), command_line(int(entry.name)))
    return Holder(None, "")


def require_free_port(host: str, port: int, what: str) -> None:
    """Raises Unavailable, naming the holder, when `what` could not listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return
        except OSError as error:
            holder = port_holder(port)
            reason = f"taken by {holder}" if holder else f"not to be had: {error.strerror}"
    raise Unavailable(
        f"{what}: port {port} on {host} is {reason}; stop it, or choose others with --port-base"
    )


def _listening(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _has_socket(entry: Path, wanted: set[str]) -> bool:
    try:
        descriptors = list((entry / "fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if str(descriptor.readlink()) in wanted:
                return True
        except OSError:
            continue
    return False


def _boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()
