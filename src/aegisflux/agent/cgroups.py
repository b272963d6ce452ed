"""The cgroup v2 tree: where it is, what is in it, and being told at once when it changes (inotify).

The tree is read in a thread, since it may be large: nothing that grows with it runs on the event loop.
"""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.agent.reading import Reading, libc, stat_of
from aegisflux.domain.errors import Unavailable
from aegisflux.runtime.cgroupfs import own_cgroup, v2_root

IN_NONBLOCK_CLOEXEC: Final = 0o4000 | 0o2000000
READ_BYTES: Final = 16_384  # of events at a time: the loop does other work in between
Run = Callable[[Callable[[Reading, Reading], bool], Reading, Reading], Awaitable[bool]]


def settle(root: Path, attach: Path, name: str) -> tuple[str | None, Path | None]:
    """The agent's own cgroup, and its path where it was made now.

    An agent that lives where the programs are attached cannot be told from its services by that cgroup: it
    moves to one of its own below it. One that lives above is not judged at all. Raises Unavailable.
    """
    own = own_cgroup()
    home = (root / (own or "")).resolve()
    if attach.resolve() != home:
        return (None if home in attach.resolve().parents else own), None
    made = home / name
    try:
        made.mkdir(exist_ok=True)
        (made / "cgroup.procs").write_text("0")
    except OSError as error:
        raise Unavailable(
            f"the agent lives in {home}, where its programs are attached, and cannot move to {made} "
            f"({error.strerror}): start it in a cgroup of its own, as deploy/aegisflux-agent.service does"
        ) from error
    return str(made.relative_to(root.resolve())), made


def leave(made: Path | None) -> None:
    """Go back to where `settle` found us, and remove what it made."""
    if made is not None:
        with suppress(OSError):
            (made.parent / "cgroup.procs").write_text("0")
            made.rmdir()


class CgroupTree:
    """`Cgroups` of the host. Where inotify works, the tree is kept from events; `scan` then costs nothing.

    It is `blind` where the kernel had no watch left for some cgroup: then only reading the tree tells. The
    owner of a delegated directory makes as many cgroups in it as the kernel allows: they are neither kept nor
    watched, so that they take no room from the rest of the tree.
    """

    def __init__(self, root: Path | None = None, run: Run = asyncio.to_thread) -> None:
        """`run` calls what reads the tree, beside the event loop."""
        self.root = root or v2_root()
        self.own = own_cgroup()
        self._run = run
        self._fd = -1
        self._roots = {0, os.geteuid()}
        self._now, self._unread = self._reading(-1), True
        self._turn = asyncio.Lock()
        self._again: asyncio.Task[None] | None = None
        self._call: Callable[[], None] | None = None

    @property
    def blind(self) -> bool:
        """See `Cgroups.blind`."""
        return self._now.blind

    @property
    def delegated(self) -> frozenset[str]:
        """See `Cgroups.delegated`."""
        return frozenset(self._now.delegated)

    @property
    def skipped(self) -> tuple[str, ...]:
        """See `Cgroups.skipped`."""
        return tuple(self._now.skipped)

    async def scan(self) -> Mapping[str, int]:
        """See `Cgroups.scan`."""
        if self._fd < 0 or self._unread or self.blind:
            await self.rescan()
        return dict(self._now.tree)

    def exists(self, path: str) -> bool:
        """See `Cgroups.exists`."""
        try:
            return stat.S_ISDIR(stat_of(self._now.at(path)).st_mode)
        except (OSError, ValueError):
            return False

    async def rescan(self) -> bool:
        """See `Cgroups.rescan`: in case an event was missed, and whether watches have come free.

        Events wait in the kernel meanwhile. They are taken by what was read: each directory is watched
        before it is read, so that they tell of all that came later.
        """
        async with self._turn:
            self._hear(False)
            found = self._reading(os.dup(self._fd) if self._fd >= 0 else -1)
            try:
                differs = await self._run(_read, found, self._now)
                found.fd, self._now, self._unread = self._fd, found, False
            finally:
                self._hear(True)
        return differs

    def on_change(self, call: Callable[[], None]) -> bool:
        """See `Cgroups.on_change`; what happens before the first `scan` is told after it."""
        self._fd = libc.inotify_init1(IN_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            return False
        if not self._reading(self._fd).watch(""):
            self.close()
            return False
        self._call = call
        return True

    def join(self, path: str, pid: int) -> None:
        """See `Cgroups.join`."""
        try:
            (self.root / path / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise Unavailable(f"cgroup {path}: {error.strerror}") from error

    def close(self) -> None:
        """Listen no more."""
        if self._again is not None:
            self._again.cancel()
        if self._fd >= 0:
            self._hear(False)
            os.close(self._fd)
            self._fd, self._unread = -1, True

    def _reading(self, fd: int) -> Reading:
        return Reading(self.root, fd, self._roots)

    def _hear(self, on: bool) -> None:
        """Take events, or leave them in the kernel."""
        if self._fd >= 0 and on:
            asyncio.get_running_loop().add_reader(self._fd, self._readable)
        elif self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        changed = self._now.take_events(data)
        if self._now.incomplete:
            self._hear(False)
            self._again = asyncio.create_task(self._read_again())
        if changed and self._call is not None:
            self._call()

    async def _read_again(self) -> None:
        if await self.rescan() and self._call is not None:
            self._call()


def _read(found: Reading, before: Reading) -> bool:
    """Read the tree; the descriptor is this thread's own, whatever the agent closes meanwhile."""
    try:
        return found.read(before)
    finally:
        if found.fd >= 0:
            os.close(found.fd)


class FixedCgroups:
    """`Cgroups` that somebody else decides: simulations and tests change `tree` and call `changed`."""

    blind = False

    def __init__(self, tree: dict[str, int] | None = None, own: str | None = None) -> None:
        self.tree = tree or {}
        self.own = own
        self.delegated: frozenset[str] = frozenset()
        self.skipped: tuple[str, ...] = ()
        self._calls: list[Callable[[], None]] = []

    async def scan(self) -> Mapping[str, int]:
        """See `Cgroups.scan`."""
        return dict(self.tree)

    def exists(self, path: str) -> bool:
        """See `Cgroups.exists`."""
        return path in self.tree

    async def rescan(self) -> bool:
        """See `Cgroups.rescan`."""
        return False

    def on_change(self, call: Callable[[], None]) -> bool:
        """See `Cgroups.on_change`."""
        self._calls.append(call)
        return True

    def changed(self) -> None:
        """Say that the tree changed."""
        for call in self._calls:
            call()

    def join(self, path: str, pid: int) -> None:
        """See `Cgroups.join`."""
        raise Unavailable(f"cgroup {path}: process {pid} cannot join a simulated cgroup")

    def close(self) -> None:
        """Nothing to close."""
