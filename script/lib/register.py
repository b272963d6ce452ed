"""The register of subjects is complete: every row has both ends, and no other file spells a subject.

An end is a package that names the row by its function or constant of aegisflux.wire.subjects. Ends outside
of the code (operators, viewers) are served by the command line. Prints what is missing; exit status 1 then.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import tree

from aegisflux.wire import subjects

SOURCE = Path("src/aegisflux")
REGISTER_FILE = SOURCE / "wire/subjects.py"
ENDS = {
    "agent": (SOURCE / "agent",),
    "orchestrator": (SOURCE / "services/orchestrator",),
    "ingest": (SOURCE / "services/ingest",),
    "enrich": (SOURCE / "services/enrich",),
    "segmenter": (SOURCE / "services/segmenter",),
    "viewer": (SOURCE / "cli", SOURCE / "cli.py", SOURCE / "adapters/bus"),
    "operators": (SOURCE / "cli", SOURCE / "cli.py", SOURCE / "services"),
    "whoever refused": (SOURCE / "services", SOURCE / "runtime", SOURCE / "adapters"),
}
OPEN = re.compile(r"<\w+>")


def names_of(row: subjects.Subject) -> set[str]:
    """The names in wire.subjects that stand for a row: constants of its pattern, functions that fill it."""
    found: set[str] = set()
    for name, value in vars(subjects).items():
        if isinstance(value, str) and value == row.pattern:
            found.add(name)
        elif inspect.isfunction(value) and OPEN.search(row.subject):
            parameters = inspect.signature(value).parameters
            if len(parameters) == 1 and _fills(value("x") if _takes_text(value) else None, row):
                found.add(name)
    return found


def _takes_text(function: object) -> bool:
    (parameter,) = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return parameter.annotation is str and parameter.name in {"host", "stream"}


def _fills(answer: object, row: subjects.Subject) -> bool:
    return answer == OPEN.sub("x", row.subject)


def _spelled(path: Path) -> Iterator[tuple[int, str]]:
    """String constants of a module that are no docstrings, with their lines."""
    module = ast.parse(tree.text(path))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def _referenced(path: Path) -> set[str]:
    """The names and attributes that a module uses."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(tree.text(path))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").endswith("wire.subjects"):
            found.update(alias.name for alias in node.names)
    return found


def spelled_elsewhere(sources: list[Path]) -> list[str]:
    """One line for each file that spells a subject of the register."""
    stems = sorted({OPEN.split(row.subject)[0] for row in subjects.REGISTER} - {"dead."})
    wrong: list[str] = []
    for path in sources:
        if path == REGISTER_FILE:
            continue
        for line, value in _spelled(path):
            stem = next((stem for stem in stems if value.startswith(stem)), None)
            if stem:
                wrong.append(f"{path}:{line}: spells {value!r}; take it from aegisflux.wire.subjects")
    return wrong


def ends_missing(sources: list[Path]) -> list[str]:
    """One line for each end of a row that no module of its package names."""
    used = {path: _referenced(path) for path in sources if path != REGISTER_FILE}
    wrong: list[str] = []
    for row in subjects.REGISTER:
        names = names_of(row)
        if not names:
            wrong.append(f"{row.subject}: no function or constant of wire.subjects stands for it")
        for end in (row.producer, *row.consumers):
            folders = ENDS.get(end)
            if folders is None:
                wrong.append(f"{row.subject}: {end!r} is no known end ({', '.join(ENDS)})")
                continue
            inside = [
                path for path in used if any(folder == path or folder in path.parents for folder in folders)
            ]
            if not any(names & used[path] for path in inside):
                wrong.append(f"{row.subject}: its end {end!r} names none of {sorted(names)}")
    return wrong


def main() -> int:
    """Print what is missing and return 1 then."""
    sources = [path for path in tree.files(".py") if SOURCE in path.parents]
    wrong = spelled_elsewhere(sources) + ends_missing(sources)
    for line in wrong:
        print(line)
    if len({row.subject for row in subjects.REGISTER}) != len(subjects.REGISTER):
        print("a subject is in the register twice")
        return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
