"""What malloc gives back. By itself it keeps a heap for each thread, and in it the holes of large blocks."""

import ctypes
from typing import Final

M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3  # malloc.h
AGENT_LARGE: Final = 128 << 10
SERVICE_LARGE: Final = 1 << 20  # batches of events are smaller, and a fault for each page of them costs time


def settle(heaps: int, large: int) -> None:
    """Let all threads share a few heaps: what is freed in a heap of their own would stay with the process.
    What has `large` bytes lies outside of them, always: glibc would learn from the first large block that is
    freed to put the next ones into the heap, where they leave holes."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, heaps)
        libc.mallopt(M_MMAP_THRESHOLD, large)
    except AttributeError:  # not glibc
        return
