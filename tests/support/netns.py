"""Real hosts on one machine: a network namespace and a cgroup each, joined by a bridge.

    with Lab() as lab:
        web, db = lab.host("web"), lab.host("db")
        server = db.start([...], cgroup="postgres")
        assert web.call(connect, db.v4, 5432, cgroup="app") == "connected"

The bridge lies in a namespace of its own (`lab.hub`), where a control plane can run: nothing of the
machine's own network is touched. Names hold the pid; what a killed run left is swept by the next.
Leaving the block ends every process that was started below the lab's cgroup.
"""

import ctypes
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.support import leftovers

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
NETNS = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)
_labs = itertools.count(1)


def cgroup_root() -> Path:
    """The root of the cgroup v2 tree, as mountinfo names it."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    raise RuntimeError("no cgroup v2 tree is mounted")


@contextmanager
def own_cgroup(name: str) -> Iterator[str]:
    """The path below the v2 root of an empty cgroup that is there meanwhile: what a service selects to be
    in force."""
    path = cgroup_root() / f"aegisflux-{name}-{os.getpid()}"
    path.mkdir()
    try:
        yield path.name
    finally:
        kill_cgroup(path)


def enter(netns: str | None, cgroup: Path | None) -> None:
    """Move the calling process; for use between fork and exec."""
    if cgroup is not None:
        (cgroup / "cgroup.procs").write_text("0")
    if netns is not None:
        fd = os.open(NETNS / netns, os.O_RDONLY | os.O_CLOEXEC)
        if _libc.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {netns}")
        os.close(fd)


class Lab:
    """A bridge, its hosts, and one cgroup that holds everything."""

    def __init__(self, prefix: str = "af") -> None:
        self.name = f"{prefix}{os.getpid()}-{next(_labs)}"
        self.cgroup = cgroup_root() / f"aegisflux-{self.name}"
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        sweep()
        try:
            self.cgroup.mkdir()
            self.hub = self._namespace("hub", 1)
            _ip(
                "-n",
                self.hub.netns,
                "link",
                "add",
                "br0",
                "type",
                "bridge",
                "stp_state",
                "0",
                "forward_delay",
                "0",
            )
            self.hub.address("br0")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def host(self, name: str) -> "Host":
        """A new host on the bridge, with IPv4 and IPv6 addresses that are usable at once."""
        host = self._namespace(name, len(self.hosts) + 1)
        _ip(
            "link",
            "add",
            "eth0",
            "netns",
            host.netns,
            "type",
            "veth",
            "peer",
            "name",
            f"p{host.number}",
            "netns",
            self.hub.netns,
        )
        _ip("-n", self.hub.netns, "link", "set", f"p{host.number}", "master", "br0", "up")
        host.address("eth0")
        return host

    def close(self) -> None:
        """End the lab's processes and remove its namespaces and cgroups; safe to repeat."""
        kill_cgroup(self.cgroup)
        for host in self.hosts.values():
            subprocess.run(["ip", "netns", "del", host.netns], check=False, capture_output=True)
        self.hosts.clear()

    def _namespace(self, name: str, number: int) -> "Host":
        host = Host(self, name, number)
        _ip("netns", "add", host.netns)
        self.hosts[name] = host
        _ip("-n", host.netns, "link", "set", "lo", "up")
        host.cgroup.mkdir()
        return host


class Host:
    """One namespace; `cgroup` arguments are names below the host's own cgroup, made when missing."""

    def __init__(self, lab: Lab, name: str, number: int) -> None:
        self.lab, self.name, self.number = lab, name, number
        self.netns = f"{lab.name}-{name}"
        self.cgroup = lab.cgroup / name
        self.v4, self.v6 = f"10.77.0.{number}", f"fd77::{number:x}"

    def address(self, device: str) -> None:
        _ip("-n", self.netns, "addr", "add", f"{self.v4}/24", "dev", device)
        _ip("-n", self.netns, "addr", "add", f"{self.v6}/64", "dev", device, "nodad")
        _ip("-n", self.netns, "link", "set", device, "up")

    def below(self, cgroup: str | None) -> Path:
        path = self.cgroup / cgroup if cgroup else self.cgroup
        path.mkdir(parents=True, exist_ok=True)
        return path

    def start(
        self, argv: Sequence[str], cgroup: str | None = None, **popen: Any
    ) -> "subprocess.Popen[bytes]":
        """Start a program inside; it ends with the lab at the latest."""
        path = self.below(cgroup)
        return subprocess.Popen(argv, preexec_fn=lambda: enter(self.netns, path), **popen)  # noqa: PLW1509

    def run(
        self, argv: Sequence[str], cgroup: str | None = None, timeout: float = 30, **popen: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end and give its output as text."""
        path = self.below(cgroup)
        return subprocess.run(
            argv,
            preexec_fn=lambda: enter(self.netns, path),
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
            **popen,
        )

    def call(
        self, function: Callable[..., T], *args: Any, cgroup: str | None = None, timeout: float = 20
    ) -> T:
        """Call a function in a forked child inside; its result or its exception comes back."""
        reader, writer = os.pipe()
        path = self.below(cgroup)
        pid = os.fork()
        if pid == 0:
            _child(self.netns, path, writer, function, args, timeout)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(pid, 0)
        if not data:
            raise TimeoutError(f"{function.__name__} in {self.netns}: no answer within {timeout} s")
        ok, value = pickle.loads(data)
        if not ok:
            raise value
        return value  # type: ignore[no-any-return]


def _child(
    netns: str, cgroup: Path, writer: int, function: Callable[..., Any], args: tuple[Any, ...], timeout: float
) -> None:
    signal.setitimer(signal.ITIMER_REAL, timeout)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        enter(netns, cgroup)
        outcome = (True, function(*args))
    except BaseException as err:
        outcome = (False, err if _picklable(err) else RuntimeError(traceback.format_exc()))
    try:
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
    finally:
        sys.stdout.flush()
        os._exit(0)


def _picklable(value: object) -> bool:
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return False
    return True


def kill_cgroup(path: Path, timeout: float = 10) -> None:
    """End every process below a cgroup that we made, then remove the tree."""
    if not path.exists():
        return
    with suppress(OSError):
        (path / "cgroup.kill").write_text("1")
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        for below in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
            with suppress(OSError):
                below.rmdir()
        with suppress(OSError):
            path.rmdir()
        if not path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(f"{path}: its processes do not end")


def sweep() -> None:
    """Remove what labs and agents of dead processes left behind; their processes end first."""
    for path in cgroup_root().glob("aegisflux-*"):
        if leftovers.of_the_dead(path.name):
            kill_cgroup(path)
    for path in NETNS.glob("*") if NETNS.exists() else ():
        if leftovers.of_the_dead(path.name):
            subprocess.run(["ip", "netns", "del", path.name], check=False, capture_output=True)
    leftovers.remove(leftovers.of_dead_processes())


def _ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")
