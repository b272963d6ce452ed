"""Child processes: started in order, kept running, stopped in reverse order.

A child lives in a session of its own, so a terminal's Ctrl-C reaches only the supervisor, which then stops in
order. Children outlive a killed supervisor on purpose (hosts keep getting renewals); pid files let the
next `up`
end them before it starts its own.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from aegisflux.domain.errors import Unavailable
from aegisflux.runtime import logfiles, procfs
from aegisflux.runtime.ending import end
from aegisflux.runtime.procfs import PidFile

POLL_SECONDS = 0.02
PROBE_SECONDS = 0.5
FIRST_PAUSE, LAST_PAUSE, STEADY_SECONDS = 0.1, 5.0, 10.0
ALIVE_SECONDS, ALIVE_EVERY, ALIVE_MISSES = 5.0, 1.0, 2
SLACK_SECONDS = 2.0
TRACE_SECONDS = 0.5  # that a hung child has to write where it is

RESTARTS = "restarts.json"
Ready = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What to run. `prepare` runs before every start, `cleanup` after the last stop; False from `healthy`,
    which is asked twice a second, restarts the child. `user` is a uid and gid to become (root only).
    `port` and `host` are checked to be free before the first start.

    `alive` asks whether the child does its work: once a second, with ALIVE_SECONDS to answer. ALIVE_MISSES
    answers in a row that do not come, or are no, restart the child, and so does being stopped by a signal for
    ALIVE_SECONDS. A child that hangs hears no SIGTERM, and is killed. One missed answer is a busy moment.
    """

    name: str
    argv: Sequence[str]
    ready: Ready
    prepare: Callable[[], None] | None = None
    cleanup: Callable[[], None] | None = None
    healthy: Callable[[], bool] | None = None
    alive: Ready | None = None
    env: Mapping[str, str] | None = None
    cwd: Path = Path("/")
    log: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    ready_seconds: float = 30.0
    user: int | None = None
    pass_fds: Sequence[int] = ()
    host: str = "127.0.0.1"
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a child: started, starting, ready, died, unhealthy, ended an orphan,
    stopped, killed.
    """

    child: str
    what: str
    pid: int
    detail: str = ""


Observer = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """The observer of those who do not watch."""


class Process:
    """One run of a child at a time; `start` returns when it is ready."""

    def __init__(self, child: Child, run_dir: Path, observe: Observer = ignore) -> None:
        self.child, self._observe = child, observe
        self._pid_file = PidFile(run_dir / f"{child.name}.pid")
        self._popen: subprocess.Popen[bytes] | None = None
        self._gone = asyncio.Event()
        self.why = ""

    @property
    def pid(self) -> int | None:
        """The pid while it runs."""
        return self._popen.pid if self._popen and not self._gone.is_set() else None

    async def start(self) -> None:
        """Prepare, spawn and wait until ready; raises Unavailable with the end of its log when it dies or
        takes too long. One that takes long and answers that it is alive is waited for, which is told each
        `ready_seconds`. A start that fails leaves no process behind.
        """
        if self.child.prepare:
            await asyncio.to_thread(self.child.prepare)
        self._spawn()
        try:
            await self._until_ready()
        except OSError:
            await self.stop()
            raise
        self._say("ready")

    async def _until_ready(self) -> None:
        child, deadline = self.child, time.monotonic() + self.child.ready_seconds
        while not await child.ready():
            if self._gone.is_set():
                raise Unavailable(
                    f"{child.name} ended with {self._ending()} before it was ready{self._log_tail()}"
                )
            if time.monotonic() > deadline:
                if child.alive is None or not await self._answers():
                    await self.stop()
                    raise Unavailable(
                        f"{child.name} was not ready within {child.ready_seconds:g} s{self._log_tail()}"
                    )
                # What it does at its start grows with the fleet: ended now, it would begin again from zero.
                self._say("starting", f"not ready yet, but it answers: it is waited for{self._log_tail()}")
                deadline = time.monotonic() + child.ready_seconds
            await asyncio.sleep(POLL_SECONDS)

    async def wait(self) -> None:
        """Until it is gone, no longer healthy, or hangs; `why` says which. One that is not gone is ended."""
        watching = asyncio.create_task(self._hung())
        try:
            while not self._gone.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):
                        await self._gone.wait()
                    break
                if watching.done():
                    self.why = "hung"
                    self._say("hung", watching.result())
                    await self._end_hung()
                    return
                if self.child.log is not None:
                    await asyncio.to_thread(logfiles.rotate, self.child.log)
                if self.child.healthy and not await asyncio.to_thread(self.child.healthy):
                    self.why = "unhealthy"
                    self._say("unhealthy")
                    await self._end()
                    return
            self.why = "died"
            self._say("died", self._ending())
        finally:
            watching.cancel()

    async def _hung(self) -> str:
        """Until it does no work any more; why that is certain."""
        clock, misses = Lateness(time.monotonic()), 0
        while True:
            await asyncio.sleep(ALIVE_EVERY)
            if await self._stopped():
                return f"it has been stopped by a signal for {ALIVE_SECONDS:g} s"
            answered = await self._answers()
            if clock.late(time.monotonic()):
                continue  # we were held up ourselves, and so may it have been
            misses = 0 if answered else misses + 1
            if misses >= ALIVE_MISSES:
                return f"no answer within {ALIVE_SECONDS:g} s, {misses} times"

    async def _stopped(self) -> bool:
        """Whether it was stopped at both ends of the time that it has to answer."""
        pid = self.pid
        if pid is None or not procfs.is_stopped(pid):
            return False
        await asyncio.sleep(ALIVE_SECONDS)
        return procfs.is_stopped(pid)

    async def _answers(self) -> bool:
        if self.child.alive is None or self.pid is None:
            return True
        try:
            async with asyncio.timeout(ALIVE_SECONDS):
                return await self.child.alive()
        except TimeoutError:
            return False

    async def _end_hung(self) -> None:
        """End it without asking; a Python program writes first into its log where it hangs."""
        self._signal(signal.SIGABRT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TRACE_SECONDS):
                await self._gone.wait()
        self.kill()
        await self._gone.wait()

    async def stop(self) -> None:
        """Ask it to stop, and kill its process group when it does not within its time. Harmless when it
        does not run.
        """
        if self.pid is not None:
            await self._end()
        if self.child.cleanup:
            await asyncio.to_thread(self.child.cleanup)

    async def _end(self) -> None:
        self._signal(self.child.stop_signal)
        try:
            async with asyncio.timeout(self.child.stop_seconds):
                await self._gone.wait()
            self._say("stopped", self._ending())
        except TimeoutError:
            self.kill()
            await self._gone.wait()
            self._say("killed", f"it did not stop within {self.child.stop_seconds:g} s")

    def kill(self) -> None:
        """SIGKILL to it and its process group."""
        if self._popen:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    async def end_orphan(self) -> None:
        """End the process that an earlier supervisor left, if it still lives."""
        pid = self._pid_file.alive()
        if pid is None:
            return
        self._observe(Event(self.child.name, "orphan", pid, "left by an earlier supervisor; ending it"))
        os.kill(pid, self.child.stop_signal)
        deadline = time.monotonic() + self.child.stop_seconds
        while self._pid_file.alive() is not None:
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                deadline += self.child.stop_seconds
            await asyncio.sleep(POLL_SECONDS)
        self._pid_file.remove()

    def _spawn(self) -> None:
        child = self.child
        self._gone = asyncio.Event()
        output = _open_log(child.log)
        try:
            self._popen = subprocess.Popen(
                list(child.argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=child.cwd,
                env=dict(child.env) if child.env is not None else None,
                start_new_session=True,
                user=child.user,
                group=child.user,
                extra_groups=() if child.user is not None else None,
                pass_fds=child.pass_fds,
            )
        except OSError as error:
            raise Unavailable(f"{child.name}: {child.argv[0]} does not start: {error.strerror}") from error
        finally:
            if output is not None:
                output.close()
        self._watch(self._popen, self._gone)
        try:
            self._pid_file.write(self._popen.pid)
        except OSError as error:  # then the next supervisor could not find it, and nor could we end it twice
            self.kill()
            raise Unavailable(f"{child.name}: its process cannot be noted: {error}") from error
        self._say("started")

    def _watch(self, popen: "subprocess.Popen[bytes]", gone: asyncio.Event) -> None:
        loop, descriptor = asyncio.get_running_loop(), os.pidfd_open(popen.pid)

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
            self._pid_file.remove()
            gone.set()

        loop.add_reader(descriptor, ended)

    def _signal(self, number: signal.Signals) -> None:
        assert self._popen
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    def _say(self, what: str, detail: str = "") -> None:
        self._observe(Event(self.child.name, what, self._popen.pid if self._popen else 0, detail))

    def _ending(self) -> str:
        code = self._popen.returncode if self._popen else None
        if code is not None and code < 0:
            return f"signal {signal.Signals(-code).name}"
        return f"exit code {code}"

    def _log_tail(self) -> str:
        if self.child.log is None:
            return ""
        try:
            lines = self.child.log.read_text(errors="replace").splitlines()[-8:]
        except OSError:
            return ""
        return f"; the end of {self.child.log}:\n" + "\n".join("  " + line[:300] for line in lines)


class Lateness:
    """Whether the supervisor itself was held up, by a machine that slept or has no time for it. Times in
    seconds."""

    def __init__(self, now: float) -> None:
        self._last = now

    def late(self, now: float) -> bool:
        """Whether one look took longer than a look can take."""
        took, self._last = now - self._last, now
        return took > ALIVE_EVERY + 2 * ALIVE_SECONDS + SLACK_SECONDS


@dataclass(slots=True)
class Supervisor:
    """Keeps `children` running. One supervisor for a run directory; a second one is refused. `restarted`
    counts by child and reason; RESTARTS in the run directory has it for others.
    """

    children: Sequence[Child]
    run_dir: Path
    observe: Observer = ignore
    restarted: Counter[tuple[str, str]] = field(default_factory=Counter)
    _processes: list[Process] = field(default_factory=list)
    _keepers: list[asyncio.Task[None]] = field(default_factory=list)
    _lock: IO[str] | None = None

    async def start(self) -> None:
        """End orphans, check ports, start each child and wait until it is ready; on failure stops what it
        started.
        """
        self._take_lock()
        self._tell_restarts()
        self._processes = [Process(child, self.run_dir, self.observe) for child in self.children]
        try:
            for process in reversed(self._processes):
                await process.end_orphan()
            for child in self.children:
                if child.port is not None:
                    procfs.require_free_port(child.host, child.port, child.name)
            for process in self._processes:
                await process.start()
                self._keepers.append(
                    asyncio.create_task(self._keep(process), name=f"keep {process.child.name}")
                )
        except BaseException:
            await self.stop()
            raise

    async def run(self, stop: asyncio.Event) -> None:
        """Start, keep running until `stop` is set, stop. Stops also when it is set during the start."""
        starting = asyncio.create_task(self.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        try:
            await starting
            await stopping
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
        finally:
            stopping.cancel()
            await self.stop()

    async def stop(self) -> None:
        """Stop all children in reverse order."""
        await end(*self._keepers)
        self._keepers.clear()
        for process in reversed(self._processes):
            await process.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def pids(self) -> dict[str, int | None]:
        """The pid of each child that runs, None for one that does not."""
        return {process.child.name: process.pid for process in self._processes}

    async def _keep(self, process: Process) -> None:
        pause = FIRST_PAUSE
        while True:
            since = time.monotonic()
            await process.wait()
            self.restarted[process.child.name, process.why] += 1
            self._tell_restarts()
            if time.monotonic() - since > STEADY_SECONDS:
                pause = FIRST_PAUSE
            while True:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                try:
                    await process.start()
                    break
                except (Unavailable, OSError) as error:
                    self.observe(Event(process.child.name, "failed", 0, str(error)))

    def _tell_restarts(self) -> None:
        """For the metrics of a service; who cannot write it goes on nevertheless."""
        rows = [[name, reason, count] for (name, reason), count in self.restarted.items()]
        with contextlib.suppress(OSError):
            draft = self.run_dir / f"{RESTARTS}.new"
            draft.write_text(json.dumps(rows))
            draft.replace(self.run_dir / RESTARTS)

    def _take_lock(self) -> None:
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (self.run_dir / "supervisor.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise Unavailable(
                f"{self.run_dir}: already supervised by process {holder}; stop that one first"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock


async def run_until_signal(supervisor: Supervisor) -> None:
    """Run until SIGTERM or SIGINT; a second signal kills the children at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            for process in supervisor._processes:
                process.kill()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    try:
        await supervisor.run(stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _open_log(path: Path | None) -> IO[bytes] | None:
    """A log that only our user reads: it holds what hosts and clients chose."""
    if path is None:
        return None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    logfiles.rotate(path)
    older = path.with_suffix(path.suffix + ".1")
    if older.exists():
        older.chmod(0o600)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)
    return os.fdopen(handle, "ab")
