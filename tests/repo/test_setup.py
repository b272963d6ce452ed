"""script/setup: quick when nothing is missing, and one line to run where it may not install."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def test_setup_is_quick_and_silent_when_nothing_is_missing(repository: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        ["script/setup", "--quiet"], cwd=repository, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert time.monotonic() - began < 5


# A base system, without clang and sudo.
TOOLS = [
    "bash",
    "cat",
    "cut",
    "dirname",
    "env",
    "flock",
    "head",
    "mkdir",
    "readlink",
    "sha256sum",
    "sort",
    "tail",
    "uname",
    "ps",
    "unshare",
    "setpriv",
    "curl",
    "git",
    "xz",
    "make",
    "ip",
    "ping",
    "nft",
]


@pytest.fixture
def elsewhere(repository: Path) -> Iterator[Path]:
    """A copy of script/ that anybody may read, and bin/ with TOOLS and an apt-get that fails."""
    place = Path(tempfile.mkdtemp(prefix="aegisflux-setup-"))
    place.chmod(0o755)
    try:
        shutil.copytree(repository / "script", place / "script")
        (place / "bin").mkdir()
        for name in TOOLS:
            if found := shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin"):
                (place / "bin" / name).symlink_to(found)
        (place / "bin/apt-get").write_text("#!/bin/bash\nexit 100\n")
        (place / "bin/apt-get").chmod(0o755)
        yield place
    finally:
        shutil.rmtree(place)


def as_ordinary_user() -> list[str]:
    """The prefix of a command that takes root away, empty where there is none to take."""
    if not os.access("/var/lib/dpkg", os.W_OK):
        return []
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]


def test_without_root_setup_prints_the_one_line_and_exits_4(elsewhere: Path) -> None:
    done = subprocess.run(
        [*as_ordinary_user(), "bash", "script/setup"],
        cwd=elsewhere,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={"PATH": str(elsewhere / "bin")},
    )
    assert done.returncode == 4, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("apt-get update && apt-get install -y --no-install-recommends ")
    assert "clang" in line.split()
    assert "nftables" not in line.split()


def test_the_probe_says_what_works_or_why_not(repository: Path) -> None:
    done = subprocess.run(
        ["python3", "-S", "script/lib/probe.py"], cwd=repository, capture_output=True, text=True, check=True
    )
    answers = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
    for name in ("BPF", "CGROUP", "NETNS", "USERNS"):
        works = answers[f"AEGISFLUX_CAN_{name}"] == "1"
        assert works == (answers[f"AEGISFLUX_CAN_{name}_REASON"] == "''")


def test_the_probe_gives_reasons_to_an_ordinary_user(elsewhere: Path) -> None:
    done = subprocess.run(
        [*as_ordinary_user(), "/usr/bin/python3", "-S", "script/lib/probe.py", "--explain"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cgroup  refused: mkdir" in done.stdout
