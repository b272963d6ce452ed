"""What the tree may not hold: binaries, back-up files, copied schemas, registry hosts, unfinished work, and
patterns that let a line break in.

Prints what it finds; the exit status is 1 then.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import patterns
import tree

BINARY_ALLOWED = {".png", ".ico", ".woff2"}
BACKUPS = (".bak", ".orig", ".rej", ".o", ".so", ".swp")
# Spelled in pieces, or this file would find itself.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b|NotImplemented" r"Error")
REGISTRY = re.compile(r"\b(py" r"pi\.org|pythonhosted\.org|registry\.npm" r"js|index\.crates|proxy\.golang)")
LOCKS = ("requirements",)
IN_LOCK = re.compile(r"://|--index-url|--extra-index-url|--find-links|\s@\s|^-e|^/", re.MULTILINE)


def binaries(paths: list[Path]) -> Iterator[str]:
    """Tracked binaries and left-overs of editors and builds."""
    for path in paths:
        if path.suffix in BACKUPS or path.name.endswith("~"):
            yield f"{path}: a build product or a back-up file"
        elif path.suffix not in BINARY_ALLOWED and tree.is_binary(path):
            yield f"{path}: a binary"


def schema_copies(paths: list[Path]) -> Iterator[str]:
    """A JSON Schema belongs in schemas/, once, exported from the types."""
    seen: dict[str, Path] = {}
    for path in paths:
        if path.suffix != ".json":
            continue
        value = json.loads(tree.text(path))
        if not isinstance(value, dict) or "$schema" not in value:
            continue
        if path.parts[0] != "schemas":
            yield f"{path}: a schema outside of schemas/"
        name = str(value.get("$id") or value.get("title") or path.stem)
        if name in seen:
            yield f"{path}: a second copy of {name}, which is {seen[name]}"
        seen[name] = path


def hosts(paths: list[Path]) -> Iterator[str]:
    """Registry host names anywhere, and any place at all in a lock file."""
    for path in paths:
        body = tree.text(path)
        for found in REGISTRY.finditer(body):
            yield f"{path}: names the registry host {found.group()!r}"
        if path.name.startswith(LOCKS) and path.suffix == ".txt" and (place := IN_LOCK.search(body)):
            yield f"{path}: a lock names no place, but has {place.group()!r}"


def unfinished(paths: list[Path]) -> Iterator[str]:
    """Marks of unfinished work in code."""
    for path in paths:
        if path.suffix in {".py", ".c", ".h", ".sh", ".sql"} or path.parts[0] == "script":
            for number, line in enumerate(tree.text(path).splitlines(), 1):
                if mark := UNFINISHED.search(line):
                    yield f"{path}:{number}: {mark.group()}"


def main() -> int:
    """Print what is found and return 1 then."""
    paths = tree.files()
    wrong = list(binaries(paths))
    wrong.extend(patterns.early_ends(paths))
    readable = [path for path in paths if not tree.is_binary(path)]
    for check in (schema_copies, hosts, unfinished):
        wrong.extend(check(readable))
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
