"""What this machine lets us do, found by trying it: bpf(), namespaces, a cgroup.

Prints shell assignments: AEGISFLUX_CAN_BPF=1, or AEGISFLUX_CAN_BPF=0 with AEGISFLUX_CAN_BPF_REASON='...'.
Only the standard library is used, so that it runs before anything is installed; it leaves nothing behind.
"""

import ctypes
import errno
import os
import platform
import shlex
import signal
import struct
import sys
from pathlib import Path

SYS_BPF = {"x86_64": 321, "aarch64": 280}
BPF_MAP_CREATE, BPF_PROG_LOAD = 0, 5
BPF_MAP_TYPE_ARRAY, BPF_PROG_TYPE_CGROUP_SKB = 2, 8
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000

LIBC = ctypes.CDLL(None, use_errno=True)


class Refused(OSError):
    """The kernel, or this machine, said no; the message says to what."""


def _bpf(what: str, command: int, attr: bytes) -> int:
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise Refused(f"bpf() on {platform.machine()} is not known here")
    buffer = ctypes.create_string_buffer(attr, 128)
    fd: int = LIBC.syscall(number, command, buffer, len(buffer))
    if fd < 0:
        code = ctypes.get_errno()
        raise Refused(f"{what}: {errno.errorcode.get(code, code)} ({os.strerror(code)})")
    return fd


def try_bpf() -> None:
    """Load `r0 = 1; exit` as a cgroup_skb program and make an array map; raises Refused."""
    program = struct.pack("<BBhi", 0xB7, 0, 0, 1) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "<IIQQ", BPF_PROG_TYPE_CGROUP_SKB, 2, ctypes.addressof(code), ctypes.addressof(licence)
    )
    os.close(_bpf("bpf(PROG_LOAD)", BPF_PROG_LOAD, attr))
    os.close(_bpf("bpf(MAP_CREATE)", BPF_MAP_CREATE, struct.pack("<IIIII", BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0)))


def cgroup2_root() -> Path:
    """The mount point of the cgroup v2 tree; raises Refused where there is none."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    raise Refused("no cgroup v2 tree is mounted")


def try_cgroup() -> None:
    """Make and remove one cgroup at the top of the v2 tree; raises Refused."""
    path = cgroup2_root() / f"aegisflux-probe-{os.getpid()}"
    try:
        path.mkdir()
        path.rmdir()
    except OSError as error:
        raise Refused(f"mkdir {path}: {error.strerror}") from error


def _try_unshare(flags: int, name: str) -> None:
    """Unshare in a child, because nothing takes it back."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        code = 0 if LIBC.unshare(flags) == 0 else ctypes.get_errno()
        os.write(write, bytes([code]))
        os._exit(0)
    os.close(write)
    answer = os.read(read, 1)
    os.close(read)
    os.waitpid(pid, 0)
    if answer != b"\0":
        raise Refused(f"unshare({name}): {os.strerror(answer[0]) if answer else 'no answer'}")


def try_netns() -> None:
    """Make a network and a mount namespace, as `ip netns add` does; raises Refused."""
    _try_unshare(CLONE_NEWNET | CLONE_NEWNS, "CLONE_NEWNET|CLONE_NEWNS")


def try_userns() -> None:
    """Make a user namespace, in which PostgreSQL runs when we are root; raises Refused."""
    _try_unshare(CLONE_NEWUSER, "CLONE_NEWUSER")


TRIALS = {"BPF": try_bpf, "CGROUP": try_cgroup, "NETNS": try_netns, "USERNS": try_userns}


def probe() -> dict[str, str]:
    """For each ability its reason of refusal, or "" where it works."""
    answers: dict[str, str] = {}
    for name, trial in TRIALS.items():
        try:
            trial()
            answers[name] = ""
        except OSError as error:
            answers[name] = str(error)
    return answers


def main() -> None:
    human = "--explain" in sys.argv[1:]
    for name, reason in probe().items():
        if human:
            print(f"  {name.lower():7s} {'works' if not reason else 'refused: ' + reason}")
            continue
        print(f"export AEGISFLUX_CAN_{name}={'0' if reason else '1'}")
        print(f"export AEGISFLUX_CAN_{name}_REASON={shlex.quote(reason)}")


if __name__ == "__main__":
    main()
