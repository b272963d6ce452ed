"""Settings -> adapters -> agent: the only module of the agent's process that names an adapter."""

import asyncio
import ctypes
import gc
import os
import signal
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from aegisflux import __version__
from aegisflux.agent import notes
from aegisflux.agent.cgroups import CgroupTree, FixedCgroups, leave, settle
from aegisflux.agent.config import AgentConfig, read_config
from aegisflux.agent.control import NO_ROOM, SOCKET, Control
from aegisflux.agent.credentials import Credentials
from aegisflux.agent.identity import Identity, first_trust, read_identity, signer, verify
from aegisflux.agent.notes import Note
from aegisflux.agent.notify import CgroupProber, systemd
from aegisflux.agent.panics import Flags, Medium, RunMedium, StateMedium
from aegisflux.agent.parts import (
    Cgroups,
    Feed,
    Parts,
    Senses,
    in_thread,
)
from aegisflux.agent.rescue import Kernel
from aegisflux.agent.runner import Runner
from aegisflux.agent.spool import Spool
from aegisflux.agent.state import FileStore, Locked
from aegisflux.domain.errors import Unavailable
from aegisflux.ports.bus import Bus
from aegisflux.ports.datapath import Datapath
from aegisflux.ports.inventory import Software
from aegisflux.runtime import heap
from aegisflux.runtime.cgroupfs import own_cgroup, v2_mounts, v2_root
from aegisflux.runtime.configured import Wrong, refuse
from aegisflux.wire.layout import LAYOUT

SPOOL: Final = "spool"
NICE: Final = (os.PRIO_PROCESS, 0, 10)  # of the calling thread; more would let others wait for its lock


def load_config(path: Path | None = None, wrong: Wrong = refuse) -> AgentConfig:
    """Read file and environment; raises Invalid by the setting's name.

    An agent does not begin with a setting that it does not know: it may have been the one that keeps it from
    enforcing. A command goes on, and `wrong` hears of what it leaves out.
    """
    from aegisflux.settings import unknown_variables

    for error in unknown_variables(os.environ):
        wrong(error)
    return read_config(path, os.environ, wrong)


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
    heap.settle(1, heap.AGENT_LARGE)
    locks, store = Locked(), FileStore(config.state)
    locks.take(config.state, "state folder")
    identity, seed = read_identity(store)
    (own, made), note = settled(config), note_of(config, identity.host_id)
    datapath, pool, pools = make_datapath(config), ThreadPoolExecutor(1, "datapath"), _pools()
    bus = make_bus(config, identity, seed, log)
    senses = make_senses(config, identity, pools)
    runner = make_runner(config, store, bus, datapath, pool, log, own, senses)
    control, stop = Control(runner, config.state / SOCKET), asyncio.Event()
    credentials = Credentials(
        identity, seed, config.control_url, bus, store, in_thread(pools["background"]), log
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    renewing: asyncio.Task[None] | None = None
    try:
        await _listening(control, runner)
        _noted(note, log)
        bus.open()
        renewing = asyncio.create_task(credentials.run(time.time))
        await runner.run(stop, lambda: _ready(config, identity.host_id, log))
        systemd("STOPPING=1")
    finally:
        if renewing is not None:
            renewing.cancel()
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
