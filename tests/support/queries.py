"""Which named queries the code of each service runs, as its sources say."""

import ast
from functools import cache
from pathlib import Path

from aegisflux.adapters.store.postgres import named_queries

SOURCES = Path(__file__).parents[2] / "src" / "aegisflux"
SHARED = {  # modules outside of services that run queries for them
    "runtime/access.py": ("orchestrator", "ingest", "enrich", "segmenter"),
    "runtime/uses.py": ("orchestrator", "ingest", "enrich", "segmenter"),
    "runtime/register.py": ("orchestrator", "ingest", "enrich", "segmenter"),
    "runtime/places.py": ("orchestrator", "segmenter"),
    "adapters/store/facts.py": ("enrich", "segmenter"),
}
CALLS = ("row", "rows", "run", "execute", "fetch", "fetchrow", "fetchval")
CHANGE = ("lock_head", "move_head", "add_audit")
"""What each change runs by itself."""
WRITER = (
    "_commit", "_source", "_write", "_write_listeners", "own", "keep_inventory", "_keep", "upkeep", "known",
    "shape",
)  # fmt: skip
"""Methods of the store of facts that only its writer calls."""


def named(tree: ast.AST, queries: set[str]) -> set[str]:
    """The names of queries that stand in calls that run one."""
    found = set()
    for node in ast.walk(tree):
        texts = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            texts = [part for given in node.args for part in ast.walk(given)]
        elif isinstance(node, ast.Call) and any(isinstance(one, ast.Constant) for one in node.args):
            texts = list(node.args)  # a helper that is given the name
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("queries"):
            texts = list(ast.walk(node.slice))
        elif isinstance(node, ast.For):
            texts = list(ast.walk(node.iter))
        elif isinstance(node, ast.IfExp):
            texts = [node.body, node.orelse]
        found |= {one.value for one in texts if isinstance(one, ast.Constant) and one.value in queries}
    return found


def _without(tree: ast.Module, names: tuple[str, ...]) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [one for one in node.body if getattr(one, "name", "") not in names]
    return tree


@cache
def queries_of(service: str) -> dict[str, str]:
    """Each query that a service runs, by its file and name."""
    found = {}
    for file in ("queries.sql", "facts.sql"):
        texts = named_queries(file)
        used = set()
        paths = [*(SOURCES / "services" / service).glob("*.py")]
        paths += [SOURCES / path for path, services in SHARED.items() if service in services]
        if service == "enrich":
            paths.append(SOURCES / "adapters/store/partitions.py")
        for path in paths:
            tree = ast.parse(path.read_text())
            if path.name == "facts.py" and path.parent.name == "store":
                if file != "facts.sql":
                    continue
                tree = tree if service == "enrich" else _without(tree, WRITER)
            if path.parent.name == service and file == "facts.sql" and service not in ("enrich", "segmenter"):
                continue
            used |= named(tree, set(texts))
        if file == "queries.sql":
            bodies = [path.read_text() for path in (SOURCES / "services" / service).glob("*.py")]
            if any(".change()" in body for body in bodies):
                used |= set(CHANGE)
            if any(".bump(" in body for body in bodies):
                used |= {"bump", "bump_all"}
        found |= {f"{file}: {name}": texts[name] for name in sorted(used)}
    return found
