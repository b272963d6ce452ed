"""Small services of the machine: systemd's readiness protocol and probes from inside a cgroup."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Final

from aegisflux.domain.digits import whole

PROBE_SECONDS: Final = 3.0
# The child joins the cgroup before it makes its socket: a socket belongs to the cgroup of its maker.
_CHILD: Final = """
import socket, sys
procs, host, port, seconds = sys.argv[1:5]
try:
    if procs:
        with open(procs, "w") as f:
            f.write("0")
    socket.create_connection((host, int(port)), timeout=float(seconds)).close()
except OSError as error:
    sys.exit(str(error))
"""


def systemd(message: str) -> None:
    """Tell systemd (READY=1, STOPPING=1); nothing where it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(message.encode(), address)
        except OSError:
            return


class CgroupProber:
    """`Prober`: TCP connects by a process that first joined the cgroup."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def __call__(self, cgroup: str, target: str) -> str:
        """See `Prober`; `target` is `host:port` or `[address]:port`."""
        host, _, port = target.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or whole(port, 65_535) is None:
            return "expected host:port"
        procs = str(self._root / cgroup / "cgroup.procs")
        command = (sys.executable, "-I", "-S", "-c", _CHILD, procs, host, port, str(PROBE_SECONDS))
        child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(PROBE_SECONDS + 2):
                _, said = await child.communicate()
        except TimeoutError:
            child.kill()
            await child.wait()
            return f"no answer within {PROBE_SECONDS:g} s"
        return said.decode(errors="replace").strip()[:300] if child.returncode else ""
