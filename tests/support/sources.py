"""Sources of events for tests: what a kernel holds is a list, or a file that somebody appends to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.event import Event, Exec
from aegisflux.domain.inventory import Package, PackageInventory, System, digest_of
from aegisflux.ports.sensor import Reading

TIME = 1_700_000_000_000_000_000


def exec_of(number: int, **fields) -> Exec:
    """An exec that can be told from the others by its path."""
    values = {"pid": 100, "start_ns": number, "uid": 0, "path": f"/bin/{number}", **fields}
    return Exec(seq=1, time_ns=TIME + number, **values)


@dataclass
class Kernel:
    """What outlives an agent: events, and how far the last one said that it is done."""

    events: list[Event] = field(default_factory=list)
    done: int = 0
    lost: dict[str, int] = field(default_factory=dict)

    def happen(self, count: int, **fields) -> None:
        begin = len(self.events)
        self.events += [exec_of(begin + i, **fields) for i in range(count)]


class FakeSource:
    """See `Source`. `calls` are what was asked; `refuse` is what a method raises."""

    fd = None

    def __init__(self, kernel: Kernel, name: str = "processes") -> None:
        self.kernel, self.name = kernel, name
        self.calls: list[str] = []
        self.refuse: dict[str, Unavailable] = {}
        self._at = 0

    def open(self) -> None:
        self._called("open")
        self._at = self.kernel.done

    def read(self, first_seq: int, limit: int) -> Reading:
        self._called("read")
        found = self.kernel.events[self._at : self._at + limit]
        events = tuple(replace(event, seq=first_seq + i) for i, event in enumerate(found))
        end = self._at + len(events)
        return Reading(events, end, end < len(self.kernel.events))

    def done(self, cursor: int) -> None:
        self._called("done")
        self.kernel.done = self._at = cursor

    def resume(self, cursor: int) -> None:
        self._called("resume")
        self.kernel.done = self._at = cursor

    def lost(self) -> dict[str, int]:
        return self.kernel.lost

    def close(self) -> None:
        self._called("close")

    def remove(self) -> None:
        self._called("remove")

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if method in self.refuse:
            raise self.refuse[method]


class FileSource:
    """Lines of a file as execs, for an agent that is a process of its own; the cursor is where to read on."""

    fd = None

    def __init__(self, path: Path, name: str = "processes") -> None:
        self.path, self.name, self._at = path, name, 0

    def open(self) -> None:
        self.path.touch()

    def read(self, first_seq: int, limit: int) -> Reading:
        with self.path.open("rb") as lines:
            lines.seek(self._at)
            found = [line for _, line in zip(range(limit), lines, strict=False) if line.endswith(b"\n")]
        real = {"args": ("/usr/bin/program", "--option", "value" * 20), "cgroup": "system.slice/some.service"}
        events = tuple(replace(exec_of(int(line), **real), seq=first_seq + i) for i, line in enumerate(found))
        return Reading(events, self._at + sum(map(len, found)), len(found) == limit)

    def done(self, cursor: int) -> None:
        self._at = cursor

    def resume(self, cursor: int) -> None:
        self._at = cursor

    def lost(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        return

    def remove(self) -> None:
        return


@dataclass
class FakeSoftware:
    """See `Software`. `names` are the packages there are."""

    names: list[str] = field(default_factory=lambda: ["bash"])
    taken: int = 0
    is_changed: bool = False
    before: Callable[[], None] = lambda: None

    def take(self, host_id: str, taken_ns: int) -> PackageInventory:
        self.before()
        self.taken += 1
        system = System(id="debian", version_id="12")
        packages = tuple(Package(type="deb", name=name, version="1") for name in sorted(self.names))
        return PackageInventory(
            host_id=host_id,
            taken_ns=taken_ns,
            digest=digest_of(system, packages),
            system=system,
            packages=packages,
        )

    def changed(self) -> bool:
        return self.is_changed
