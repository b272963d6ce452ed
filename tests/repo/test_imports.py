"""The import contracts forbid what they say: each is broken once, in a skeleton of the package."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = (
    "", "domain", "wire", "ports", "runtime", "agent", "adapters", "adapters/bus", "adapters/datapath",
    "services", "services/orchestrator", "services/ingest", "settings", "bootstrap", "cli",
)  # fmt: skip
# What the domain may take from the standard library: types of values, and functions from values to values.
VALUES = {
    "__future__", "abc", "array", "ast", "bisect", "collections", "copy", "dataclasses", "datetime",
    "decimal", "difflib", "enum", "fractions", "functools", "hashlib", "heapq", "hmac", "ipaddress",
    "itertools", "json", "math", "operator", "re", "string", "struct", "types", "typing", "unicodedata",
}  # fmt: skip


def judged(
    repository: Path, place: Path, module: str = "", line: str = ""
) -> subprocess.CompletedProcess[str]:
    """What the contracts of pyproject.toml say about a skeleton in which one module has one line."""
    for package in PACKAGES:
        folder = place / "aegisflux" / package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    shutil.copy(repository / "pyproject.toml", place)
    if module:
        path = place / "aegisflux" / module
        path.parent.mkdir(exist_ok=True)
        path.write_text(line + "\n")
        (path.parent / "__init__.py").touch()
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        check=False,
        text=True,
    )


def test_a_clean_skeleton_keeps_the_contracts(repository: Path, tmp_path: Path) -> None:
    done = judged(repository, tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("domain/a.py", "import aegisflux.wire"),
        ("domain/a.py", "import time"),
        ("domain/a.py", "import litestar"),
        ("wire/a.py", "import os"),
        ("ports/a.py", "import aegisflux.runtime"),
        ("runtime/a.py", "import aegisflux.adapters.bus"),
        ("agent/a.py", "import aegisflux.adapters.datapath"),
        ("agent/a.py", "import aegisflux.services.orchestrator"),
        ("agent/a.py", "import asyncpg"),
        ("agent/a.py", "import cryptography"),
        ("services/ingest/a.py", "import aegisflux.services.orchestrator"),
        ("adapters/bus/a.py", "import aegisflux.adapters.datapath"),
        ("settings/a.py", "import aegisflux.bootstrap"),
        ("cli/a.py", "import aegisflux.adapters.bus"),
        ("unlisted/__init__.py", ""),
        ("services/unlisted/__init__.py", ""),
        ("adapters/unlisted/__init__.py", ""),
    ],
)
def test_a_wrong_import_breaks_a_contract(repository: Path, tmp_path: Path, module: str, line: str) -> None:
    done = judged(repository, tmp_path, module, line)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout or "unlisted" in done.stdout, done.stdout


def test_the_domain_takes_only_values(repository: Path) -> None:
    wrong: list[str] = []
    domain = repository / "src/aegisflux/domain"
    for path in sorted(domain.rglob("*.py")):
        columns = path.relative_to(domain).parts[0] in ("segment", "simulate.py")
        allowed = VALUES | {"msgspec"} | ({"numpy", "scipy"} if columns else set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            wrong += [
                f"{path.name}:{node.lineno} {name}"
                for name in names
                if name.split(".")[0] not in allowed and not name.startswith("aegisflux.domain")
            ]
    assert wrong == []
