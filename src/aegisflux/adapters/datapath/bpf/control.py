"""The few words that the programs read on every packet, written one at a time through shared memory."""

import ctypes
import mmap
from typing import Final

from aegisflux.wire.layout import CONTROL

EVENTS_PER_TICK: Final = 16
PASS_JUDGE, PASS_LISTENERS, PASS_STAMP = 0, 1, 2


class _Words(ctypes.Structure):
    _fields_ = [
        ("generation", ctypes.c_uint64), ("epoch", ctypes.c_uint32), ("mkdirs", ctypes.c_uint32),
        ("events_per_tick", ctypes.c_uint32), ("pass_slot", ctypes.c_uint32), ("pass_stamp", ctypes.c_uint32),
        ("zero", ctypes.c_uint32),
    ]  # fmt: skip


assert ctypes.sizeof(_Words) == CONTROL.size


class Control:
    """See `struct control`."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._words: _Words | None = _Words.from_buffer(self._memory)
        if not self.words.epoch:
            self.words.epoch = 1
        self.words.events_per_tick = EVENTS_PER_TICK

    @property
    def words(self) -> _Words:
        assert self._words is not None
        return self._words

    @property
    def generation(self) -> int:
        """The highest that is in force."""
        return int(self.words.generation)

    def raise_generation(self, number: int) -> None:
        self.words.generation = max(self.generation, number)

    def raise_epoch(self) -> None:
        """Void what sockets remember of their slot."""
        self.words.epoch += 1

    def begin_pass(self, slot: int, kind: int = PASS_JUDGE) -> None:
        self.words.pass_slot = slot
        self.words.pass_stamp = kind

    def close(self) -> None:
        self._words = None
        self._memory.close()
