"""From POST to in force on one real host, seen in the kernel's own map and not in the ack."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import msgspec
from bench.lib.entries import RANDOM, entries
from bench.lib.plane import COMMAND, Plane, clean_environment, until
from bench.lib.report import Report
from tests.support.netns import cgroup_root, enter

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.wire import layout

SERVICE, LABEL, HOST = 101, "bench", "bench-host"
PAUSE: Final = 0.05


def measure(report: Report, plane: Plane) -> None:
    """About a minute, or fifteen seconds when quick."""
    posts, large = (20, 2) if report.quick else (200, 5)
    below = plane.lab.cgroup.relative_to(cgroup_root())
    plane.service(SERVICE, LABEL, f"cgroup:{below}/{HOST}/app.service")
    with _agent(plane) as instance:
        kernel = _Kernel(instance)
        version = _small(report, plane, kernel, posts)
        _large(report, plane, kernel, version, large)


def _small(report: Report, plane: Plane, kernel: "_Kernel", posts: int) -> int:
    """Posts of 100 entries, one after the other; the last version."""
    rng, seconds = random.Random(11), []
    for version in range(1, posts + 2):
        body = msgspec.json.encode(entries(100, RANDOM, rng.getrandbits(32)).body(SERVICE, version))
        took = _posted(plane, kernel, body, version)
        if version > 1:
            seconds.append(took)
        if version % 50 == 0:
            report.say(f"posts of 100 entries: {version} of {posts}")
        time.sleep(PAUSE)
    p99 = quantiles(seconds, n=100, method="inclusive")[98]
    remark = (
        f"{posts} posts of 100 entries; median {1000 * median(seconds):.1f}, worst {1000 * max(seconds):.1f}"
    )
    report.add("enforce_p99_ms", 1000 * p99, remark)
    return version


def _large(report: Report, plane: Plane, kernel: "_Kernel", version: int, posts: int) -> None:
    seconds = []
    for number in range(1, posts + 1):
        body = msgspec.json.encode(entries(100_000, RANDOM, number).body(SERVICE, version + number))
        seconds.append(_posted(plane, kernel, body, version + number))
        report.say(f"100,000 edges in force after {seconds[-1]:.2f} s")
    remark = f"median of {posts} posts of 100,000 edges; worst {max(seconds):.2f}"
    report.add("post_100k_s", median(seconds), remark)


def _posted(plane: Plane, kernel: "_Kernel", body: bytes, version: int) -> float:
    """Seconds from the request to the version in the kernel."""
    began = time.perf_counter()
    plane.call("POST", "/seg/maps", body)
    until(lambda: kernel.version() == version, 60, lambda: f"the kernel holds {kernel.version()}", 0.0005)
    return time.perf_counter() - began


class _Kernel:
    """Reads what a datapath instance judges by, from its pinned map of generations."""

    def __init__(self, instance: str) -> None:
        path = f"/sys/fs/bpf/aegisflux/{instance}/v{layout.LAYOUT}/maps/generations"
        until(lambda: Path(path).exists(), 20, lambda: f"{path} does not appear")
        self._fd = libbpf.obj_get(path)

    def version(self) -> int | None:
        """The version that the first slot's active generation names."""
        number = libbpf.lookup(self._fd, bytes(4), 4)
        if number is None:
            return None
        with suppress(OSError):
            fd = libbpf.map_fd_by_id(int.from_bytes(number, "little"))
            try:
                blocks = [libbpf.lookup(fd, i.to_bytes(4, "little"), layout.BLOCK) or b"" for i in (0, 1)]
                return layout.head_of(b"".join(blocks)).version
            finally:
                os.close(fd)
        return None


@contextmanager
def _agent(plane: Plane) -> Iterator[str]:
    """An enrolled agent process on the real datapath; gives the name of its instance."""
    host, instance = plane.lab.cgroup / HOST, f"bench-{plane.lab.name}"
    (host / "app.service").mkdir(parents=True)
    (host / "agent.service").mkdir()
    state = plane.folder / "agent"
    found = {"STATE_DIR": str(state), "ATTACH_CGROUP": str(host), "INSTANCE": instance}
    env = clean_environment() | {f"AEGISFLUX_AGENT_{name}": text for name, text in found.items()}
    enrol = [COMMAND, "agent", "enroll", "--host-id", HOST]
    subprocess.run(enrol, env=env, input=plane.token(LABEL, HOST).encode(), check=True, capture_output=True)
    with (plane.folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [COMMAND, "agent", "run"], env=env, stdout=log, stderr=log,
            preexec_fn=lambda: enter(None, host / "agent.service"),  # noqa: PLW1509
        )  # fmt: skip
    try:
        yield instance
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        for word in ("panic", "resume"):  # the second leaves no panic behind
            subprocess.run([COMMAND, "agent", word], env=env, check=False, capture_output=True)
