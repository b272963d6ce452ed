"""Supervision of real child processes: order, death, orphans, ports, signals."""

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aegisflux.domain.errors import Unavailable
from aegisflux.runtime import procfs, supervise
from aegisflux.runtime.procfs import PidFile
from aegisflux.runtime.supervise import Child, Process, Supervisor
from support.engines import eventually, free_port

REPOSITORY = Path(__file__).resolve().parents[2]
SLEEPER = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(600)"
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('deaf', flush=True); time.sleep(600)"
)


async def at_once() -> bool:
    return True


def sleeper(name: str, code: str = SLEEPER, **more) -> Child:
    options = {"argv": (sys.executable, "-S", "-c", code), "ready": at_once, **more}
    return Child(name=name, **options)


class Watcher(list):
    """Notes (child, what)."""

    def __call__(self, event) -> None:
        self.append((event.child, event.what))


async def test_children_start_in_order_and_stop_in_reverse(tmp_path):
    events = Watcher()
    supervisor = Supervisor([sleeper("one"), sleeper("two")], tmp_path, events)
    stop = asyncio.Event()
    running = asyncio.create_task(supervisor.run(stop))
    await eventually(lambda: ("two", "ready") in events)
    stop.set()
    await running
    assert events == [
        ("one", "started"), ("one", "ready"), ("two", "started"), ("two", "ready"),
        ("two", "stopped"), ("one", "stopped"),
    ]  # fmt: skip
    assert not list(tmp_path.glob("*.pid"))


async def test_a_killed_child_comes_back_each_time(tmp_path):
    supervisor = Supervisor([sleeper("one"), sleeper("two")], tmp_path)
    await supervisor.start()
    try:
        for _ in range(3):
            pid = supervisor.pids()["one"]
            two = supervisor.pids()["two"]
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda pid=pid: supervisor.pids()["one"] not in (None, pid))
            assert supervisor.pids()["two"] == two
    finally:
        await supervisor.stop()


