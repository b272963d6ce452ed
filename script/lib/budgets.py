"""Budgets of size: a function has at most 40 lines (70 hard), a file 400 (600 hard), a BPF file 250.

Prints what is over; the exit status is 1 when something is over a hard limit. `--warn` lists the
soft limits too.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tree

FUNCTION_SOFT, FUNCTION_HARD = 40, 70
FILE_SOFT, FILE_HARD = 400, 600
BPF_HARD = 250


@dataclass(frozen=True, slots=True)
class Over:
    """Something longer than its budget."""

    where: str
    lines: int
    limit: int
    hard: bool

    def __str__(self) -> str:
        return f"{self.where}: {self.lines} lines, expected at most {self.limit}"


def _functions(path: Path, source: str) -> Iterator[Over]:
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_SOFT:
            hard = lines > FUNCTION_HARD
            limit = FUNCTION_HARD if hard else FUNCTION_SOFT
            yield Over(f"{path}:{node.lineno} {node.name}()", lines, limit, hard)


def _file(path: Path, source: str) -> Iterator[Over]:
    lines = source.count("\n")
    if path.parts[0] == "bpf":
        if lines > BPF_HARD:
            yield Over(str(path), lines, BPF_HARD, True)
    elif lines > FILE_SOFT:
        hard = lines > FILE_HARD
        yield Over(str(path), lines, FILE_HARD if hard else FILE_SOFT, hard)


def over_budget(paths: list[Path]) -> list[Over]:
    """All that is over a soft or a hard limit, in the order of the paths."""
    found: list[Over] = []
    for path in paths:
        source = tree.text(path)
        found.extend(_file(path, source))
        if path.suffix == ".py":
            found.extend(_functions(path, source))
    return found


def main() -> int:
    """Print and return 1 when a hard limit is passed."""
    found = over_budget(tree.files(".py", ".c", ".h"))
    hard = [item for item in found if item.hard]
    for item in hard:
        print(item)
    soft = [item for item in found if not item.hard]
    if "--warn" in sys.argv[1:]:
        for item in soft:
            print(f"warning: {item}")
    elif soft:
        print(f"{len(soft)} over a soft budget (script/check budgets --warn lists them)")
    return 1 if hard else 0


if __name__ == "__main__":
    sys.exit(main())
