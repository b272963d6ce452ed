"""Agents and commands in a mount namespace of their own, so that a panic without a name ends only theirs.

A panic asks the kernel, not a folder, and this kernel is shared with the tests of others: `panic` and
`resume` therefore also run in a cgroup namespace, in which they see only what is attached below the bench's
cgroup.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.agent_process import AgentProcess
from tests.support.netns import cgroup_root

MOUNTS = "mount -t bpf bpf /sys/fs/bpf && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib"
READY = "echo ready && exec sleep 600"
ENDING = ("panic", "resume")


class Elsewhere(AgentProcess):
    """An agent, and commands, in the namespaces of other processes: `inside` and, for a panic, `scoped`."""

    inside: tuple[str, ...] = ()
    scoped: tuple[str, ...] = ()

    def command(self, *words):
        code = "from aegisflux.agent.cli import app; app()"
        prefix = self.scoped if words[:1] and words[0] in ENDING else self.inside
        return [*prefix, sys.executable, "-c", code, *words]

    def start(self):
        code = f"{self.prelude}\nfrom aegisflux.agent.cli import app; app()"
        argv = [*self.inside, sys.executable, "-c", code, "run"]
        with (self.directory / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(argv, env=self.env, stderr=log, stdout=log)

    def forget(self) -> None:
        """A shell that was opened later, on a host without agent.toml."""
        for name in [name for name in self.env if name.startswith("AEGISFLUX_AGENT_")]:
            del self.env[name]

    def shell(self, script: str) -> str:
        """Run a script where the agent is: mount, fill, make read-only."""
        done = subprocess.run(
            [*self.inside, "sh", "-ec", script], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def mounts(script: str = MOUNTS) -> Iterator[tuple[str, ...]]:
    """A prefix for commands in a new mount namespace, in which the script ran."""
    with held(["unshare", "--mount", "sh", "-ec", f"{script}\n{READY}"]) as pid:
        yield "nsenter", f"--mount=/proc/{pid}/ns/mnt"


@contextmanager
def below(top: Path, inside: tuple[str, ...], script: str = "true") -> Iterator[tuple[str, ...]]:
    """A prefix for commands that see what `inside` sees (and what the script then mounts), and of the host's
    cgroups only those below `top`."""
    root = cgroup_root()
    namespaces = f"{script}\numount -l {root}\nmount -t cgroup2 none {root}\n{READY}"
    move = f'echo $$ > {top}/cgroup.procs\nexec unshare --mount --cgroup sh -ec "$1"'
    with held([*inside, "sh", "-ec", move, "sh", namespaces]) as pid:
        yield "nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--cgroup=/proc/{pid}/ns/cgroup"


@contextmanager
def held(argv: list[str]) -> Iterator[int]:
    """The process of a command that says `ready` and then stays."""
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "ready\n"
        yield holder.pid
    finally:
        holder.kill()
        holder.communicate()