def running(marker: str) -> list[int]:
    """Processes with this word in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


async def broken() -> bool:
    raise OSError("too many open files")


@pytest.mark.parametrize("fails", ["the folder is gone", "the disk is full", "nobody can ask it"])
async def test_starts_that_fail_again_and_again_leave_no_process(tmp_path, monkeypatch, fails):
    """A folder that was removed below a running control plane left a process more at each try: 193."""
    monkeypatch.setattr(supervise, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervise, "LAST_PAUSE", 0.01)
    marker, run, events = f"one-of-{os.getpid()}-{fails.split()[1]}", tmp_path / "run", Watcher()
    run.mkdir()
    child = sleeper("one", argv=(sys.executable, "-S", "-c", SLEEPER, marker))
    supervisor = Supervisor([child], run, events)
    await supervisor.start()
    try:
        pid = supervisor.pids()["one"]
        if fails == "the folder is gone":
            shutil.rmtree(run)
        elif fails == "the disk is full":
            (run / "one.new").mkdir()
        else:
            supervisor._processes[0].child = dataclasses.replace(child, ready=broken)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: events.count(("one", "failed")) >= 5)
        assert len(running(marker)) <= 1
    finally:
        await supervisor.stop()
    assert running(marker) == []


async def test_the_helpers_of_a_killed_child_die_with_it(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    process = Process(sleeper("one", code, log=log), tmp_path)
    await process.start()
    helper = int(await eventually(lambda: log.read_text().strip()))
    process.kill() if process.pid is None else os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await eventually(lambda: procfs.start_time(helper) is None)


async def test_an_unhealthy_child_is_restarted(tmp_path):
    marker = tmp_path / "marker"
    child = sleeper("one", prepare=marker.touch, healthy=marker.exists)
    events = Watcher()
    supervisor = Supervisor([child], tmp_path, events)
    await supervisor.start()
    try:
        marker.unlink()
        await eventually(lambda: events.count(("one", "ready")) == 2)
        assert ("one", "unhealthy") in events
    finally:
        await supervisor.stop()


async def test_a_deaf_child_is_killed_in_the_end(tmp_path):
    log = tmp_path / "log"
    events = Watcher()
    process = Process(sleeper("one", DEAF, stop_seconds=0.2, log=log), tmp_path, events)
    await process.start()
    await eventually(lambda: "deaf" in log.read_text())
    await process.stop()
    assert events[-1] == ("one", "killed")


async def test_a_child_that_ends_at_once_is_reported_with_its_last_words(tmp_path):
    async def never() -> bool:
        return False

    child = sleeper(
        "one", "print('no such key', flush=True); raise SystemExit(3)", ready=never, log=tmp_path / "log"
    )
    with pytest.raises(Unavailable, match=r"(?s)one ended with exit code 3 .*no such key"):
        await Supervisor([child], tmp_path).start()


async def test_a_failed_start_stops_what_was_started(tmp_path):
    async def never() -> bool:
        return False

    events = Watcher()
    late = sleeper("late", ready=never, ready_seconds=0.1)
    with pytest.raises(Unavailable, match="late was not ready within"):
        await Supervisor([sleeper("one"), late], tmp_path, events).start()
    assert events[-1] == ("one", "stopped")


async def test_a_start_that_takes_long_and_answers_is_waited_for(tmp_path):
    asked = []

    async def alive() -> bool:
        asked.append(1)
        return True

    async def ready() -> bool:
        return len(asked) == 3

    events = Watcher()
    process = Process(sleeper("large", ready=ready, alive=alive, ready_seconds=0.05), tmp_path, events)
    await process.start()
    assert [what for _, what in events] == ["started", *["starting"] * 3, "ready"]
    await process.stop()


async def test_a_second_supervisor_is_refused_by_the_pid_of_the_first(tmp_path):
    first = Supervisor([sleeper("one")], tmp_path)
    await first.start()
    try:
        with pytest.raises(Unavailable, match=f"already supervised by process {os.getpid()}"):
            await Supervisor([sleeper("one")], tmp_path).start()
        assert first.pids()["one"]
    finally:
        await first.stop()


UP = """
import asyncio, sys
from pathlib import Path
from aegisflux.runtime.supervise import Supervisor, run_until_signal
from tests.system.test_supervise import sleeper
def tell(event): print(event.child, event.what, event.pid, flush=True)
asyncio.run(run_until_signal(Supervisor([sleeper("one"), sleeper("two")], Path(sys.argv[1]), tell)))
"""


def up(directory: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": "src:tests:."}
    return subprocess.Popen(
        [sys.executable, "-c", UP, str(directory)],
        stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment,
    )  # fmt: skip


def told(process: subprocess.Popen, what: str) -> dict[str, int]:
    """Read what it tells until both children did `what`; their pids."""
    pids: dict[str, int] = {}
    while len(pids) < 2:
        line = process.stdout.readline()
        assert line, "it ended early"
        name, word, pid = line.split()
        if word == what:
            pids[name] = int(pid)
    return pids


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_cleanly(tmp_path, number):
    process = up(tmp_path)
    pids = told(process, "ready")
    process.send_signal(number)
    assert process.wait(10) == 0
    process.stdout.close()
    assert all(procfs.start_time(pid) is None for pid in pids.values())


def test_the_next_up_ends_the_orphans_of_a_killed_one(tmp_path):
    first = up(tmp_path)
    orphans = told(first, "ready")
    first.kill()
    first.wait()
    first.stdout.close()
    assert all(procfs.start_time(pid) for pid in orphans.values()), "children outlive the supervisor"
    second = up(tmp_path)
    try:
        assert told(second, "orphan") == orphans
        fresh = told(second, "ready")
        assert all(procfs.start_time(pid) is None for pid in orphans.values())
        assert all(procfs.start_time(pid) for pid in fresh.values())
    finally:
        second.terminate()
        second.wait(10)
        second.stdout.close()


def test_a_pid_given_to_somebody_else_is_no_orphan(tmp_path):
    kept = PidFile(tmp_path / "one.pid")
    kept.write(os.getpid())
    assert kept.alive() == os.getpid()
    text = kept.path.read_text().replace(f'"start": {procfs.start_time(os.getpid())}', '"start": 1')
    kept.path.write_text(text)
    assert kept.alive() is None
    kept.path.write_text("garbage")
    assert kept.alive() is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_taken_port_is_said_by_whom(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as holder:
        holder.bind((host, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(
            Unavailable, match=rf"nats: port {port} on {host} is taken by process {os.getpid()} "
        ):
            procfs.require_free_port(host, port, "nats")


async def test_a_child_whose_port_is_taken_is_not_started(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        child = sleeper("one", port=holder.getsockname()[1])
        events = Watcher()
        with pytest.raises(Unavailable, match="taken by process"):
            await Supervisor([child], tmp_path, events).start()
        assert not events


def test_a_free_port_is_free():
    procfs.require_free_port("127.0.0.1", free_port(), "nats")
    started = time.monotonic()
    assert procfs.port_holder(1) is None
    assert time.monotonic() - started < 1


@pytest.fixture
def soon(monkeypatch):
    """The same in less time."""
    monkeypatch.setattr(supervise, "ALIVE_SECONDS", 0.3)
    monkeypatch.setattr(supervise, "ALIVE_EVERY", 0.05)
    monkeypatch.setattr(supervise, "TRACE_SECONDS", 0.1)


@pytest.mark.parametrize("how", ["says no", "does not answer", "is stopped"])
async def test_a_child_that_hangs_is_restarted_and_counted(tmp_path, soon, how):
    hung = set[int]()

    async def alive() -> bool:
        if how != "is stopped" and supervisor.pids()["one"] in hung:
            await asyncio.sleep(0 if how == "says no" else 60)
            return False
        return True

    events = Watcher()
    supervisor = Supervisor([sleeper("one", alive=alive), sleeper("two")], tmp_path, events)
    await supervisor.start()
    try:
        pid = supervisor.pids()["one"]
        hung.add(pid)
        if how == "is stopped":
            os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: events.count(("one", "ready")) == 2)
        assert ("one", "hung") in events
        assert supervisor.restarted == {("one", "hung"): 1}
        assert json.loads((tmp_path / supervise.RESTARTS).read_text()) == [["one", "hung", 1]]
        assert procfs.start_time(pid) is None
        assert ("two", "hung") not in events
    finally:
        await supervisor.stop()


async def test_a_busy_moment_restarts_nothing(tmp_path, soon):
    """One answer that does not come between others is no reason."""
    asked = 0

    async def alive() -> bool:
        nonlocal asked
        asked += 1
        if asked % 2:
            await asyncio.sleep(60)
        return True

    events = Watcher()
    supervisor = Supervisor([sleeper("one", alive=alive)], tmp_path, events)
    await supervisor.start()
    try:
        await eventually(lambda: asked > 6)
        assert not supervisor.restarted
    finally:
        await supervisor.stop()


def test_a_supervisor_that_was_held_up_itself_blames_nobody():
    clock = supervise.Lateness(100.0)
    longest = supervise.ALIVE_EVERY + 2 * supervise.ALIVE_SECONDS
    assert not clock.late(100.0 + longest)
    assert clock.late(100.0 + longest + 60)
    assert not clock.late(100.0 + longest + 61)


async def test_who_hangs_writes_where_into_a_log_that_nobody_else_reads(tmp_path, soon):
    code = (
        "import faulthandler, time\nfaulthandler.enable()\n"
        "def here():\n print('begun', flush=True)\n time.sleep(600)\nhere()"
    )
    log = tmp_path / "log"
    log.touch(mode=0o644)

    async def never() -> bool:
        return False

    async def begun() -> bool:
        return "begun" in log.read_text()

    supervisor = Supervisor([sleeper("one", code, alive=never, ready=begun, log=log)], tmp_path / "run")
    await supervisor.start()
    try:
        await eventually(lambda: "in here" in log.read_text())
        assert log.stat().st_mode & 0o777 == 0o600
    finally:
        await supervisor.stop()
