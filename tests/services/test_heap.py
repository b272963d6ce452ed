"""What a process held for a while it gives back, also where small things were made in between that stay."""

import subprocess
import sys

import pytest

from aegisflux.runtime import heap

PROGRAM = """
import sys, threading
from aegisflux.runtime import heap
if len(sys.argv) > 1:
    heap.settle(int(sys.argv[1]), int(sys.argv[2]))
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
kept = []
def held():
    del (first := [b"x" * (31 << 20)])[:]  # glibc learns from it
    large = []
    for n in range(40):
        large.append(bytes(3 << 20).replace(b"\\0", b"x"))
        kept.append(b"y" * 2000)
    del large
before = rss()
for _ in range(4):
    one = threading.Thread(target=held)
    one.start()
    one.join()
print((rss() - before) >> 20)
"""
PLACES = {"the agent": (1, heap.AGENT_LARGE), "a service": (2, heap.SERVICE_LARGE)}


def left(*settings):
    """MiB that a program has more than before it held 120 MiB, four times."""
    values = [sys.executable, "-c", PROGRAM, *(str(one) for one in settings)]
    return int(subprocess.run(values, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("who", PLACES)
def test_what_was_held_is_given_back(who):
    assert left(*PLACES[who]) <= 8
