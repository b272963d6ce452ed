"""What telling of processes adds to an exec, at 500 a second."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

from bench.lib.report import Report

from aegisflux.adapters.datapath.bpf.processes import Processes
from aegisflux.adapters.datapath.bpf.programs import Programs

PER_SECOND = 500
PROGRAM = "/bin/true"
READER = """
import sys, time
from pathlib import Path
from aegisflux.adapters.datapath.bpf.processes import Processes
from aegisflux.adapters.datapath.bpf.programs import Programs
from aegisflux.agent.collector import Collector
from aegisflux.agent.parts import Feed
from aegisflux.agent.spool import Spool
source = Processes(Path(sys.argv[1]), Programs())
spool = Spool(Path(sys.argv[2]), "bench", "boot", 64 << 20)
collector = Collector([Feed(source, "events")], spool, "bench", "boot", 5000.0, lambda text: None)
collector.open()
print("ready", flush=True)
while True:
    time.sleep(max(0.05, collector.step(time.monotonic(), time.time_ns())))
    spool.exchange(spool.exchange([], 100), 0)
"""


def measure(report: Report) -> None:
    """Blocks of a second, attached and not, in turns; the median over pairs of their difference."""
    pairs, block = (3, 200) if report.quick else (30, PER_SECOND)
    top = Path(f"/sys/fs/bpf/aegisflux/bench-{os.getpid()}")
    source = Processes(top, Programs())
    with tempfile.TemporaryDirectory() as folder:
        try:
            told = _pairs(report, source, Path(folder), pairs, block)
        finally:
            source.remove()
            top.rmdir()
    on, off, lost = told
    change = median(with_ / without - 1 for with_, without in zip(on, off, strict=True))
    remark = f"{_us(on)} with, {_us(off)} without; {PER_SECOND} a second, {PROGRAM}"
    report.add("exec_overhead_pct", 100 * change, remark)
    report.add("exec_lost", lost, f"of {pairs * block} execs and exits told")


def _pairs(
    report: Report, source: Processes, folder: Path, pairs: int, block: int
) -> tuple[list[float], list[float], int]:
    on: list[float] = []
    off: list[float] = []
    lost = 0
    _loop(block)
    for number in range(pairs):
        for attached in (number % 2 == 0, number % 2 == 1):
            if not attached:
                off.append(_loop(block))
                continue
            source.open()
            top = str(source._home.parent)
            argv = [sys.executable, "-c", READER, top, str(folder / str(number))]
            with subprocess.Popen(argv, stdout=subprocess.PIPE) as reader:
                try:
                    assert reader.stdout
                    reader.stdout.readline()
                    on.append(_loop(block))
                    counts = source.counts()
                finally:
                    reader.kill()
            if counts["seen.exec"] < block:
                raise RuntimeError(f"{block} execs, {counts['seen.exec']} seen")
            lost += sum(n for name, n in counts.items() if not name.startswith("seen."))
            source.remove()
        report.say(f"pair {number + 1} of {pairs}: {_us(on[-1:])} with, {_us(off[-1:])} without")
    return on, off, lost


def _us(seconds: list[float]) -> str:
    return f"{mean(seconds) * 1e6:.0f} us"


def _loop(count: int) -> float:
    """The median seconds of spawn and wait."""
    took = []
    due = time.perf_counter()
    for _ in range(count):
        due += 1 / PER_SECOND
        begin = time.perf_counter()
        pid = os.posix_spawn(PROGRAM, [PROGRAM], {})
        os.waitpid(pid, 0)
        end = time.perf_counter()
        took.append(end - begin)
        if end < due:
            time.sleep(due - end)
    return median(took)
