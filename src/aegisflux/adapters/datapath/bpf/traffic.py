"""Flows as the programs count them, in turns: one map is counted in, the one before it is read.

Each turn has a map of its own, pinned below `turns/` by its number. Giving the programs the next one waits
until none of them uses the last one any more (the kernel does, for a map of maps), so that what is read
stands still. A turn's pin goes when the agent says that its flows are durable; then the kernel frees it.
A turn in which nothing was counted goes on.
"""

import ipaddress
import os
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.denied import reason_of
from aegisflux.adapters.datapath.bpf.pins import NO_PACKET, SETTLE, erase
from aegisflux.adapters.datapath.bpf.programs import CgroupNames, Programs
from aegisflux.domain.errors import Unavailable
from aegisflux.domain.event import FlowSeen, Verdict
from aegisflux.ports.sensor import Reading
from aegisflux.wire import layout as w

MOST_FLOWS: Final = 65_536
PLACE_BITS: Final = 20
LOST_NS: Final = 60 * 1_000_000_000
ALL: Final = (1 << PLACE_BITS) - 1
HASH, NO_PREALLOC = 1, 1
Owner = Callable[[int, int, str], tuple[int, int, str]]
"""Who listens: (protocol, port, cgroup) -> (pid, start, path), zeros and "" where nobody knows."""


def nobody(_proto: int, _port: int, _cgroup: str) -> tuple[int, int, str]:
    """Knows of no listener."""
    return 0, 0, ""


