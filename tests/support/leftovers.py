"""What tests, benchmarks and demos leave on this host beside their folders: notes, panics, pins, markers.

They name an instance after the process that made it, so that it is known whose it is; or their state folder
lies in the temporary folder of a pytest, which says in `.lock` which process it is.
"""

import json
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aegisflux.agent.control import sockets_of

NOTES, PANICS = Path("/run/aegisflux/agents"), Path("/run/aegisflux/panic")
MARKERS, PINS = Path("/sys/fs/bpf/aegisflux-panic"), Path("/sys/fs/bpf/aegisflux")

# Names of labs, of their cgroups and of instances; never what somebody may call an agent of this host.
_MADE = re.compile(
    r"(?:(?:aegisflux-|test-|bench-)?(?:af|demo)|test-(?:bench|contract)-|aegisflux-(?:agent|contract|web|db)-)(\d+)(?:-|$)"
)

_PYTEST, _OF_USER = re.compile(r"pytest-\d+"), re.compile(r"pytest-of-")


def maker(name: str) -> int | None:
    """The process that made something of this name; None where it is none of ours."""
    found = _MADE.match(name)
    return int(found.group(1)) if found else None


def of_the_dead(name: str) -> bool:
    """Whether a process made something of this name and did not live to take it away."""
    pid = maker(name)
    return pid is not None and not Path("/proc", str(pid)).exists()


def of_a_dead_pytest(state: Path) -> bool:
    """Whether this state folder lies in the temporary folder of a pytest that ended, and no agent runs."""
    above = state.parents
    tops = [one for one in above if _PYTEST.fullmatch(one.name) and _OF_USER.match(one.parent.name)]
    if not tops:
        return False
    with suppress(OSError, ValueError):
        if Path("/proc", str(int((tops[0] / ".lock").read_text()))).exists():
            return False
    return not any(_listens(path) for path in sockets_of(state))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line, suppress(OSError):
        return line.connect_ex(str(path)) == 0
    return False


def below(folder: Path) -> list[Path]:
    """Notes and panics of agents whose state folder lies below this one."""
    return [path for path, told in _told() if folder in (told, *told.parents)]


def of_this_process() -> list[Path]:
    """Markers and pins of instances that this process made."""
    return _of_instances(lambda name: maker(name) == os.getpid())


def of_dead_processes() -> list[Path]:
    """Markers and pins of instances whose maker was killed, and what was told in /run of these instances."""
    told = [path for path, _ in _told(of_the_dead)]
    told += [path for path, state in _told() if of_a_dead_pytest(state) and path not in told]
    return told + _of_instances(of_the_dead)


def remove(paths: list[Path]) -> None:
    """Take them away; no agent of theirs runs any more. Programs are detached with their pins."""
    for path in paths:
        with suppress(FileNotFoundError):  # another process sweeps too
            for inner in sorted(path.rglob("*"), reverse=True) if path.is_dir() else ():
                inner.rmdir() if inner.is_dir() else inner.unlink()
            path.rmdir() if path.is_dir() else path.unlink()


def _of_instances(wanted: Callable[[str], bool]) -> list[Path]:
    names = [(at, name) for at in (MARKERS, PINS) if at.is_dir() for name in os.listdir(at)]
    return [at / name for at, name in names if wanted(name)]


def _told(wanted: Callable[[str], bool] = lambda _: True) -> list[tuple[Path, Path]]:
    """Notes and panics in /run with the state folder that each names. A panic does not name its instance:
    it is called like the note of the same folder.
    """
    found: list[tuple[Path, Path]] = []
    names: dict[str, str] = {}
    for path in [*NOTES.glob("*.json"), *PANICS.glob("*.json")]:
        try:
            told = json.loads(path.read_bytes())
            names.setdefault(path.name, told.get("instance", ""))
            state = Path(told["state_dir"])
        except (OSError, ValueError, KeyError):
            continue
        if wanted(names[path.name]):
            found.append((path, state))
    return found
