"""Generations in the kernel: create, fill, freeze, read back, exchange the pointer, go back."""

import os
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from msgspec.structs import replace

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.control import Control
from aegisflux.domain.errors import OverLimit, Refused, Unavailable
from aegisflux.domain.tables import Tables
from aegisflux.ports.datapath import MAX_SLOTS, Generation, Held, Loaded, Role
from aegisflux.wire import layout
from aegisflux.wire.layout import BLOCK, Descriptor

CELLS: Final = 8
UDP_FLOWS: Final = 8192
KNOWN: Final = 4096
READ_AGAIN_NS: Final = 600 * 1_000_000_000


@dataclass
class _Map:
    """A generation that we hold by a descriptor."""

    fd: int
    head: Descriptor
    blocks: int


class Generations:
    """The map of maps, and what this process holds beside it."""

    def __init__(self, maps: dict[str, int], control: Control) -> None:
        self._maps, self._control = maps, control
        self._pending: dict[int, tuple[int, _Map]] = {}
        self._replaced: dict[int, _Map | None] = {}
        self.known: dict[int, Descriptor] = {}
        self._seen: dict[tuple[int, Role], tuple[int, Descriptor, str]] = {}
        self._read_all = 0
        for slot in range(MAX_SLOTS):
            for role in _ROLES:
                head = self.head(slot, role)
                if head is not None:
                    self.known[head.generation] = head
                    if role == "active":  # who flipped it may have died before it said so
                        control.raise_generation(head.generation)
        self._next = control.generation + 2 & ~1

    def load(self, slot: int, role: Role, g: Generation) -> Loaded:
        """See `Datapath.load`."""
        if not 0 <= slot < MAX_SLOTS:
            raise Unavailable(f"slot {slot}: expected 0 to {MAX_SLOTS - 1}")
        cell = self._free_cell(slot)
        head = Descriptor(
            self._number(),
            0,
            cell,
            g.mode,
            g.on_expiry,
            g.established,
            g.service_id,
            g.version,
            g.digest,
            g.tables_digest,
        )
        head = replace(head, previous=self._previous(slot, head.generation, self.boot_ns()))
        try:
            libbpf.update(self._maps["deadlines"], _u32(cell), struct.pack("<Q", g.deadline_ns))
            self._need_flows(slot)
            fd, back = _created(layout.pack(g.tables, head))
        except OSError as err:
            raise Unavailable(f"slot {slot}: loading a generation: {err}") from None
        digest = _tables_digest(back)
        self._pending[fd] = slot, _Map(fd, head, len(back) // BLOCK)
        self._remember(head)
        return Loaded(slot, role, head.generation, digest, fd)

    def flip(self, loaded: Loaded) -> None:
        """See `Datapath.flip`; live flows are the caller's to judge again."""
        found = self._pending.pop(loaded.handle, None)
        if found is None:
            raise Unavailable(f"slot {loaded.slot}: generation {loaded.generation_id} is not loaded")
        _, ours = found
        replaced = None
        try:
            if loaded.role == "active":
                ours = self._newest(ours, loaded.slot)
                replaced = self._open(loaded.slot, "active")
            self._exchange(loaded.slot, loaded.role, ours)
        except Unavailable:
            if replaced is not None:
                os.close(replaced.fd)
            raise
        finally:
            os.close(ours.fd)
        if loaded.role == "active":
            self._drop_replaced(loaded.slot)
            self._replaced[loaded.slot] = replaced

    def flip_back(self, slot: int) -> bool:
        """See `Datapath.flip_back`; after a fault the old generation is still there to go back to."""
        if slot not in self._replaced:
            return False
        old = self._replaced[slot]
        if old is None:
            self._delete(slot, "active")
        else:
            again = self._again(old, slot)
            try:
                self._exchange(slot, "active", again)
            finally:
                os.close(again.fd)
        self._drop_replaced(slot)
        return True

    def forget(self, slot: int) -> None:
        self._drop_replaced(slot)

    def discard(self, loaded: Loaded) -> None:
        found = self._pending.pop(loaded.handle, None)
        if found is not None:
            os.close(found[1].fd)

    def renew(self, slot: int, deadline_ns: int) -> None:
        head = self.head(slot, "active")
        if head is None:
            raise Unavailable(f"slot {slot}: nothing to renew")
        libbpf.update(self._maps["deadlines"], _u32(head.deadline_cell), struct.pack("<Q", deadline_ns))

    def remove(self, slot: int, role: Role) -> None:
        self._delete(slot, role)
        if role == "active":
            self._drop_replaced(slot)

    def head(self, slot: int, role: Role) -> Descriptor | None:
        """The descriptor that the kernel holds."""
        fd = self._fd(slot, role)
        if fd is None:
            return None
        try:
            return layout.head_of(b"".join(libbpf.lookup(fd, _u32(i), BLOCK) or b"" for i in (0, 1)))
        finally:
            os.close(fd)

    def read(self, slot: int, role: Role) -> tuple[Descriptor, Tables | None, str] | None:
        """(descriptor, tables, their digest) as the kernel holds them; no tables where they are broken."""
        fd = self._fd(slot, role)
        if fd is None:
            return None
        try:
            blob = _read(fd)
        finally:
            os.close(fd)
        try:
            head, tables = layout.unpack(blob)
            return head, tables, tables.digest()
        except Refused:
            return layout.head_of(blob), None, "sha256:" + sha256(blob).hexdigest()

    def held(self) -> list[Held]:
        """See `Datapath.held`. A map that is frozen cannot change, and its number is not given again while
        any of the next two thousand million is free: what was read of it once is read again only now and
        then, in case a program of somebody else wrote into it.
        """
        out, now = [], self.boot_ns()
        if now - self._read_all >= READ_AGAIN_NS:
            self._seen, self._read_all = {}, now
        for slot in range(MAX_SLOTS):
            for role in _ROLES:
                found = self._frozen(slot, role)
                if found is None:
                    continue
                d, digest = found
                deadline = self.deadline(d)
                out.append(
                    Held(slot, role, d.generation, d.service_id, d.version, d.digest, digest, d.mode,
                         d.on_expiry, d.established, deadline)
                )  # fmt: skip
        return out

    def _frozen(self, slot: int, role: Role) -> tuple[Descriptor, str] | None:
        """The descriptor and the tables' digest of what a slot judges by."""
        raw = libbpf.lookup(self._maps["generations"], _index(slot, role), 4)
        number = int.from_bytes(raw or b"", "little")
        if raw is None or (known := self._seen.get((slot, role))) is None or known[0] != number:
            self._seen.pop((slot, role), None)
            if raw is None or not self._freeze(number) or (found := self.read(slot, role)) is None:
                return None
            known = self._seen[slot, role] = number, found[0], found[2]
        return known[1:]

    @staticmethod
    def _freeze(number: int) -> bool:
        """Make sure that a map that somebody loaded is frozen before it is read; False where it is gone."""
        try:
            fd = libbpf.map_fd_by_id(number)
        except FileNotFoundError:
            return False
        try:
            with suppress(OSError):  # it is frozen
                libbpf.map_freeze(fd)
        finally:
            os.close(fd)
        return True

    def deadline(self, d: Descriptor) -> int:
        """ns of the boot clock."""
        raw = libbpf.lookup(self._maps["deadlines"], _u32(d.deadline_cell), 8)
        return int.from_bytes(raw or bytes(8), "little")

    def flows_fd(self, slot: int) -> int | None:
        """The service's UDP flows; the caller closes."""
        number = libbpf.lookup(self._maps["udp_flows"], _u32(slot), 4)
        return libbpf.map_fd_by_id(int.from_bytes(number, "little")) if number else None

    def close(self) -> None:
        for slot in list(self._replaced):
            self._drop_replaced(slot)
        for _, ours in self._pending.values():
            os.close(ours.fd)
        self._pending.clear()

    @staticmethod
    def boot_ns() -> int:
        import time

        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def _number(self) -> int:
        number = max(self._next, self._control.generation + 2 & ~1)
        self._next = number + 2
        return number

    def _previous(self, slot: int, own: int, now: int) -> int:
        """Since which generation a flow must have been let pass to be live when this one comes."""
        current = self.head(slot, "active")
        if current is None:
            return 0
        ended = now >= self.deadline(current)
        closed = current.on_expiry == "closed" and current.mode == "enforce"
        return own if ended and closed else current.generation

    def _free_cell(self, slot: int) -> int:
        heads = [self.head(slot, role) for role in _ROLES]
        replaced = self._replaced.get(slot)
        heads += [replaced.head if replaced else None]
        heads += [ours.head for at, ours in self._pending.values() if at == slot]
        used = {head.deadline_cell for head in heads if head}
        free = [c for c in range(slot * CELLS, (slot + 1) * CELLS) if c not in used]
        if not free:
            raise OverLimit("generations", CELLS, CELLS + 1, f"slot {slot}")
        return free[0]

    def _newest(self, ours: _Map, slot: int) -> _Map:
        """`ours`, or made again in its place where another flip came between."""
        previous = self._previous(slot, ours.head.generation, self.boot_ns())
        if ours.head.generation > self._control.generation and ours.head.previous == previous:
            return ours
        again = self._again(ours, slot)
        os.close(ours.fd)
        return again

    def _again(self, old: _Map, slot: int) -> _Map:
        """The same tables as a new generation: numbers rise with every flip, and none is used twice."""
        try:
            head, tables = layout.unpack(_read(old.fd))
            number = self._number()
            head = replace(head, generation=number, previous=self._previous(slot, number, self.boot_ns()))
            fd, back = _created(layout.pack(tables, head))
        except OSError as err:
            raise Unavailable(f"slot {slot}: loading a generation again: {err}") from None
        self._remember(head)
        return _Map(fd, head, len(back) // BLOCK)

    def _exchange(self, slot: int, role: Role, ours: _Map) -> None:
        try:
            libbpf.update(self._maps["generations"], _index(slot, role), _u32(ours.fd))
        except OSError as err:
            raise Unavailable(f"slot {slot}: flip: {err}") from None
        if role == "active":
            self._control.raise_generation(ours.head.generation)

    def _delete(self, slot: int, role: Role) -> None:
        with suppress(FileNotFoundError):
            libbpf.delete(self._maps["generations"], _index(slot, role))

    def _drop_replaced(self, slot: int) -> None:
        old = self._replaced.pop(slot, None)
        if old is not None:
            os.close(old.fd)

    def _fd(self, slot: int, role: Role) -> int | None:
        number = libbpf.lookup(self._maps["generations"], _index(slot, role), 4)
        return libbpf.map_fd_by_id(int.from_bytes(number, "little")) if number else None

    def _open(self, slot: int, role: Role) -> _Map | None:
        fd, head = self._fd(slot, role), self.head(slot, role)
        return _Map(fd, head, 0) if fd is not None and head is not None else None

    def _need_flows(self, slot: int) -> None:
        if libbpf.lookup(self._maps["udp_flows"], _u32(slot), 4) is not None:
            return
        fd = libbpf.map_create(
            libbpf.LRU_HASH, "udp_flows_of", layout.UDP_KEY.size, layout.UDP_FLOW.size, UDP_FLOWS
        )
        try:
            libbpf.update(self._maps["udp_flows"], _u32(slot), _u32(fd))
        finally:
            os.close(fd)

    def need_flows(self, slot: int) -> None:
        """UDP flows are known from the time that a cgroup is mapped, snapshot or not."""
        self._need_flows(slot)

    def drop_flows(self, mapped: Collection[int]) -> None:
        """Let go of the UDP flows of slots that are not mapped and judge nothing: the next service of such a
        slot begins without them."""
        busy = {*mapped, *self._replaced, *(slot for slot, _ in self._pending.values())}
        for slot in set(range(MAX_SLOTS)) - busy:
            held = (libbpf.lookup(self._maps["generations"], _index(slot, role), 4) for role in _ROLES)
            if libbpf.lookup(self._maps["udp_flows"], _u32(slot), 4) is not None and not any(held):
                libbpf.delete(self._maps["udp_flows"], _u32(slot))

    def _remember(self, head: Descriptor) -> None:
        self.known[head.generation] = head
        while len(self.known) > KNOWN:
            del self.known[next(iter(self.known))]


_ROLES: Final[tuple[Role, Role]] = ("active", "candidate")


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _index(slot: int, role: Role) -> bytes:
    return _u32(slot + (MAX_SLOTS if role == "candidate" else 0))


def _created(blob: bytes) -> tuple[int, bytes]:
    """A frozen map of these blocks and what it read back. Raises OSError; leaves nothing behind then."""
    fd = libbpf.map_create(libbpf.ARRAY, "generation", 4, BLOCK, len(blob) // BLOCK, libbpf.F_INNER_MAP)
    try:
        libbpf.fill(fd, blob, BLOCK)
        libbpf.map_freeze(fd)
        return fd, _read(fd)
    except BaseException:
        os.close(fd)
        raise


def _read(fd: int) -> bytes:
    return libbpf.read_all(fd, BLOCK, libbpf.map_info(fd)[4])


def _tables_digest(blob: bytes) -> str:
    try:
        return layout.unpack(blob)[1].digest()
    except Refused:
        return "sha256:" + sha256(blob).hexdigest()
