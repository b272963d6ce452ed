"""Exit statuses of the command line: what a script may rely on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOWHERE = {"AEGISFLUX_URL": "http://127.0.0.1:1", "AEGISFLUX_TOKEN": "afx_none"}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--version"], 0, ""),
        (["snapshot", "--help"], 0, ""),
        (["snapshot", "shw"], 2, 'Did you mean "show"?'),
        (["agent", "run", "--nope"], 2, "Unknown option"),
        (["snapshot", "list"], 4, "127.0.0.1:1"),
    ],
)
def test_the_status_says_what_happened(arguments: list[str], status: int, said: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AEGISFLUX_")} | NOWHERE
    done = subprocess.run(
        [sys.executable, "-m", "aegisflux", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("verb", [["env"], ["audit", "verify"]])
def test_a_wrong_data_folder_is_refused_and_not_made(tmp_path: Path, verb: list[str]) -> None:
    environment = dict(os.environ) | {"AEGISFLUX_DATA_DIR": str(tmp_path / "wrong")}
    done = subprocess.run(
        [sys.executable, "-m", "aegisflux", *verb],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "holds no control plane" in done.stderr) == (3, True), done
    assert not (tmp_path / "wrong").exists()
