"""What an agent is made of. Nothing is global: a thousand agents fit into one process."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from msgspec import Struct

from aegisflux.domain.flow import DEFAULT_FAILSAFE, FailsafeRule
from aegisflux.domain.trust import Verify
from aegisflux.ports.bus import Bus
from aegisflux.ports.datapath import Datapath
from aegisflux.wire.envelope import Sign

T = TypeVar("T")
DENIED_KEPT: Final = 2048


class AgentSettings(Struct, frozen=True, kw_only=True):
    """Settings of an agent; all times in seconds.

    heartbeat_seconds: between heartbeats
    refresh_seconds:   between looks at the last value of its manifest, with jitter
    tick_seconds:      between looks at panic, trials and denied flows
    drift_seconds:     between read-backs
    scan_seconds:      between scans of the cgroup tree, where the kernel tells of changes: a safety net
    addresses_seconds: between readings of the hosts' own addresses
    failsafe:          what no snapshot can deny here
    """

    heartbeat_seconds: float = 5.0
    refresh_seconds: float = 60.0
    tick_seconds: float = 1.0
    drift_seconds: float = 30.0
    scan_seconds: float = 30.0
    addresses_seconds: float = 10.0
    failsafe: tuple[FailsafeRule, ...] = DEFAULT_FAILSAFE


class Store(Protocol):
    """Small named blobs, written durably and whole or not at all, and contents by digest."""

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, value: bytes) -> None: ...

    def delete(self, name: str) -> None: ...

    def content(self, digest: str) -> bytes | None: ...

    def keep_content(self, digest: str, value: bytes) -> None: ...

    def keep_only(self, digests: frozenset[str]) -> None: ...


class Cgroups(Protocol):
    """The cgroups of the host below the v2 root."""

    own: str | None
    """The agent's own cgroup, None where it lives in the root."""

    blind: bool
    """Whether the kernel does not tell of all changes."""

    def scan(self) -> Mapping[str, int]:
        """Id by path (relative, without a leading slash) of every cgroup but the root."""
        ...

    def rescan(self) -> bool:
        """Read the whole tree, whatever events told; whether it differed."""
        ...

    def on_change(self, call: Callable[[], None]) -> bool:
        """Call when the tree changes; False where the kernel cannot tell, so that one must scan."""
        ...

    def join(self, path: str, pid: int) -> None:
        """Move a process of ours into a cgroup."""
        ...

    def close(self) -> None: ...


class Blocking(Protocol):
    """How calls that block are made."""

    def __call__(self, call: Callable[..., T], *args: Any) -> Awaitable[T]: ...


class Prober(Protocol):
    """Opens a TCP connection from inside a cgroup; the text of the failure, empty when it went well."""

    def __call__(self, cgroup: str, target: str) -> Awaitable[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything an agent works with; `log` hears what happens, in words, `trim` gives freed memory back."""

    host_id: str
    boot_id: str
    version: str
    bus: Bus
    datapath: Datapath
    store: Store
    cgroups: Cgroups
    sign: Sign
    verify: Verify
    wall: Callable[[], float]
    blocking: Blocking
    prober: Prober
    trim: Callable[[], object]
    log: Callable[[str], None]
    settings: AgentSettings


async def inline(call: Callable[..., T], *args: Any) -> T:
    """Blocking calls made in place: for the simulation, where nothing blocks."""
    return call(*args)


def in_thread(executor: Executor) -> Blocking:
    """Blocking calls made in the executor's thread."""

    async def made(call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, call, *args)

    return made
