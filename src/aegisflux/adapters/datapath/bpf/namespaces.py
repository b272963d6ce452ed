"""Network namespaces of processes: run something inside, and read which addresses are its own."""

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")
CLONE_NEWNET: Final = 0x40000000
NAMED: Final = Path("/run/netns")
MOST_NAMED: Final = 256
SO_NETNS_COOKIE: Final = 71
RTM_NEWADDR, RTM_GETADDR, NLM_F_REQUEST, NLM_F_DUMP, NLMSG_DONE = 20, 22, 1, 0x300, 3
IFA_ADDRESS, IFA_LOCAL = 1, 2


def processes(cgroup: Path) -> Iterator[int]:
    """Every process of a cgroup and of those below it."""
    for folder, _, _ in os.walk(cgroup):
        with suppress(OSError):
            yield from map(int, (Path(folder) / "cgroup.procs").read_text().split())


def namespaces(pids: Iterable[int], named: bool = False) -> dict[int, int]:
    """An open descriptor of each network namespace that these processes live in (and of those that
    `ip netns` named), by inode; the caller closes."""
    found: dict[int, int] = {}
    paths = [f"/proc/{pid}/ns/net" for pid in pids]
    if named and NAMED.is_dir():
        paths += [str(path) for path in sorted(NAMED.iterdir())[:MOST_NAMED]]
    for path in paths:
        with suppress(OSError):
            inode = Path(path).stat().st_ino
            if inode not in found:
                found[inode] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return found


def inside(fd: int, call: Callable[[], T]) -> T:
    """The result of a call made by a thread inside that namespace."""
    answer: list[T] = []
    fault: list[OSError] = []

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            if libc.setns(fd, CLONE_NEWNET):
                code = ctypes.get_errno()
                raise OSError(code, f"setns: {os.strerror(code)}")
            answer.append(call())
        except OSError as err:
            fault.append(err)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if fault:
        raise fault[0]
    return answer[0]


def cookie() -> int:
    """The kernel's number of the calling thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return int(struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


def addresses() -> set[bytes]:
    """The addresses of the calling thread's namespace, each as 16 bytes (IPv4 mapped)."""
    found: set[bytes] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as s:
        s.send(struct.pack("=IHHIIB7x", 24, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, 0))
        while True:
            data = s.recv(1 << 18)
            at = 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind == NLMSG_DONE or length < 16:
                    return found
                if kind == RTM_NEWADDR:
                    found |= _address(data[at + 16 : at + length])
                at += (length + 3) & ~3


def _address(message: bytes) -> set[bytes]:
    values: dict[int, bytes] = {}
    at = 8
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if length < 4:
            break
        values[kind] = message[at + 4 : at + length]
        at += (length + 3) & ~3
    value = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS) or b""
    if len(value) == 4:
        return {bytes(10) + b"\xff\xff" + value}
    return {value} if len(value) == 16 else set()
