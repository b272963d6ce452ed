"""The files of the repository as the checks see them: tracked, or new and not ignored."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def files(*suffixes: str) -> list[Path]:
    """Every file of the tree with one of the suffixes (all files without any), relative to ROOT."""
    answer = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    )
    paths = sorted({Path(name) for name in answer.stdout.decode().split("\0") if name})
    return [path for path in paths if (not suffixes or path.suffix in suffixes) and (ROOT / path).is_file()]


def text(path: Path) -> str:
    """The text of a file of the tree."""
    return (ROOT / path).read_text(encoding="utf-8")


def is_binary(path: Path) -> bool:
    """Whether the file is no text: a NUL byte or broken UTF-8."""
    data = (ROOT / path).read_bytes()
    try:
        return "\0" in data.decode("utf-8")
    except UnicodeDecodeError:
        return True
