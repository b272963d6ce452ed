"""What an agent is made of. Nothing is global: a thousand agents fit into one process."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol, TypeVar

from msgspec import Meta, Struct

from aegisflux.agent.spool import Lane, Spool
from aegisflux.domain.flow import DEFAULT_FAILSAFE, FailsafeRule
from aegisflux.domain.trust import Verify
from aegisflux.ports.bus import Bus
from aegisflux.ports.datapath import Datapath
from aegisflux.ports.inventory import Software
from aegisflux.ports.sensor import Source
from aegisflux.wire.envelope import Sign

T = TypeVar("T")
DENIED_KEPT: Final = 2048
Seconds = Annotated[float, Meta(ge=0.1, le=86_400)]
"""Between two rounds of a loop: less would be a busy loop, more an agent that has ceased to look."""


class TelemetrySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the agent tells of its host: events, and which software there is. It enforces without it too.

    enabled:            false: nothing of this is read, kept or sent
    spool_bytes:        how much is kept on disk while the bus is away; then the oldest flows go first
    events_per_second:  more events are not read, so that what waits is lost where the kernel counts it
    processes_per_second: more execs (and exits) a CPU are counted by the kernel and not told
    inventory:          whether it tells which packages are installed
    inventory_seconds:  between looks at the installed packages; they are sent when they changed
    flow_seconds:       between reports of flows
    listen_seconds:     between looks at listening sockets
    """

    enabled: bool = True
    spool_bytes: Annotated[int, Meta(ge=1000, le=1 << 40)] = 256 << 20
    events_per_second: Annotated[int, Meta(ge=1, le=1_000_000)] = 5000
    processes_per_second: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000
    inventory: bool = True
    inventory_seconds: Seconds = 300.0
    flow_seconds: Seconds = 5.0
    listen_seconds: Seconds = 5.0


class AgentSettings(Struct, frozen=True, kw_only=True):
    """Settings of an agent; all times in seconds.

    heartbeat_seconds: between heartbeats
    refresh_seconds:   between looks at the last value of its manifest, with jitter
    tick_seconds:      between looks at panic, trials and denied flows
    drift_seconds:     between read-backs
    scan_seconds:      between scans of the cgroup tree, where the kernel tells of changes: a safety net
    addresses_seconds: between looks for network namespaces; of their addresses the kernel tells at once
    failsafe:          what no snapshot can deny here
    failsafe_refused:  lines of it that are wrong and not in force, in words
    failsafe_numbers:  which line each rule of `failsafe` is; 0 is the default rule
    observe_only:      nothing is ever enforced here, whatever a manifest says
    max_lease_seconds: a snapshot that may hold for longer is refused; 0 is no bound
    unit_slices:       slices in which `unit:` looks, beside system.slice and machine.slice
    telemetry:         what is told of the host
    """

    heartbeat_seconds: float = 5.0
    refresh_seconds: float = 60.0
    tick_seconds: float = 1.0
    drift_seconds: float = 30.0
    scan_seconds: float = 30.0
    addresses_seconds: float = 10.0
    failsafe: tuple[FailsafeRule, ...] = DEFAULT_FAILSAFE
    failsafe_refused: tuple[str, ...] = ()
    failsafe_numbers: tuple[int, ...] = (0,)
    observe_only: bool = False
    max_lease_seconds: float = 0.0
    unit_slices: tuple[str, ...] = ()
    telemetry: TelemetrySettings = TelemetrySettings()


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

    @property
    def blind(self) -> bool:
        """Whether the kernel does not tell of all changes."""
        ...

    @property
    def delegated(self) -> frozenset[str]:
        """Paths of directories ("" is the root) that others than root write: what lies below has names that
        root did not give, and is in no scan."""
        ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """Paths that are no printable text (with `surrogateescape`), as far as there is room for them."""
        ...

    async def scan(self) -> Mapping[str, int]:
        """Id by path (relative, without a leading slash) of every cgroup that root named, but the root."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is a cgroup of this path (relative, without a leading slash) now."""
        ...

    async def rescan(self) -> bool:
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


class Feed(Struct, frozen=True):
    """A source of events, its lane of the spool, and the seconds between readings (None: as events come)."""

    source: Source
    lane: Lane
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Senses:
    """What telemetry works with.

    blocking:   calls of sources and of the spool, all on one thread
    background: calls of `software`, on a thread of low priority
    """

    feeds: tuple[Feed, ...]
    spool: Spool
    blocking: Blocking
    software: Software | None
    background: Blocking


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything an agent works with; `log` hears what happens, in words, `trim` gives freed memory back.

    senses: what telemetry works with, None where it is off
    """

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
    senses: Senses | None = None


async def inline(call: Callable[..., T], *args: Any) -> T:
    """Blocking calls made in place: for the simulation, where nothing blocks."""
    return call(*args)


def in_thread(executor: Executor) -> Blocking:
    """Blocking calls made in the executor's thread."""

    async def made(call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, call, *args)

    return made
