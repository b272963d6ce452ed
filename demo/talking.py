"""Programs of services, as the story speaks to them: real ones over a pipe."""

import json
import subprocess
from contextlib import suppress
from typing import Any, Protocol

WORKS = ("connected", "answered")
REFUSED = ("EPERM", "silent")
LIMIT = 8.0


class Attempts(Protocol):
    """A program of a service on a host, that can be asked to talk to others."""

    def attempt(self, proto: str, address: str, port: int) -> dict[str, Any]:
        """One attempt: {"word", "at" (CLOCK_MONOTONIC seconds), "ms"}."""
        ...

    def until(
        self, words: tuple[str, ...], proto: str, address: str, port: int, within: float
    ) -> dict[str, Any]:
        """Attempts until one ends in one of the words, or the time is over."""
        ...


class Talking:
    """A `talker.py` inside a service's cgroup and its host's namespace."""

    def __init__(self, process: "subprocess.Popen[bytes]", name: str) -> None:
        self.process, self.name = process, name

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give one order and wait for its answer; raises RuntimeError when the program has ended."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the program {self.name} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Kill it, and let go of its pipes."""
        finish(self.process)

    def attempt(self, proto: str, address: str, port: int) -> dict[str, Any]:
        """See `Attempts.attempt`."""
        return self.ask(do="try", proto=proto, address=address, port=port)

    def until(
        self, words: tuple[str, ...], proto: str, address: str, port: int, within: float = LIMIT
    ) -> dict[str, Any]:
        """See `Attempts.until`."""
        wait = 0.06 if "silent" not in words else 0.15
        return self.ask(
            do="until", words=words, proto=proto, address=address, port=port, within=within, wait=wait
        )


def finish(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and let go of it; safe to repeat."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
