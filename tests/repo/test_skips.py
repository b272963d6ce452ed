"""The account of skips: printed always; a failure where this machine can run every test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPING = (
    "import pytest\ndef test_a():\n    pytest.skip('no reason is good enough')\ndef test_b():\n    pass\n"
)
LIGHT = ("-p", "no:cacheprovider", "-p", "no:schemathesis")
NAMES = ("BPF", "CGROUP", "NETNS", "USERNS")


def run(
    repository: Path, place: Path, body: str, reason: str, *more: str
) -> subprocess.CompletedProcess[str]:
    (place / "test_it.py").write_text(body)
    able = {f"AEGISFLUX_CAN_{name}": "0" if reason else "1" for name in NAMES}
    reasons = {f"AEGISFLUX_CAN_{name}_REASON": reason for name in NAMES}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", *LIGHT, *more, place],
        cwd=repository,
        env={**os.environ, **able, **reasons},
        capture_output=True,
        check=False,
        text=True,
    )


def test_a_skip_fails_where_everything_can_run(repository: Path, tmp_path: Path) -> None:
    done = run(repository, tmp_path, SKIPPING, "")
    assert done.returncode == 1
    assert "number of skips: 1" in done.stdout
    assert "test_a: Skipped: no reason is good enough" in done.stdout
    assert "FAILED: this machine can run every test" in done.stdout


@pytest.mark.parametrize("body", [SKIPPING, "import pytest\npytest.skip('no', allow_module_level=True)\n"])
def test_a_skip_in_one_of_two_lanes_fails_too(repository: Path, tmp_path: Path, body: str) -> None:
    (tmp_path / "test_other.py").write_text("def test_c(): ...\n")
    done = run(repository, tmp_path, body, "", "-n", "2")
    assert done.returncode == 1
    assert "number of skips: 1" in done.stdout


def test_a_skip_is_only_counted_elsewhere(repository: Path, tmp_path: Path) -> None:
    done = run(repository, tmp_path, SKIPPING, "EPERM")
    assert done.returncode == 0, done.stdout
    assert "number of skips: 1" in done.stdout


def test_a_module_that_skips_itself_counts(repository: Path, tmp_path: Path) -> None:
    body = "import pytest\npytest.skip('all of it', allow_module_level=True)\n"
    done = run(repository, tmp_path, body + "def test_a(): ...\n", "")
    assert done.returncode != 0
    assert "all of it" in done.stdout


@pytest.mark.parametrize(("reason", "closing"), [("", "1 passed"), ("EPERM", "1 skipped")])
def test_a_mark_skips_with_the_machines_reason(
    repository: Path, tmp_path: Path, reason: str, closing: str
) -> None:
    body = "import pytest\n@pytest.mark." + "bpf\ndef test_a(): ...\n"  # this file is none of the kernel's
    done = run(repository, tmp_path, body, reason)
    assert closing in done.stdout.splitlines()[-1]
    assert not reason or "bpf: EPERM" in done.stdout


def test_nightly_tests_are_left_out_by_day(repository: Path, tmp_path: Path) -> None:
    body = "import pytest\n@pytest.mark.nightly\ndef test_a(): ...\ndef test_b(): ...\n"
    done = run(repository, tmp_path, body, "")
    assert "1 passed, 1 deselected" in done.stdout
