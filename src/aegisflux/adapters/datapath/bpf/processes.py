"""Processes as they begin and end: the sensor's programs, pinned, and the ring that they write.

Pins lie in `<bpffs>/aegisflux/<instance>/sensor<layout>/`: `maps/<name>`, and the links in a folder named by
the digest of the programs. An agent that finds links of its own programs leaves them as they are, so that
nothing is lost over a restart; over an upgrade of the programs the time of one attachment is.
"""

import os
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.owner import bind_owner
from aegisflux.adapters.datapath.bpf.pins import erase, mounted_bpffs, object_path, private_folder
from aegisflux.adapters.datapath.bpf.programs import Programs
from aegisflux.adapters.datapath.bpf.ring import Unread
from aegisflux.domain.errors import Invalid, Unavailable
from aegisflux.domain.event import Event, Exec
from aegisflux.domain.panic import Owner
from aegisflux.ports.sensor import Reading
from aegisflux.runtime.cgroupfs import v2_root
from aegisflux.wire.records import BOUNDS, LOSSES, SENSOR_LAYOUT, decode_record

OBJECT: Final = "sensor.bpf.o"
POINTS: Final = {"aegis_exec": "sched_process_exec", "aegis_exit": "sched_process_exit"}
MAPS: Final = ("records", "limits", "losses")
WINDOWS_PER_SECOND: Final = 1e9 / (1 << 27)
POSITION_BITS: Final = 41
SEEN: Final = "seen."


class Processes:
    """See `ports.sensor.Source`. At most `rate` execs (and as many exits) a second and CPU are told."""

    name = "processes"

    def __init__(
        self,
        top: Path,
        programs: Programs,
        *,
        rate: int = 2000,
        inside: Path | None = None,
        beside: Path | None = None,
        path: Path | None = None,
        state_dir: str = "",
    ) -> None:
        """`top` is the instance's folder of pins; only processes of the cgroup `inside` are told, and only
        while there is something at `beside`: after a panic nothing of the instance may come back.
        """
        self._home, self._programs, self._rate = top / f"sensor{SENSOR_LAYOUT}", programs, rate
        self._inside, self._beside, self._path, self._state_dir = inside, beside, path, state_dir
        self._links = self._home
        self._maps: dict[str, int] = {}
        self._ring: Unread | None = None
        self._ring_id = 0
        self._malformed = 0

    @property
    def fd(self) -> int | None:
        """See `Source.fd`."""
        return None if self._ring is None else self._maps["records"]

    def open(self) -> None:
        """Raises Unavailable with the verifier's last lines."""
        if self._ring is not None:
            return
        mounted_bpffs(self._home.parent.parent.parent)
        if self._beside is not None and not self._beside.exists():
            raise Unavailable("sensor: the datapath is not open")
        try:
            path = self._path or object_path(OBJECT)
            self._links = self._home / f"links-{sha256(path.read_bytes()).hexdigest()[:16]}"
            private_folder(self._home.parent.parent)
            (self._home / "maps").mkdir(parents=True, exist_ok=True)
            if not self._is_attached(self._links):
                self._attach(path, self._links)
            self._maps = {name: libbpf.obj_get(str(self._home / "maps" / name)) for name in MAPS}
            _, self._ring_id, _, _, size = libbpf.map_info(self._maps["records"])
            libbpf.update(self._maps["limits"], bytes(4), self._bounds())
            self._ring = Unread(self._maps["records"], size)
        except OSError as error:
            self.close()
            raise Unavailable(
                f"sensor: {error}: {' / '.join(libbpf.last_words().splitlines()[-4:])}"
            ) from None

    def read(self, first_seq: int, limit: int) -> Reading:
        """See `Source.read`."""
        ring = self._need()
        if not self._links.exists():
            self.close()
            raise Unavailable("sensor: its pins are gone")
        wall_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        events: list[Event] = []
        at = ring.begin
        for data, behind in ring.records():
            if len(events) >= limit:
                return Reading(tuple(events), self._cursor(at), more=True)
            at = behind
            try:
                event = decode_record(data, first_seq + len(events), wall_ns)
            except Invalid:
                self._malformed += 1
                continue
            if isinstance(event, Exec):
                self._programs.began(event.pid, event.start_ns, event.path)
            events.append(event)
        return Reading(tuple(events), self._cursor(at))

    def done(self, cursor: int) -> None:
        """See `Source.done`; a cursor of another ring says nothing of this one."""
        ring = self._need()
        ahead = (cursor - ring.begin) % (1 << POSITION_BITS)
        if cursor == self._cursor(ring.begin + ahead):
            ring.release(ring.begin + ahead)

    resume = done

    def lost(self) -> Mapping[str, int]:
        """See `Source.lost`: over the rate, no room in the ring, and records that nobody could read."""
        told = {where: n for where, n in self.counts().items() if not where.startswith(SEEN)}
        return {**told, "malformed": self._malformed}

    def counts(self) -> dict[str, int]:
        """What the programs counted, by its name in `wire.records.LOSSES`."""
        self._need()
        size = 8 * libbpf.lib().libbpf_num_possible_cpus()
        found = {}
        for i, name in enumerate(LOSSES):
            raw = libbpf.lookup(self._maps["losses"], i.to_bytes(4, "little"), size) or b""
            found[name] = sum(int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8))
        return found

    def close(self) -> None:
        """See `Source.close`."""
        if self._ring is not None:
            self._ring.close()
        self._ring = None
        for fd in self._maps.values():
            os.close(fd)
        self._maps = {}

    def remove(self) -> None:
        """See `Source.remove`."""
        self.close()
        erase(self._home)

    def _cursor(self, position: int) -> int:
        low = position % (1 << POSITION_BITS)
        return self._ring_id % (1 << 62 - POSITION_BITS) << POSITION_BITS | low

    def _bounds(self) -> bytes:
        most = max(1, round(self._rate / WINDOWS_PER_SECOND))
        if self._inside is None or self._inside == (root := v2_root()):
            return BOUNDS.pack(most, most, 0, 0, 0)
        level = len(self._inside.relative_to(root).parts)
        return BOUNDS.pack(most, most, self._inside.stat().st_ino, level, 0)

    def _is_attached(self, links: Path) -> bool:
        pins = [*(links / name for name in POINTS), *(self._home / "maps" / name for name in MAPS)]
        return all(pin.exists() for pin in pins)

    def _attach(self, path: Path, links: Path) -> None:
        """Load over the maps that are pinned, and attach in the place of what is attached."""
        libbpf.last_words()
        found = libbpf.Object(str(path))
        try:
            for name in MAPS:
                pin = self._home / "maps" / name
                if pin.exists():
                    fd = libbpf.obj_get(str(pin))
                    found.reuse(name, fd)
                    os.close(fd)
            found.load()
            for name in MAPS:
                if not (self._home / "maps" / name).exists():
                    libbpf.pin(found.map_fd(name), str(self._home / "maps" / name))
            bind_owner(self._owner(), [found.prog_fd(name) for name in POINTS])
            for old in self._home.glob("links-*"):
                erase(old)
            links.mkdir()
            for name, point in POINTS.items():
                fd = libbpf.raw_tracepoint(point, found.prog_fd(name))
                try:
                    libbpf.pin(fd, str(links / name))
                finally:
                    os.close(fd)
        finally:
            found.close()

    def _owner(self) -> Owner:
        top, inside = self._home.parent, self._inside or v2_root()
        return Owner(top.name, str(top.parent.parent), self._state_dir, inside.stat().st_ino, str(inside))

    def _need(self) -> Unread:
        if self._ring is None:
            raise Unavailable("sensor: not open")
        return self._ring
