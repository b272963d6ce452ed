"""What agents of tests leave on this host beside their folders: notes, panics, markers in the kernel."""

import json
import os
from pathlib import Path

NOTES, PANICS = Path("/run/aegisflux/agents"), Path("/run/aegisflux/panic")
MARKERS = Path("/sys/fs/bpf/aegisflux-panic")


def below(folder: Path) -> list[Path]:
    """Notes and panics of agents whose state folder lies below this one."""
    found = []
    for path in [*NOTES.glob("*.json"), *PANICS.glob("*.json")]:
        try:
            state = Path(json.loads(path.read_bytes())["state_dir"])
        except (OSError, ValueError, KeyError):
            continue
        if folder in (state, *state.parents):
            found.append(path)
    return found


def of_this_process() -> list[Path]:
    """Markers of instances that this process named: its number is a part of their names."""
    names = os.listdir(MARKERS) if MARKERS.is_dir() else []
    return [MARKERS / name for name in names if f"{os.getpid()}-" in name]


def remove(paths: list[Path]) -> None:
    """Take them away; no agent of theirs runs any more."""
    for path in paths:
        path.unlink(missing_ok=True)
