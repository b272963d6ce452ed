"""Code that nothing calls: names of modules, methods, queries by name, names of the BPF programs.

Used is what stands anywhere else in src/, bench/, script/, demo/ or deploy/, docstrings and comments aside:
tests alone keep nothing alive. Decorated functions are called by others. Prints what it finds; the exit
status is 1 then.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tree

ROOTS = ("src", "bench", "script", "demo", "deploy")
WORD = re.compile(r"[A-Za-z_]\w*")
QUERY = re.compile(r"^-- name: (\w+)", re.MULTILINE)
IN_C = re.compile(
    r"^#define (\w+)|^struct (\w+) \{|^(?:static |__noinline )[^;=]*?\b(\w+)\(|\} (\w+) SEC\(", re.MULTILINE
)
C_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
Place = tuple[str, Path, int]

# Tables that mirror something else word for word.
WHOLE = {"src/aegisflux/wire/layout.py", "src/aegisflux/wire/subjects.py"}
KEPT = {
    "vulnerabilities_of": "waits for a source of vulnerabilities",
    "tamper": "how tests of drift change what the simulated kernel holds",
    "MODE_OBSERVE": "the other value of MODE_ENFORCE",
    "hyper_flows": "asked for by the name of its table",
    "hyper_events": "asked for by the name of its table",
    "AEGIS_LAYOUT": "what wire.layout.LAYOUT is compared with",
    "HOOK_SKB": "the value of a hook that nobody sets",
}


def dead(paths: list[Path]) -> list[Place]:
    """What these files define and none of them uses."""
    uses, places = Counter[str](), list[Place]()
    for path in paths:
        if path.suffix == ".py" and path.parts[0] in ROOTS:
            module = ast.parse(tree.text(path))
            uses.update(used(module))
            if path.parts[0] in ("src", "bench") and str(path) not in WHOLE:
                places += [(name, path, line) for name, line in named(module)]
        elif path.suffix == ".sql":
            places += [(name, path, 0) for name in QUERY.findall(tree.text(path))]
    found = [place for place in places if not uses[place[0]]]
    return [place for place in (*found, *dead_in_c(paths)) if place[0] not in KEPT]


def main() -> int:
    """Print what is dead."""
    found = dead(tree.files(".py", ".sql", ".h", ".c"))
    for name, path, line in found:
        print(f"{path}{f':{line}' if line else ''}: nothing uses {name}")
    return 1 if found else 0


def named(module: ast.Module) -> Iterator[tuple[str, int]]:
    """Functions, classes, constants and methods."""
    for node in module.body:
        yield from names(node)
        if isinstance(node, ast.ClassDef) and not node.bases:
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from names(inner)


def names(node: ast.stmt) -> Iterator[tuple[str, int]]:
    """The names that a statement defines and that others ought to use."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        properties = [d for d in node.decorator_list if isinstance(d, ast.Name) and d.id == "property"]
        if len(properties) == len(node.decorator_list) and not node.name.startswith("__"):
            yield node.name, node.lineno
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in (name for target in targets for name in ast.walk(target)):
            if isinstance(name, ast.Name) and not name.id.startswith("__"):
                yield name.id, node.lineno


def used(module: ast.Module) -> Iterator[str]:
    """Every name that a module reads, and the words of its texts (queries are asked for by name)."""
    docs = {
        id(node.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield from WORD.findall(node.value)


def dead_in_c(paths: list[Path]) -> Iterator[Place]:
    """Names of headers and programs that stand nowhere else in them, nor in src/."""
    texts = {path: C_COMMENT.sub("", tree.text(path)) for path in paths if path.suffix in (".h", ".c")}
    uses = Counter(word for text in texts.values() for word in WORD.findall(text))
    python = [path for path in paths if path.suffix == ".py" and path.parts[0] == "src"]
    asked = {word for path in python for word in WORD.findall(tree.text(path))}
    for path, text in texts.items():
        for match in IN_C.finditer(text):
            name = match[match.lastindex or 0]
            if uses[name] == 1 and name not in asked:
                yield name, path, 0


if __name__ == "__main__":
    sys.exit(main())