class Traffic:
    """See `ports.sensor.Source`. A cursor is the number of a turn and a place in it."""

    name = "flows"
    fd: int | None = None

    def __init__(self, top: Path, programs: Programs, cgroups: CgroupNames, owner: Owner = nobody) -> None:
        """`top` is the instance's folder of pins, where the datapath's maps are."""
        self._maps, self._turns = top / f"v{w.LAYOUT}" / "maps", top / "turns"
        self._programs, self._cgroups, self._owner = programs, cgroups, owner
        self._accounts = self._counting = -1
        self._malformed = 0
        self._turn, self._place = 0, 0
        self._cursor = ALL
        self._lost, self._lost_at = 0, -LOST_NS
        self._entries: list[tuple[bytes, bytes]] | None = None

    def open(self) -> None:
        """Begin to count, or take over. Raises Unavailable before the datapath is open."""
        if self._accounts >= 0:
            return
        try:
            self._accounts = libbpf.obj_get(str(self._maps / "accounts"))
            self._turns.mkdir(parents=True, exist_ok=True)
            turns = self._pinned()
            if turns:
                self._install(turns[-1])
            else:
                self._begin()
        except OSError as error:
            self.close()
            raise Unavailable(f"flows: {error}") from None

    def read(self, first_seq: int, limit: int) -> Reading:
        """See `Source.read`: what is left of an earlier turn, else the turn that ends with this call."""
        try:
            if self._entries is None:
                self._settle()
                if self._nothing_counted():
                    return Reading((), self._cursor)
                self._take()
            chunk = (self._entries or [])[self._place : self._place + limit]
            wall_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            services = self._services({key for key, _ in chunk})
        except OSError as error:
            self.close()
            raise Unavailable(f"flows: {error}") from None
        self._cgroups.begin()
        events: list[FlowSeen] = []
        for key, value in chunk:
            try:
                events.append(self._event(first_seq + len(events), key, value, services, wall_ns))
            except (ValueError, LookupError, struct.error):  # a record of no program of ours
                self._malformed += 1
        place = self._place + len(chunk)
        more = place < len(self._entries or [])
        self._cursor = self._turn << PLACE_BITS | (place if more else ALL)
        return Reading(tuple(events), self._cursor, more)

    def done(self, cursor: int) -> None:
        """See `Source.done`."""
        turn, place = cursor >> PLACE_BITS, cursor & ALL
        if place == ALL:
            if turn != (self._pinned() or [0])[-1]:  # the newest is being counted in
                (self._turns / str(turn)).unlink(missing_ok=True)
            self._entries = None
        elif turn == self._turn:
            self._place = place

    def resume(self, cursor: int) -> None:
        """See `Source.resume`."""
        self._entries, self._cursor = None, cursor
        turn, place = cursor >> PLACE_BITS, cursor & ALL
        if place != ALL and turn in self._pinned()[:-1]:
            try:
                self._take()
            except OSError as error:
                raise Unavailable(f"flows: {error}") from None
            if self._turn == turn:
                self._place = place
            return
        self.done(cursor)

    def lost(self) -> Mapping[str, int]:
        """See `Source.lost`: packets whose flow found no room. There is always room in an empty turn, so what
        was read once holds until flows are taken again, or for a minute."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if now - self._lost_at >= LOST_NS:
            try:
                self._lost, self._lost_at = self._count_lost(), now
            except OSError as error:
                raise Unavailable(f"flows: {error}") from None
        return {"full.packet": self._lost, "malformed": self._malformed}

    def _count_lost(self) -> int:
        size, total = 8 * libbpf.lib().libbpf_num_possible_cpus(), 0
        fd = libbpf.obj_get(str(self._maps / "counters"))
        try:
            for slot in range(w.SLOT_ROWS):
                row = slot * w.COUNTERS + w.C_LOST_FLOWS
                raw = libbpf.lookup(fd, row.to_bytes(4, "little"), size) or b""
                total += sum(n for (n,) in struct.iter_unpack("<Q", raw))
        finally:
            os.close(fd)
        return total

    def close(self) -> None:
        """See `Source.close`."""
        for fd in (self._accounts, self._counting):
            if fd >= 0:
                os.close(fd)
        self._accounts = self._counting = -1
        self._entries = None

    def remove(self) -> None:
        """Count no more."""
        with suppress(OSError):
            fd = libbpf.obj_get(str(self._maps / "accounts"))
            libbpf.delete(fd, bytes(4))
            os.close(fd)
        self.close()
        erase(self._turns)

    # turns

    def _pinned(self) -> list[int]:
        with suppress(FileNotFoundError):
            return sorted(int(pin.name) for pin in self._turns.iterdir() if pin.name.isdecimal())
        return []

    def _begin(self) -> None:
        """The next turn. Numbers rise even when all pins were lost, hence the clock."""
        newest = (self._pinned() or [0])[-1]
        number = max(newest + 1, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)
        fd = libbpf.map_create(
            HASH, "aegis_turn", w.FLOW_KEY.size, w.FLOW_COUNT.size, MOST_FLOWS, NO_PREALLOC
        )
        try:
            libbpf.pin(fd, str(self._turns / str(number)))
        finally:
            os.close(fd)
        self._install(number)

    def _install(self, number: int) -> None:
        fd = libbpf.obj_get(str(self._turns / str(number)))
        try:
            libbpf.update(self._accounts, bytes(4), fd.to_bytes(4, "little"))
        except OSError:
            os.close(fd)
            raise
        if self._counting >= 0:
            os.close(self._counting)
        self._counting = fd

    def _nothing_counted(self) -> bool:
        """Whether there is only the turn that is counted in, and it is empty."""
        if self._accounts < 0:
            raise OSError(9, "not open")
        return len(self._pinned()) == 1 and libbpf.is_empty(self._counting, w.FLOW_KEY.size)

    def _settle(self) -> None:
        """Let the kernel count what waits in the records of busy flows (bpf/waiting.h)."""
        program = libbpf.obj_get(str(self._maps.parent / SETTLE))
        try:
            libbpf.run_program(program, NO_PACKET)
        finally:
            os.close(program)

    def _take(self) -> None:
        """The oldest turn that is not counted in, in an order of its own."""
        if self._accounts < 0:
            raise OSError(9, "not open")
        turns = self._pinned()
        if len(turns) < 2:
            self._begin()
            turns = self._pinned()
        self._turn, self._place, self._lost_at = turns[0], 0, -LOST_NS
        fd = libbpf.obj_get(str(self._turns / str(turns[0])))
        try:
            self._entries = sorted(libbpf.read_hash(fd, w.FLOW_KEY.size, w.FLOW_COUNT.size))
        finally:
            os.close(fd)

    # events

    def _services(self, keys: set[bytes]) -> dict[int, int]:
        """Service by slot, of the generations that are in force."""
        slots = {w.FLOW_KEY.unpack(key)[4] for key in keys}
        found: dict[int, int] = {}
        fd = libbpf.obj_get(str(self._maps / "generations"))
        try:
            for slot in slots:
                number = libbpf.lookup(fd, slot.to_bytes(4, "little"), 4) if slot < w.MAX_SLOTS else None
                if number is None:
                    continue
                with suppress(OSError):
                    found[slot] = _service(libbpf.map_fd_by_id(int.from_bytes(number, "little")))
        finally:
            os.close(fd)
        return found

    def _event(
        self, seq: int, key: bytes, value: bytes, services: Mapping[int, int], wall_ns: int
    ) -> FlowSeen:
        cgroup_id, local, peer, verdict, slot, port, proto, side = w.FLOW_KEY.unpack(key)
        first, last, out, into, bytes_out, bytes_in, start, connections, pid = w.FLOW_COUNT.unpack(value)
        cgroup = self._cgroups.name(cgroup_id)
        path = self._programs.path(pid, start)
        if side and not pid:
            pid, start, path = self._owner(proto, port, cgroup)
        return FlowSeen(
            seq=seq,
            time_ns=max(0, last + wall_ns),
            direction="ingress" if side else "egress",
            proto=proto,
            local=_text(local),
            peer=_text(peer),
            port=port,
            first_ns=max(0, first + wall_ns),
            last_ns=max(0, last + wall_ns),
            packets_out=out,
            packets_in=into,
            bytes_out=bytes_out,
            bytes_in=bytes_in,
            connections=connections,
            verdict=_verdict(verdict),
            reason=reason_of(verdict),
            service_id=services.get(slot),
            cgroup=cgroup,
            pid=pid,
            start_ns=start,
            path=path,
        )


def _service(generation: int) -> int:
    """The service of a generation, whose descriptor is closed."""
    try:
        blocks = [libbpf.lookup(generation, bytes([i, 0, 0, 0]), w.BLOCK) or b"" for i in (0, 1)]
    finally:
        os.close(generation)
    return w.head_of(b"".join(blocks)).service_id


def _verdict(word: int) -> Verdict:
    if word & w.W_REFUSED:
        return "blocked"
    return "would block" if word & w.W_DENY else "allowed"


def _text(raw: bytes) -> str:
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)
