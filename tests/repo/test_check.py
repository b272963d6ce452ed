"""script/check is part of script/test: a test for each of its steps."""

import subprocess
from pathlib import Path

import pytest

STEPS = ("ruff", "format", "types", "imports", "budgets", "register", "hygiene", "dead", "docs")


@pytest.mark.parametrize("step", STEPS)
def test_the_repository_checks_itself(step: str, repository: Path) -> None:
    done = subprocess.run(
        [repository / "script/check", step],
        cwd=repository,
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_step_of_the_script_is_tested(repository: Path) -> None:
    source = (repository / "script/check").read_text()
    (line,) = [line for line in source.splitlines() if line.startswith("all=(")]
    assert tuple(line.removeprefix("all=(").rstrip(")").split()) == STEPS
