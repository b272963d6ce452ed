"""SECURITY.md is true line by line: what promises something names its test, and the test exists."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
PATH = re.compile(r"`((?:[\w/]+/)?test_\w+\.py)`")
NAME = re.compile(r"`(test_\w+)`")
FOLDER = re.compile(r"`(tests/[\w/]+/)`")
NOTHING = "nothing: "
"""How a cell begins that promises nothing."""


@cache
def defined() -> dict[str, list[str]]:
    """The files below tests/ that hold tests, and the names of these."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        names = [node.name for node in ast.walk(tree) if isinstance(node, kinds)]
        found[str(path.relative_to(ROOT))] = [name for name in names if name.startswith("test_")]
    return found


def files_of(name: str) -> list[str]:
    """Which files a name of a file means: a path from the root, or a name that one file alone has."""
    return [path for path in defined() if path == name or ("/" not in name and Path(path).name == name)]


def wrong(text: str) -> Iterator[str]:
    """What the text names as a test, and is none."""
    for name in PATH.findall(text):
        files = files_of(name)
        if len(files) != 1:
            yield f"{name}: expected one file of tests, got {len(files)}"
        elif not defined()[files[0]]:
            yield f"{name}: it holds no test"
    for name in NAME.findall(text):
        if not any(name in names for names in defined().values()):
            yield f"{name}: no function of tests has this name"
    for name in FOLDER.findall(text):
        if not any(path.startswith(name) for path in defined()):
            yield f"{name}: expected a folder of tests"


def promises(text: str) -> Iterator[str]:
    """Each row, point and paragraph of the page that promises something, but what the page says is not
    governed.
    """
    text = text.partition("\n## ")[2]
    for section in text.split("\n## "):
        title, _, body = section.partition("\n")
        if title.startswith("What this does not govern"):
            continue
        for part in re.split(r"\n(?=\n|\* |\d\. |\|)", body):
            words = part.strip()
            is_row = words.startswith("|")
            cells = [cell.strip() for cell in words.strip("|").split("|")]
            if not words or (is_row and (cells[0] in ("liar", "key") or set(words) <= set("|-"))):
                continue
            if not (is_row and cells[-1].startswith(NOTHING)):
                yield words


def unproven(text: str) -> list[str]:
    """What promises something and names no test."""
    named = (PATH, NAME, FOLDER)
    return [words[:100] for words in promises(text) if not any(kind.search(words) for kind in named)]


def test_every_promise_names_a_test() -> None:
    assert unproven((ROOT / "SECURITY.md").read_text()) == []


def test_every_test_that_is_named_exists() -> None:
    pages = [ROOT / "SECURITY.md", *(ROOT / "docs/adr").glob("*.md")]
    assert {page.name: found for page in pages if (found := list(wrong(page.read_text())))} == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("`tests/repo/test_security.py`, `test_security.py`, `test_every_promise_names_a_test`", []),
        ("`tests/repo/`, and `tests/bpf/adversary/`", []),
        ("`tests/repo/test_gone.py`", ["tests/repo/test_gone.py: expected one file of tests, got 0"]),
        ("`test_policy.py` and `test_gone`", ["test_gone: no function of tests has this name"]),
        ("`test_enrich.py`", ["test_enrich.py: expected one file of tests, got 2"]),
        ("`tests/gone/`", ["tests/gone/: expected a folder of tests"]),
    ],
)
def test_a_test_that_is_not_there_is_found(text: str, said: list[str]) -> None:
    assert list(wrong(text)) == said


def test_a_promise_without_a_test_is_found() -> None:
    page = """# Security
no promise

## One

A paragraph that
promises.

A proven one (`tests/repo/test_security.py`).
* a point
* another (`test_every_promise_names_a_test`)

| liar | may try | what stops it |
|---|---|---|
| a host | to lie | a wall |
| a host | to die | nothing: it may |
| a host | to fly | a net (`tests/repo/`) |

## What this does not govern

* this
"""
    assert unproven(page) == ["A paragraph that\npromises.", "* a point", "| a host | to lie | a wall |"]
