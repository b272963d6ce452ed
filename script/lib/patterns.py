r"""Patterns that end too early: in Python `$` also stands before a last line break, so that `web\n` passes.

A pattern of code ends by `\Z` or is read by `fullmatch`. One of a schema (`Meta`, `Parameter`), which msgspec
searches for, is written for readers of JSON Schema too, who do not know `\A` and `\Z`: `^...$(?!\n)`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import tree

READERS = {"compile", "match", "search", "fullmatch", "sub", "split", "findall", "finditer"}
SCHEMAS = {"Meta", "Parameter", "Body"}
END = r"$(?!\n)"
_DOLLAR = re.compile(r"(?<!\\)(?:\\\\)*(\$)")
_CLASS = re.compile(r"(?<!\\)\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def early_ends(paths: list[Path]) -> Iterator[str]:
    """Name each pattern in src whose end a line break can follow, or that a schema does not anchor at all."""
    for path in paths:
        if path.suffix == ".py" and path.parts[0] == "src":
            for line, words in of_source(tree.text(path)):
                yield f"{path}:{line}: {words}"


def of_source(source: str) -> Iterator[tuple[int, str]]:
    """The same for the text of one module: (line, what is wrong)."""
    module = ast.parse(source)
    known = {
        target.id: node.value
        for node in ast.walk(module)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            for written, of_schema in _patterns(node):
                text = _text(known.get(written.id, written) if isinstance(written, ast.Name) else written)
                if words := _wrong(text, of_schema):
                    yield node.lineno, words


def _patterns(call: ast.Call) -> Iterator[tuple[ast.expr, bool]]:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in SCHEMAS:
        yield from ((word.value, True) for word in call.keywords if word.arg == "pattern")
    elif (
        name in READERS
        and call.args
        and isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "re"
    ):
        yield call.args[0], False


def _text(written: ast.expr) -> str | None:
    if isinstance(written, ast.Constant):
        value = written.value
        return value.decode("latin-1") if isinstance(value, bytes) else str(value)
    if isinstance(written, ast.JoinedStr):
        return "".join(_text(part) or "x" for part in written.values)
    return None


def _wrong(text: str | None, of_schema: bool) -> str:
    if of_schema:
        if text is None:
            return "the pattern of a schema is written where it is used, or named in the same file"
        if not text.startswith("^") or not text.endswith(END):
            return f"the pattern of a schema is ^...{END}, not {text!r}"
        text = text.removesuffix(END)
    return "a pattern ends by \\Z, not by $, which a line break may follow" if _bare(text or "") else ""


def _bare(text: str) -> bool:
    return _DOLLAR.search(_CLASS.sub("x", text)) is not None
