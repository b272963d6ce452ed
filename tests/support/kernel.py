"""A datapath of the real kernel below a lab's cgroup, and programs that talk through it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.domain.compile import compile_tables
from aegisflux.domain.snapshot import Ruleset
from aegisflux.ports.datapath import Binding, Generation
from aegisflux.wire import layout
from aegisflux.wire.layout import BLOCK
from tests.support.netns import Host, Lab, cgroup_root

HOUR_NS = 3600 * 10**9
TALKER = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
print("ready", flush=True)
s.settimeout(0.4)
for line in sys.stdin:
    try:
        s.send(line.strip().encode())
        print(s.recv(99).decode() or "-", flush=True)
    except OSError:
        print("-", flush=True)
"""


def generation_of(rules: Ruleset, deadline_ns: int, version: int = 1) -> Generation:
    """What the agent would load for these rules."""
    tables = compile_tables(rules)
    digest = "sha256:" + sha256(msgspec.json.encode(rules)).hexdigest()
    return Generation(
        rules.service_id,
        version,
        digest,
        tables,
        tables.digest(),
        rules.mode,
        rules.on_expiry,
        rules.established,
        deadline_ns,
    )


class Talk:
    """One live TCP connection held by a process inside a cgroup."""

    def __init__(self, host: Host, cgroup: str, address: str, port: int) -> None:
        self.process = host.start(
            [sys.executable, "-S", "-c", TALKER, address, str(port)],
            cgroup,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def say(self, text: str) -> str | None:
        """The echo of one line, or None where it is cut off."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().decode().strip()
        return None if answer in ("", "-") else answer


class Kernel:
    """The BPF datapath attached at the lab's cgroup; it leaves nothing behind."""

    def __init__(self, lab: Lab) -> None:
        from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath

        self.lab = lab
        self.datapath = BpfDatapath(attach=lab.cgroup, instance=f"test-{lab.name}")
        self._bound: dict[int, Binding] = {}

    def __enter__(self) -> Self:
        self.datapath.open()
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.datapath.panic()
        self.datapath.close()

    def bind(self, cgroup: Path, slot: int) -> None:
        binding = Binding(os.stat(cgroup).st_ino, "/" + str(cgroup.relative_to(cgroup_root())), slot)
        self._bound[binding.cgroup_id] = binding
        self.datapath.bind(self._bound.values())
        self.datapath.refresh_addresses()

    def enforce(self, slot: int, rules: Ruleset, on_expiry: str | None = None, lease_s: float = 3600) -> None:
        """Load, check the read-back, flip."""
        if on_expiry is not None:
            rules = msgspec.structs.replace(rules, on_expiry=on_expiry)
        generation = generation_of(rules, self.datapath.boot_ns() + int(lease_s * 1e9))
        loaded = self.datapath.load(slot, "active", generation)
        assert loaded.tables_digest == generation.tables_digest
        self.datapath.flip(loaded)
        self.datapath.forget(slot)

    def served(self, host: Host, cgroup: str, argv: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Start a program and wait until it says that it is ready; its stdin is a pipe."""
        process = host.start(argv, cgroup, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        return process

    def talk(self, host: Host, cgroup: str, address: str, port: int) -> Talk:
        return Talk(host, cgroup, address, port)

    def wait_boot(self, seconds: float) -> None:
        """Let the boot clock run on, a jiffy included."""
        until = self.datapath.boot_ns() + int(seconds * 1e9) + 8_000_000
        while self.datapath.boot_ns() < until:
            time.sleep(0.005)


class InForce(NamedTuple):
    """What a slot judges by."""

    generation_id: int
    version: int
    deadline_ns: int


class Pinned:
    """Reads an instance's pinned maps, whoever holds the instance, or nobody.

    Inside of `with`, `seen` gets every (generation, version) of the slot, in the order of their times.
    """

    def __init__(self, instance: str, slot: int = 0) -> None:
        self.maps = Path(f"/sys/fs/bpf/aegisflux/{instance}/v{layout.LAYOUT}/maps")
        self.slot, self.seen = slot.to_bytes(4, "little"), list[tuple[int, int]]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def look(self) -> InForce | None:
        """What is in force now."""
        with suppress(FileNotFoundError):  # the map may go between its number and its descriptor
            number = self._lookup("generations", self.slot, 4)
            if number is None:
                return None
            fd = libbpf.map_fd_by_id(int.from_bytes(number, "little"))
            if fd is None:
                return None
            try:
                head = layout.head_of(
                    b"".join(libbpf.lookup(fd, bytes([i, 0, 0, 0]), BLOCK) or b"" for i in (0, 1))
                )
            finally:
                os.close(fd)
            deadline = self._lookup("deadlines", head.deadline_cell.to_bytes(4, "little"), 8) or bytes(8)
            return InForce(head.generation, head.version, int.from_bytes(deadline, "little"))
        return None

    def _lookup(self, name: str, key: bytes, size: int) -> bytes | None:
        fd = libbpf.obj_get(str(self.maps / name))
        try:
            return libbpf.lookup(fd, key, size)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            now = self.look()
            if now is not None and self.seen[-1:] != [now[:2]]:
                self.seen.append((now.generation_id, now.version))
