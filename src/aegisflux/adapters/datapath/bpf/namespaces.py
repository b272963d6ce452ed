"""Network namespaces of processes: find them, and run something inside."""

import ctypes
import fcntl
import os
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeVar

from aegisflux.adapters.datapath.bpf.listening import account_of_uid

T = TypeVar("T")
CLONE_NEWNET: Final = 0x40000000
THIS_NET: Final = Path("/proc/thread-self/net")
_IN_USE: Final = re.compile(r"^TCP6?: inuse (\d+)", re.MULTILINE)
_libc: Final = ctypes.CDLL(None, use_errno=True)
NAMED: Final = Path("/run/netns")
SO_NETNS_COOKIE: Final = 71
MOST_OF_USERS, MOST_OF_ACCOUNT = 256, 64
MOST_LEVELS: Final = 33  # of user namespaces in each other, by the kernel
NS_GET_USERNS, NS_GET_OWNER_UID = 0xB701, 0xB704

Owner = Literal["ours", "root", "user"]
"""Who rules over a network namespace: the agent's user namespace, or another one that root or a user made."""


def processes(cgroup: Path) -> Iterator[int]:
    """Every process of a cgroup and of those below it."""
    for folder, _, _ in os.walk(cgroup):
        with suppress(OSError):
            yield from map(int, (Path(folder) / "cgroup.procs").read_text().split())


def each_namespace(pids: Iterable[int]) -> Iterator[int]:
    """A descriptor of each network namespace that these processes live in, open until the next is asked for:
    users make more of them than there are descriptors."""
    seen: set[int] = set()
    for pid in pids:
        path = f"/proc/{pid}/ns/net"
        with suppress(OSError):
            inode = os.stat(path).st_ino  # noqa: PTH116 - there are many, and a Path is slow
            if inode in seen:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            seen.add(inode)
            try:
                yield fd
            finally:
                os.close(fd)


def namespaces(pids: Iterable[int], left: set[int]) -> dict[int, int]:
    """An open descriptor of each network namespace that these processes live in, by inode; the caller
    closes. `left` gets those of other user namespaces beyond `MOST_OF_USERS`, or beyond `MOST_OF_ACCOUNT` of
    one account: they shall not take all descriptors, nor all places of others."""
    found: dict[int, int] = {}
    of: Counter[str] = Counter()
    for pid in pids:
        path = f"/proc/{pid}/ns/net"
        with suppress(OSError):
            inode = os.stat(path).st_ino  # noqa: PTH116 - there are many, and a Path is slow
            if inode in found or inode in left:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            found[inode] = fd
            account = account_of(fd)
            if account is None:
                continue
            if of[account] >= MOST_OF_ACCOUNT or of.total() >= MOST_OF_USERS:
                os.close(found.pop(inode))
                left.add(inode)
            else:
                of[account] += 1
    return found


def account_of(fd: int) -> str | None:
    """Whose account made the network namespace behind this descriptor: None where it is of the agent's user
    namespace. Those of user namespaces in each other are of who made the outermost; one that root made (a
    container with users of its own) is an account by itself. Raises OSError where it is none."""
    ours = os.stat("/proc/self/ns/user").st_ino  # noqa: PTH116 - for each namespace
    at, held = fd, list[int]()
    try:
        for _ in range(MOST_LEVELS + 1):
            above = fcntl.ioctl(at, NS_GET_USERNS)
            held.append(above)
            if os.fstat(above).st_ino == ours:
                break
            at = above
    except PermissionError:  # of a user namespace that is not below ours
        return "others"
    else:
        if at == fd:
            return None
        (uid,) = struct.unpack("=I", fcntl.ioctl(at, NS_GET_OWNER_UID, bytes(4)))
        return account_of_uid(uid) if uid else f"user namespace {os.fstat(at).st_ino}"
    finally:
        for one in held:
            os.close(one)


def owner_of(fd: int) -> Owner:
    """Who rules over the network namespace behind this descriptor. Raises OSError where it is none."""
    try:
        users = fcntl.ioctl(fd, NS_GET_USERNS)
    except PermissionError:  # of a user namespace that is not below ours
        return "user"
    try:
        if os.fstat(users).st_ino == os.stat("/proc/self/ns/user").st_ino:  # noqa: PTH116 - for each namespace
            return "ours"
        (uid,) = struct.unpack("=I", fcntl.ioctl(users, NS_GET_OWNER_UID, bytes(4)))
        return "user" if uid else "root"
    finally:
        os.close(users)


def owner_at(path: str) -> Owner:
    """The same of the namespace at this path. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return owner_of(fd)
    finally:
        os.close(fd)


def inside(fd: int, call: Callable[[], T]) -> T:
    """The result of a call made by a thread inside that namespace."""
    (answer,) = inside_each([fd], call)
    if isinstance(answer, Exception):
        raise answer
    return answer


def inside_each(fds: Iterable[int], call: Callable[[], T]) -> list[T | Exception]:
    """The results of a call made inside each of these namespaces by one thread, or why there is none."""
    answers: list[T | Exception] = []

    def run() -> None:
        try:
            answers.extend(_answer(fd, call) for fd in fds)
        except Exception as err:  # noqa: BLE001 - it is the answer of the thread that asked
            answers.append(err)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    return answers


def _answer(fd: int, call: Callable[[], T]) -> T | Exception:
    try:
        if _libc.setns(fd, CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"setns: {os.strerror(code)}")
        return call()
    except Exception as err:  # noqa: BLE001 - it is the answer of the thread that asked
        return err


def has_tcp() -> bool:
    """Whether the calling thread's namespace may have a TCP socket that is bound to a port. It costs a
    hundredth of a look at the sockets: the kernel has one table of them for all namespaces."""
    try:
        text = "".join((THIS_NET / name).read_text() for name in ("sockstat", "sockstat6"))
    except OSError:  # such as no IPv6
        return True
    return any(int(count) for count in _IN_USE.findall(text))


def cookie() -> int:
    """The kernel's number of the calling thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return int(struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])
