"""Settings -> adapters -> agent: the only module of the agent's process that names an adapter."""

import asyncio
import ctypes
import gc
import os
import signal
import time
import tomllib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from aegisflux import __version__
from aegisflux.agent import notes
from aegisflux.agent.cgroups import CgroupTree, FixedCgroups, leave, settle
from aegisflux.agent.control import NO_ROOM, SOCKET, Control
from aegisflux.agent.failsafes import FailsafeSetting, failsafe_of
from aegisflux.agent.identity import Identity, first_trust, read_identity, signer, verify
from aegisflux.agent.notes import Note
from aegisflux.agent.notify import CgroupProber, systemd
from aegisflux.agent.panics import Flags, Medium, RunMedium, StateMedium
from aegisflux.agent.parts import (
    AgentSettings,
    Cgroups,
    Feed,
    Parts,
    Senses,
    TelemetrySettings,
    in_thread,
)
from aegisflux.agent.rescue import Kernel
from aegisflux.agent.runner import Runner
from aegisflux.agent.spool import Spool
from aegisflux.agent.state import FileStore, Locked
from aegisflux.domain import json_text
from aegisflux.domain.digits import plain_numbers
from aegisflux.domain.errors import Invalid, Unavailable
from aegisflux.domain.flow import DEFAULT_FAILSAFE
from aegisflux.domain.selectors import slice_of
from aegisflux.ports.bus import Bus
from aegisflux.ports.datapath import Datapath
from aegisflux.ports.inventory import Software
from aegisflux.runtime.cgroupfs import own_cgroup, v2_mounts, v2_root
from aegisflux.wire.layout import LAYOUT

CONFIG: Final = Path("/etc/aegisflux/agent.toml")
PREFIX: Final = "AEGISFLUX_AGENT_"
SYSTEM_STATE: Final = Path("/var/lib/aegisflux/agent")
SPOOL: Final = "spool"
NICE: Final = (os.PRIO_PROCESS, 0, 10)  # of the calling thread; more would let others wait for its lock
M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3  # malloc.h
LARGE_BYTES: Final = 128 << 10
USER_STATE: Final = Path("~/.local/state/aegisflux/agent")


class AgentConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The agent's settings: /etc/aegisflux/agent.toml, then AEGISFLUX_AGENT_<NAME>; times in seconds.

    state_dir:         keys, last accepted state and contents; mode 0700, one agent at a time
    datapath:          bpf, or simulated: nothing is enforced
    attach_cgroup:     where programs are attached; empty is the root of the v2 tree
    instance, bpffs:   where pins lie: <bpffs>/aegisflux/<instance>
    nats_urls:         instead of those that enrolment gave
    failsafe:          what no snapshot can deny here, instead of TCP 22 inbound
    observe_only:      nothing is ever enforced here, whatever a manifest says
    max_lease_seconds: a snapshot that may hold for longer is refused; 0 is no bound
    unit_slices:       slices in which `unit:` looks for units, beside system.slice and machine.slice
    simulated_cgroups: the cgroups of this host where `datapath` is simulated, instead of its own
    telemetry:         what is told of the host, see below
    """

    state_dir: str = ""
    datapath: Literal["bpf", "simulated"] = "bpf"
    attach_cgroup: str = ""
    instance: str = "default"
    bpffs: str = "/sys/fs/bpf"
    nats_urls: tuple[str, ...] = ()
    failsafe: tuple[FailsafeSetting, ...] | None = None
    heartbeat_seconds: float = 5.0
    refresh_seconds: float = 60.0
    tick_seconds: float = 1.0
    drift_seconds: float = 30.0
    scan_seconds: float = 30.0
    addresses_seconds: float = 10.0
    observe_only: bool = False
    max_lease_seconds: float = 0.0
    unit_slices: tuple[str, ...] = ()
    simulated_cgroups: tuple[str, ...] = ()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def state(self) -> Path:
        """The state folder: for root a system's, else the user's."""
        if self.state_dir:
            return Path(self.state_dir)
        return SYSTEM_STATE if os.geteuid() == 0 else USER_STATE.expanduser()

    @property
    def failsafe_refused(self) -> tuple[str, ...]:
        """Which lines of `failsafe` are not in force, and why."""
        return ()

    @property
    def failsafe_numbers(self) -> tuple[int, ...]:
        """Which line of the setting each rule of `failsafe` is; 0 is the default rule."""
        return tuple(range(1, len(self.failsafe) + 1)) if self.failsafe is not None else (0,)

    def settings(self) -> AgentSettings:
        """What the runner reads; raises Invalid."""
        rules = DEFAULT_FAILSAFE if self.failsafe is None else tuple(line.rule() for line in self.failsafe)
        times = {
            name: getattr(self, name) for name in AgentSettings.__struct_fields__ if name.endswith("_seconds")
        }
        return AgentSettings(
            failsafe=rules,
            failsafe_refused=self.failsafe_refused,
            failsafe_numbers=self.failsafe_numbers,
            observe_only=self.observe_only,
            unit_slices=tuple(slice_of(text) for text in self.unit_slices),
            telemetry=self.telemetry,
            **times,
        )


class PartlyRefused(AgentConfig, frozen=True, kw_only=True):
    """Settings of which some lines of `failsafe` are refused; `refused` says which, and why;
    `numbers`, which lines the others are."""

    refused: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()

    @property
    def failsafe_refused(self) -> tuple[str, ...]:
        """Which lines of `failsafe` are not in force, and why."""
        return self.refused

    @property
    def failsafe_numbers(self) -> tuple[int, ...]:
        """Which line of the setting each rule of `failsafe` is; 0 is the default rule."""
        return self.numbers


def load_config(path: Path | None = None) -> AgentConfig:
    """Read file and environment; raises Invalid by the setting's name.

    A line of `failsafe` that is wrong takes no other one with it: see `failsafe_of`.
    """
    source = path or Path(os.environ.get(PREFIX + "CONFIG", str(CONFIG)))
    found: dict[str, Any] = {}
    if path is not None or source.exists():
        try:
            found = tomllib.loads(source.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise Invalid(str(source), "a TOML file", str(error)) from None
    _telemetry_of(os.environ, found)
    for name in AgentConfig.__struct_fields__:
        text = os.environ.get(PREFIX + name.upper())
        if text is None:
            continue
        found[name] = _failsafe(name, text) if name == "failsafe" else text
        if name in ("nats_urls", "unit_slices", "simulated_cgroups"):
            found[name] = [item.strip() for item in text.split(",") if item.strip()]
    refused: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    if isinstance(given := found.get("failsafe"), list):
        found["failsafe"], refused, numbers = failsafe_of(given)
    plain_numbers(found)
    try:
        known = msgspec.convert(found, PartlyRefused if refused else AgentConfig, strict=False)
        return msgspec.structs.replace(known, refused=refused, numbers=numbers) if refused else known
    except msgspec.ValidationError as error:
        raise Invalid("agent settings", "known settings of the right type", str(error)) from None


def _failsafe(name: str, text: str) -> Any:
    return json_text.parse(text.encode(errors="surrogateescape"), PREFIX + name.upper(), "JSON")


def _telemetry_of(environ: Mapping[str, str], found: dict[str, Any]) -> None:
    """The table's settings: AEGISFLUX_AGENT_TELEMETRY_<NAME>."""
    told = {
        name: environ[key]
        for name in TelemetrySettings.__struct_fields__
        if (key := f"{PREFIX}TELEMETRY_{name.upper()}") in environ
    }
    if told:
        found["telemetry"] = {**found.get("telemetry", {}), **told}


