"""What an unprivileged user might lay hands on to weaken enforcement on a host: each is refused by Linux.

A touch gets the arena and runs as the user; the process of the test stands for the agent.
"""

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.netns import cgroup_root
from tests.support.unprivileged import SLICE, Arena

NEXT_MAP, PROG_BY_ID, MAP_BY_ID, LINK_BY_ID, OBJ_GET = 12, 13, 14, 30, 7
Touch = Callable[[Arena], object]


def bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    raw = ctypes.create_string_buffer(attributes.ljust(128, b"\0"))
    got = int(libc.syscall(321, command, raw, 128))
    if got < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command}")
    return got


def by_pin(arena: Arena) -> int:
    path = ctypes.create_string_buffer(os.fsencode(arena.kernel.datapath._pins.home / "maps" / "cgroups"))
    return bpf(OBJ_GET, struct.pack("@Q", ctypes.addressof(path)))


def own_route(_arena: Arena) -> None:
    """A local route would make a denied address the host's own."""
    done = subprocess.run(
        ["ip", "route", "add", "local", "10.77.0.3/32", "dev", "lo"], capture_output=True, check=False
    )
    if b"not permitted" in done.stderr:
        raise PermissionError(1, "ip route")
    done.check_returncode()


def written(path: Path, text: str) -> None:
    path.write_text(text)


def in_the_slice(arena: Arena, name: str) -> Path:
    return arena.app.below(None) / SLICE / name


TOUCHES: dict[str, Touch] = {
    "signal the agent": lambda _: os.kill(os.getppid(), 0),
    "read the agent's memory": lambda _: Path(f"/proc/{os.getppid()}/mem").read_bytes(),
    "list maps": lambda _: bpf(NEXT_MAP, bytes(4)),
    "a program by its number": lambda _: bpf(PROG_BY_ID, b"\1\0\0\0"),
    "a map by its number": lambda _: bpf(MAP_BY_ID, b"\1\0\0\0"),
    "a link by its number": lambda _: bpf(LINK_BY_ID, b"\1\0\0\0"),
    "a map by its pin": by_pin,
    "list the pins": lambda arena: os.listdir(arena.kernel.datapath._pins.home),
    "a folder beside the pins": lambda arena: (arena.kernel.datapath._pins.home / "x").mkdir(),
    "join the agent's cgroup": lambda _: written(cgroup_root() / "cgroup.procs", "0"),
    "join the cgroup above": lambda arena: written(in_the_slice(arena, "cgroup.procs"), "0"),
    "freeze the slice": lambda arena: written(in_the_slice(arena, "cgroup.freeze"), "1"),
    "kill the slice": lambda arena: written(in_the_slice(arena, "cgroup.kill"), "1"),
    "a cgroup beside one's own": lambda arena: in_the_slice(arena, "mine").mkdir(),
    "chmod of the own root": lambda arena: in_the_slice(arena, "").chmod(0o777),
    "a local route": own_route,
    "lower the first unprivileged port": lambda _: written(
        Path("/proc/sys/net/ipv4/ip_unprivileged_port_start"), "0"
    ),
}
