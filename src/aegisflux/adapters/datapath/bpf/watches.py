"""Being told of changes in root's network namespaces, and apart from these of those in users'.

Users change addresses as often as they like. So the numbers (nsid) of their namespaces are given in a network
namespace that we make for this alone: what is told there fills another socket than root's does, and rests
for as long as what it cost was worth.
"""

import ctypes
import os
import select
import struct
import threading
from contextlib import suppress

from aegisflux.adapters.datapath.bpf.namespaces import CLONE_NEWNET
from aegisflux.adapters.datapath.bpf.watch import Changed, Watch

CLOCK_MONOTONIC, NONBLOCK_CLOEXEC = 1, os.O_NONBLOCK | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Watches:
    """`fd` is readable (epoll) while something waits that is to be read now. Raises OSError."""

    def __init__(self) -> None:
        self._root = Watch()
        self._users = _apart()
        self._timer = _libc.timerfd_create(CLOCK_MONOTONIC, NONBLOCK_CLOEXEC)
        self._epoll = select.epoll()
        self._rests = False
        self._epoll.register(self._root.fd, select.EPOLLIN)
        self._epoll.register(self._timer, select.EPOLLIN)
        if self._users is not None:
            self._epoll.register(self._users.fd, select.EPOLLIN)

    @property
    def fd(self) -> int:
        return self._epoll.fileno()

    @property
    def all_namespaces(self) -> bool:
        """See `Watch`."""
        return self._root.all_namespaces

    def close(self) -> None:
        self._epoll.close()
        os.close(self._timer)
        self._root.close()
        if self._users is not None:
            self._users.close()

    def listen_to(self, fd: int, *, is_ours: bool, is_users: bool) -> int | None:
        """See `Watch.listen_to`."""
        if is_users:
            return None if self._users is None else self._users.listen_to(fd, ours=False)
        return self._root.listen_to(fd, is_ours)

    def drain(self) -> Changed:
        """What was told of root's namespaces and of our own since the last call."""
        return self._root.drain()

    def drain_users(self, *, at_once: bool = False) -> Changed | None:
        """The same of users', None while they rest, unless it is to be `at_once`."""
        with suppress(BlockingIOError):
            os.read(self._timer, 8)
            self._rests = False
            if self._users is not None:
                self._epoll.modify(self._users.fd, select.EPOLLIN)
        if self._rests and not at_once:
            return None
        return Changed() if self._users is None else self._users.drain()

    def rest(self, seconds: float) -> None:
        """Let users' namespaces rest; then `fd` is readable."""
        self._rests = True
        if self._users is not None:
            self._epoll.modify(self._users.fd, 0)
        at = struct.pack("=qqqq", 0, 0, int(seconds), max(1, int(seconds % 1 * 1e9)))
        _libc.timerfd_settime(self._timer, 0, at, None)


def _apart() -> Watch | None:
    """A watch in a new network namespace, which lives as long as it does; None where there can be none."""
    found: list[Watch] = []

    def run() -> None:
        if not _libc.unshare(CLONE_NEWNET):
            with suppress(OSError):
                found.append(Watch())

    thread = threading.Thread(target=run, name="watch")
    thread.start()
    thread.join()
    return found[0] if found else None