def make_datapath(config: AgentConfig) -> Datapath:
    """The datapath that the settings name, not opened."""
    if config.datapath == "simulated":
        from aegisflux.adapters.datapath.simulated import SimulatedDatapath

        return SimulatedDatapath(lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath

    attach = Path(config.attach_cgroup) if config.attach_cgroup else None
    return BpfDatapath(attach, config.instance, Path(config.bpffs), state_dir=str(config.state.absolute()))


def make_kernel() -> Kernel:
    """What this host's kernel has attached of ours, whoever attached it."""
    from aegisflux.adapters.datapath.bpf import takedown

    return takedown.Kernel()


def marked_pins(folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """(BPF file system, instance) of every marker of a panic that is pinned there."""
    from aegisflux.adapters.datapath.bpf.owner import marked

    return [(folder, name) for folder in {f.resolve() for f in folders} for name in marked(folder)]


def note_of(config: AgentConfig, host_id: str = "-") -> Note:
    """What a command needs to know of an agent with these settings."""
    state = str(config.state.absolute())
    return Note(host_id, state, config.instance, config.attach_cgroup, config.bpffs, config.datapath)


def make_cgroups(config: AgentConfig, own: str | None) -> Cgroups:
    """The host's tree; for the simulation the one that the settings give, or an empty one."""
    if config.datapath == "simulated" and (config.simulated_cgroups or not v2_mounts()):
        return FixedCgroups({path: n for n, path in enumerate(config.simulated_cgroups, 1)}, own)
    tree = CgroupTree()
    tree.own = own
    return tree


def settled(config: AgentConfig) -> tuple[str | None, Path | None]:
    """The agent's own cgroup, and its path where it had to make one. Raises Unavailable."""
    if config.datapath == "simulated":
        return own_cgroup(), None
    root = v2_root()
    return settle(root, Path(config.attach_cgroup or root), f"aegisflux-agent-{config.instance}")


def make_feeds(config: AgentConfig) -> tuple[Feed, ...]:
    """The sources of events of the kernel; the simulation has none."""
    if config.datapath == "simulated":
        return ()
    from aegisflux.adapters.datapath.bpf.listeners import Listeners
    from aegisflux.adapters.datapath.bpf.processes import Processes
    from aegisflux.adapters.datapath.bpf.programs import CgroupNames, Programs
    from aegisflux.adapters.datapath.bpf.traffic import Traffic

    root = v2_root()
    inside = Path(config.attach_cgroup) if config.attach_cgroup else root
    top, told = Path(config.bpffs) / "aegisflux" / config.instance, config.telemetry
    programs, cgroups = Programs(), CgroupNames(root)
    below = "" if inside == root else str(inside.relative_to(root))
    listeners = Listeners(programs, cgroups, below)
    beside = top / f"v{LAYOUT}" / "links"
    rate = told.processes_per_second
    state = str(config.state.absolute())
    processes = Processes(top, programs, rate=rate, inside=inside, beside=beside, state_dir=state)
    traffic = Traffic(top, programs, cgroups, listeners.owner)
    return (
        Feed(processes, "events"),
        Feed(listeners, "events", told.listen_seconds),
        Feed(traffic, "flows", told.flow_seconds),
    )


def make_software(config: AgentConfig) -> Software | None:
    """What reads this host's packages; None where it is not to."""
    if not config.telemetry.inventory:
        return None
    from aegisflux.adapters.inventory.host import HostSoftware

    return HostSoftware()


def make_senses(
    config: AgentConfig, identity: Identity, pools: Mapping[str, ThreadPoolExecutor]
) -> Senses | None:
    """What telemetry works with; None where it is off."""
    if not config.telemetry.enabled:
        for feed in make_feeds(config):  # what an agent that told left attached
            feed.source.remove()
        return None
    return Senses(
        feeds=make_feeds(config),
        spool=Spool(config.state / SPOOL, identity.host_id, boot_id(), config.telemetry.spool_bytes),
        blocking=in_thread(pools["telemetry"]),
        software=make_software(config),
        background=in_thread(pools["background"]),
    )


def boot_id() -> str:
    """The kernel's number of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def make_bus(config: AgentConfig, identity: Identity, seed: bytes, trouble: Any) -> Any:
    """The agent's own connection, not opened."""
    from aegisflux.adapters.bus.nats import NatsBus, NatsOptions
    from aegisflux.wire.natsjwt import Credentials

    return NatsBus(
        NatsOptions(
            urls=config.nats_urls or identity.nats_urls,
            credentials=Credentials(identity.user_jwt, seed),
            ca_pem=identity.ca_pem,
            trouble=trouble,
        )
    )


def make_runner(
    config: AgentConfig,
    store: FileStore,
    bus: Bus,
    datapath: Datapath,
    pool: ThreadPoolExecutor,
    log: Any,
    own: str | None = None,
    senses: Senses | None = None,
) -> Runner:
    """An agent on this host's identity, in its own cgroup; raises NotFound on one that is not enrolled."""
    identity, seed = read_identity(store)
    cgroups = make_cgroups(config, own)
    parts = Parts(
        host_id=identity.host_id,
        boot_id=boot_id(),
        version=__version__,
        bus=bus,
        datapath=datapath,
        store=store,
        cgroups=cgroups,
        sign=signer(seed),
        verify=verify,
        wall=time.time,
        blocking=in_thread(pool),
        prober=CgroupProber(getattr(cgroups, "root", Path("/"))),
        trim=_trim,
        log=log,
        settings=config.settings(),
        senses=senses,
    )
    return Runner(parts, first_trust(identity), make_flags(config, store))


def make_flags(config: AgentConfig, store: FileStore) -> Flags:
    """Where a panic of this agent is kept: /run and the state folder, and in the kernel that enforces."""
    state = str(config.state.absolute())
    media: list[Medium] = [RunMedium(state), StateMedium(store)]
    if config.datapath == "bpf":
        media.insert(0, make_kernel().marker(Path(config.bpffs), config.instance, state))
    return Flags(media)


def _trim() -> None:
    """Loading programs and 100,000 entries passes through 30 MiB that malloc would keep."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # not glibc
        return


def _one_arena() -> None:
    """Let all threads share one heap: what is freed in a heap of their own would stay with the process. What
    is large lies outside of it, always: glibc would learn from the first large block that is freed to put
    the next ones into the heap, where they leave holes."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    except AttributeError:  # not glibc
        return


def _settle_down() -> None:
    """What is there when the agent is ready lives as long as it does: no garbage collection looks at it."""
    gc.collect()
    gc.freeze()


def _pools() -> dict[str, ThreadPoolExecutor]:
    """Threads of telemetry; they begin with their first work."""
    background = ThreadPoolExecutor(1, "background", initializer=os.setpriority, initargs=NICE)
    return {"telemetry": ThreadPoolExecutor(1, "telemetry"), "background": background}


def _ready(config: AgentConfig, host: str, log: Any) -> None:
    where = config.attach_cgroup or "every cgroup"
    for text in config.failsafe_refused:
        log(f"{text}; it is not in force, and inbound TCP 22 is allowed beside the others")
    _settle_down()
    log(f"running as {host}: datapath {config.datapath}, instance {config.instance}, attached to {where}")
    systemd("READY=1")


async def run_agent(config: AgentConfig, log: Any) -> None:
    """Run until SIGTERM or SIGINT; enforcement stays. Raises Refused or Unavailable when it cannot begin."""
    _one_arena()
    locks, store = Locked(), FileStore(config.state)
    locks.take(config.state, "state folder")
    identity, seed = read_identity(store)
    (own, made), note = settled(config), note_of(config, identity.host_id)
    datapath, pool, pools = make_datapath(config), ThreadPoolExecutor(1, "datapath"), _pools()
    bus = make_bus(config, identity, seed, log)
    senses = make_senses(config, identity, pools)
    runner = make_runner(config, store, bus, datapath, pool, log, own, senses)
    control, stop = Control(runner, config.state / SOCKET), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await _listening(control, runner)
        _noted(note, log)
        bus.open()
        await runner.run(stop, lambda: _ready(config, identity.host_id, log))
        systemd("STOPPING=1")
    finally:
        await control.close()
        await bus.close()
        if runner.telemetry is not None:
            pools["telemetry"].submit(runner.telemetry.close).result()
        pool.submit(datapath.close).result()
        for one in (pool, *pools.values()):
            one.shutdown(cancel_futures=True)
        notes.take_away(note)
        leave(made)
        locks.release()


async def _listening(control: Control, runner: Runner) -> None:
    """Where no socket can be made, since all is full or read-only, the agent goes on: a panic reaches it
    through the kernel."""
    try:
        await control.open()
    except Unavailable as error:
        if getattr(error.__cause__, "errno", None) not in NO_ROOM:
            raise
        runner.reporter.troubles.begin("socket", f"no command reaches this agent: {error}")


def _noted(note: Note, log: Any) -> None:
    """Commands of root look here; an agent of somebody else is found by its settings alone."""
    if os.geteuid() == 0:
        try:
            notes.leave(note)
        except OSError as error:
            log(f"commands find this agent only by its settings: {notes.NOTES}: {error.strerror}")
