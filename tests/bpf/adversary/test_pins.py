"""What an unprivileged user does to the pins: by default anyone may make folders beside them."""

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath
from tests.support.netns import Lab
from tests.support.unprivileged import Run, Steps

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
INSTANCE = "test-pins"


@pytest.fixture
def bpffs() -> Iterator[Path]:
    """A BPF file system as the kernel makes it: everybody's, and sticky."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        subprocess.run(["mount", "-t", "bpf", "bpf", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def locked(folder: Path) -> int:
    """Hold the folder's lock, as an agent does; the descriptor."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def plain_folder(bpffs: Path, _home: Path) -> None:
    (bpffs / "aegisflux").mkdir()


def whole_path(_bpffs: Path, home: Path) -> None:
    (home / "maps").mkdir(parents=True)
    (home / "links").mkdir()
    locked(home)


def link(bpffs: Path, _home: Path) -> None:
    (bpffs / "ours").mkdir()
    (bpffs / "aegisflux").symlink_to("ours")


def meddle(bpffs: Path, home: Path) -> str:
    """Everything that a user could do to the pins; what worked, in words."""
    acts: dict[str, Callable[[], object]] = {
        "list": lambda: os.listdir(home),
        "lock": lambda: locked(home),
        "make": (bpffs / "aegisflux" / "x").mkdir,
        "rename": lambda: home.parent.rename(bpffs / "aegisflux" / "y"),
        "move": lambda: (bpffs / "aegisflux").rename(bpffs / "z"),
        "unpin": (home / "links" / "aegis_egress").unlink,
    }
    worked = []
    for word, act in acts.items():
        with suppress(OSError):
            act()
            worked.append(word)
    return " ".join(worked)


@pytest.mark.parametrize("squat", [None, plain_folder, whole_path, link])
def test_a_user_does_not_get_hold_of_the_pins(
    lab: Lab, bpffs: Path, squat: Callable[[Path, Path], None] | None
) -> None:
    """Neither before the first start nor while the agent is away."""
    host = lab.hosts.get("app") or lab.host("app")
    datapath = BpfDatapath(lab.cgroup, INSTANCE, bpffs)
    home = datapath._pins.home

    def attack() -> Steps:
        if squat is not None:
            squat(bpffs, home)
        yield
        return meddle(bpffs, home)

    run = Run(host, host.below("user"), attack)
    try:
        assert run.step()
        datapath.open()
        datapath.close()
        run.resume()
        assert run.word() == ""
        datapath.open()
        assert "aegis_egress" in datapath._pins.attached()
    finally:
        run.end()
        datapath.panic()
