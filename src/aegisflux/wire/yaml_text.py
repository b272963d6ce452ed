"""YAML that means one thing: a text becomes nodes that know their place, or is refused with its line.

A plain scalar is null, true, false or a decimal integer in its usual spelling, and else the text that is
written: nothing is turned into a date, a float or an octal number. What readers of YAML understand
differently has no meaning here: directives, tags, merge keys, keys that come twice or are no text, line
breaks of YAML 1.1 alone, characters that turn the direction of what is displayed, or that no one sees.
Whatever the library raises is a refusal.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from aegisflux.domain.digits import integer
from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.paths import step, steps

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 1_000_000  # with aliases written out, which grow faster than the text
_CONSTANTS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_DIRECTIVE: Final = re.compile(r"\ufeff?(?:[ \t]*(?:#[^\r\n]*)?\r?\n)*%")
_COLON: Final = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\r?\n)*[ \t]*:")
# Line breaks of YAML 1.1 alone, a carriage return alone, a byte order mark inside, marks of direction
# (https://trojansource.codes), characters that no one sees, and what YAML itself does not allow.
REFUSED: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u2800\u3164\ud800-\uf8ff\ufe00-\ufe0f\uffa0\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e0fff]"
    "|\r(?!\n)|(?<!^)\ufeff"
)
_LIBRARY: Final = (
    YAMLError, RecursionError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError,
    AssertionError,
)  # fmt: skip


class Located(Invalid):
    """An error of a text with its line, counted from 1."""

    def __init__(self, line: int, error: Invalid) -> None:
        super().__init__(error.path, error.expected, error.got)
        self.line = line
        self.args = (f"line {line}: {self.args[0]}",)


@dataclass(slots=True)
class Node:
    """A value and where it is written: its line from 1, and its first and last character (`end` is behind
    it).

    keys, items: the nodes of what a mapping or a list holds; flow: it is written in brackets
    size: how many values it is, with aliases written out
    """

    kind: Literal["scalar", "map", "list"]
    value: Any
    line: int
    column: int
    start: int
    end: int
    flow: bool = False
    size: int = 1
    keys: dict[str, tuple["Node", "Node"]] = field(default_factory=dict)
    items: list["Node"] = field(default_factory=list)
    anchored: bool = False
    alias: bool = False

    def line_of(self, path: str) -> int:
        """Return the line of what lies at a path; of what holds it, when it is not there."""
        node, line = self, self.line
        for part in steps(path):
            if isinstance(part, str) and part in node.keys:
                key, node = node.keys[part]
                line = key.line
            elif isinstance(part, int) and part < len(node.items):
                node = node.items[part]
                line = node.line
            else:
                break
        return line

    def located(self, error: Invalid) -> Located:
        """Return an error by path with its line."""
        return error if isinstance(error, Located) else Located(self.line_of(error.path), error)


def parse(text: str, strict: bool = True) -> Node:
    """Return the root of the one document of a text; raises Located or OverLimit. Without `strict` characters
    that do not read as they look are taken, as they were once."""
    if strict:
        _check_text(text)
    return _Builder(text).root()


def _check_text(text: str) -> None:
    if (found := _DIRECTIVE.match(text)) is not None:
        raise _at(text, found.end(), Invalid("", "no directive of YAML: take this line out", "%"))
    if (found := REFUSED.search(text)) is not None:
        expected = (
            "characters that YAML allows and that read as they look; write \\u escapes in double quotes"
        )
        raise _at(text, found.start(), Invalid("", expected, f"U+{ord(found[0]):04X}"))


def _at(text: str, index: int, error: Invalid) -> Located:
    return Located(text.count("\n", 0, index) + 1, error)


class _Builder:
    """One text, event by event. There is no recursion, and each alias counts what it stands for."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._events = YAML(typ="safe", pure=True).parse(text)
        self._anchors: dict[str, Node | None] = {}
        self._open: list[tuple[Node, str, str | None]] = []  # a collection, its path, its anchor
        self._key: list[Node | None] = []  # of each open collection the key that waits for its value
        self._root: Node | None = None
        self._line = 1

    def root(self) -> Node:
        documents = 0
        while True:
            event = self._next()
            if event is None or isinstance(event, StreamEndEvent):
                break
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refusal("", "one YAML document", "another one")
            elif isinstance(event, NodeEvent):
                self._node(event)
            elif isinstance(event, CollectionEndEvent):
                self._close(event)
        if self._root is None:
            raise Located(1, Invalid("", "a YAML document", "nothing"))
        return self._root

    def _next(self) -> Any:
        try:
            event = next(self._events, None)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else self._line
            got = error.problem or error.context or "something else"
            if "'\\t'" in got:
                words = "spaces, for YAML takes no tab here, nor before a comment or alone in a line"
                raise Located(line, Invalid("", f"{words}: write spaces, or take it out", "a tab")) from None
            raise Located(line, Invalid("", "YAML", got)) from None
        except _LIBRARY as error:
            raise Located(self._line, Invalid("", "YAML", f"{type(error).__name__}: {error}")) from None
        if event is not None and not isinstance(event, StreamStartEvent):
            self._line = event.start_mark.line + 1
        return event

    def _refusal(self, path: str, expected: str, got: object) -> Located:
        return Located(self._line, Invalid(path, expected, got))

    def _path(self) -> str:
        """Of what comes next."""
        if not self._open:
            return ""
        (parent, path, _), key = self._open[-1], self._key[-1]
        if parent.kind == "list":
            return step(path, len(parent.items))
        return step(path, key.value) if key is not None else path

    def _node(self, event: Any) -> None:
        path = self._path()
        tag = None if isinstance(event, AliasEvent) else event.tag
        if tag is not None:
            raise self._refusal(path, "no tag of YAML: what is written says of what kind it is", tag)
        if isinstance(event, AliasEvent):
            self._put(self._aliased(event, path), path)
            return
        mark, end = event.start_mark, event.end_mark
        node = Node("scalar", None, mark.line + 1, mark.column, mark.index, end.index)
        node.anchored = event.anchor is not None
        if isinstance(event, ScalarEvent):
            node.value = _value(event)
            self._put(node, path)
            if event.anchor is not None:
                self._anchors[event.anchor] = node
            return
        node.kind = "map" if isinstance(event, MappingStartEvent) else "list"
        assert isinstance(event, MappingStartEvent | SequenceStartEvent)
        node.value, node.flow = ({} if node.kind == "map" else []), bool(event.flow_style)
        if self._open and self._open[-1][0].kind == "map" and self._key[-1] is None:
            raise self._refusal(path, "a key that is text", node.value)
        if len(self._open) >= MAX_DEPTH:
            raise self._refusal("", f"at most {MAX_DEPTH} levels", "deeper")
        if event.anchor is not None:
            self._anchors[event.anchor] = None  # until it is whole: it cannot hold itself
        self._open.append((node, path, event.anchor))
        self._key.append(None)

    def _aliased(self, event: Any, path: str) -> Node:
        if event.anchor not in self._anchors:
            raise self._refusal(path, "an alias of an anchor above it", f"*{event.anchor}")
        found = self._anchors[event.anchor]
        if found is None:
            raise self._refusal(path, "a value that does not hold itself", f"*{event.anchor}")
        return Node(
            found.kind, found.value, self._line, event.start_mark.column, event.start_mark.index,
            event.end_mark.index, found.flow, found.size, found.keys, found.items, alias=True,
        )  # fmt: skip

    def _close(self, event: Any) -> None:
        node, path, anchor = self._open.pop()
        self._key.pop()
        if node.flow:
            node.end = event.end_mark.index
        if anchor is not None:
            self._anchors[anchor] = node
        self._put(node, path)

    def _put(self, node: Node, path: str) -> None:
        if not self._open:
            self._root = node
            return
        parent = self._open[-1][0]
        parent.size += node.size
        if parent.size > MAX_VALUES:
            raise OverLimit("policy_values", MAX_VALUES, parent.size, "a policy with its aliases written out")
        if parent.kind == "list":
            parent.items.append(node)
            parent.value.append(node.value)
        elif self._key[-1] is None:
            self._check_key(parent, node, path)
            self._key[-1] = node
            return
        else:
            key, self._key[-1] = self._key[-1], None
            if node.start == node.end and not parent.flow:
                node.line, node.start = key.line, _behind_colon(self._text, key.end, node.start)
                node.end = node.start
            parent.keys[key.value] = key, node
            parent.value[key.value] = node.value
        if not parent.flow:
            parent.end = max(parent.end, node.end)

    def _check_key(self, parent: Node, key: Node, path: str) -> None:
        if key.alias or key.kind != "scalar" or not isinstance(key.value, str):
            raise self._refusal(path, "a key that is text: put it in quotes", key.value)
        if key.value == "<<":
            raise self._refusal(path, "no merge keys: write out what they stand for", "<<")
        if key.value in parent.keys:
            at, first = step(path, key.value), parent.keys[key.value][0].line
            raise self._refusal(
                "", f"YAML in which each key comes once ({at} is in line {first} too)", key.value
            )


def _behind_colon(text: str, start: int, end: int) -> int:
    """Where the value of a key is that has nothing behind its colon: the library has it at what comes next.
    A key without a colon ends there itself."""
    found = _COLON.match(text, start, end)
    return found.end() if found else start


def _value(event: Any) -> Any:
    if not event.implicit[0]:  # quoted, or a block
        return event.value
    if event.value in _CONSTANTS:
        return _CONSTANTS[event.value]
    number = integer(event.value)
    return event.value if number is None else number
