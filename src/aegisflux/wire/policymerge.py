"""New rules and groups in a policy file that somebody else wrote: every other line stays, byte for byte.

Nothing of the file is written again. What is new is put at the places that the nodes of its text name, with
the indentation and the line ends of what stands there, as blocks into blocks and in brackets into brackets.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from aegisflux.domain.errors import Refused
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.policy_merge import additions
from aegisflux.wire.policyfile import check_same, dumped_groups, dumped_rules, policy_of, root_of
from aegisflux.wire.yaml_text import REFUSED, Located, Node

_EXPLICIT: Final = re.compile(r"\ufeff?( *)\?[ \t]+")
_COMMENT: Final = re.compile(r"( *)(#[^\n]*)?(?:\n|\r\n|(?<=[^\n])\Z)")
_DASH: Final = re.compile(r"^( *)-(?=[ \t\r\n])", re.MULTILINE)


class _Edit(NamedTuple):
    """Characters from `start` to `end` of the text become others."""

    start: int
    end: int
    text: str


class _New(NamedTuple):
    """What is put into one field of the policy: as a block without indentation, and in brackets, one by
    one."""

    field: str
    block: str
    flow: tuple[str, ...]


def merged(
    text: str, policy: Policy, differs: Callable[[str], None] = lambda _words: None
) -> tuple[str, tuple[str, ...]]:
    """Return the text with what a policy adds to it (see `additions`), and the names of the new rules; raises
    as `policyfile.read`, or Refused where nothing can be added.

    `differs` is called with the words of each thing that the policy says in another way.
    """
    root = root_of(text)
    old = policy_of(root)
    groups, new, words = additions(old, policy)
    for one in words:
        differs(one)
    parts = [part for part in (_of_groups(groups), _of_rules(new)) if part.flow]
    # What joins a field that is there ends before a new field begins, also where both are put at one place.
    parts.sort(key=lambda part: part.field not in root.keys)
    found = _applied(text, [edit for part in parts for edit in _edits(text, root, part)])
    try:
        check_same(found, replace(old, groups=old.groups | groups, rules=old.rules + new))
    except Located:  # its line would be one of the text that is not written
        line = root.line_of(parts[0].field)
        raise Refused(
            f"line {line}: expected `groups:` and `rules:` as plain blocks, to which something can be "
            "added, got another form of YAML; nothing was written: write them as blocks"
        ) from None
    return found, tuple(rule.name for rule in new)


def _of_groups(groups: Mapping[str, Group]) -> _New:
    flow = tuple(f"{_json(name)}: {_json(msgspec.to_builtins(group))}" for name, group in groups.items())
    return _New("groups", dumped_groups(groups) if groups else "", flow)


def _of_rules(rules: Sequence[Rule]) -> _New:
    flow = tuple(
        _json(({"name": rule.name} if rule.name else {}) | msgspec.to_builtins(rule)) for rule in rules
    )
    return _New("rules", dumped_rules(rules) if rules else "", flow)


def _json(value: Any) -> str:
    plain = json.dumps(value, ensure_ascii=False)
    return REFUSED.sub(lambda found: f"\\u{ord(found[0]):04x}", plain)


def _applied(text: str, edits: Sequence[_Edit]) -> str:
    found, at = [], 0
    for edit in sorted(edits, key=lambda edit: edit.start):  # stable: of one place the first comes first
        found += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join(found) + text[at:]


def _edits(text: str, root: Node, new: _New) -> list[_Edit]:
    pair = root.keys.get(new.field)
    if pair is None:
        return _field(text, root, new)
    key, value = pair
    if value.alias:
        raise Refused(
            f"line {value.line}: {new.field}: expected a list of its own, got an alias; write it out"
        )
    least = len(_indent(text, root)) + 1
    empty = value.value is None
    if empty and root.flow:
        return [_Edit(value.start, value.end, f" {_brackets(new)}")]
    if not value.flow and not empty:
        return [_block(text, value.end, _indent(text, value), new.block, least)]
    if root.flow or value.items or value.keys or "#" in text[value.start : value.end]:
        return _flow(text, value, new.flow)
    # Empty brackets make room for a block: what else stands in their line stays. Nothing makes no room.
    written = value.end > value.start
    gap = len(text[: value.start]) - len(text[: value.start].rstrip(" ")) if written else 0
    return [
        _Edit(value.start - gap, value.end, ""),
        _block(text, value.end, " " * (key.column + 2), new.block, least),
    ]


def _field(text: str, root: Node, new: _New) -> list[_Edit]:
    """A field that the file does not have yet, behind all others."""
    if root.flow:
        return _flow(text, root, (f"{_json(new.field)}: {_brackets(new)}",))
    indent = _indent(text, root)
    inner = "".join(f"  {line}\n" for line in new.block.splitlines())
    return [_block(text, root.end, indent, f"{new.field}:\n{inner}", len(indent) + 1)]


def _brackets(new: _New) -> str:
    one = ", ".join(new.flow)
    return f"{{{one}}}" if new.field == "groups" else f"[{one}]"


def _indent(text: str, node: Node) -> str:
    """Of the items of a block."""
    if node.kind == "map":
        key = next(iter(node.keys.values()))[0]
        explicit = _EXPLICIT.fullmatch(text[: key.start].rpartition("\n")[2])
        return explicit[1] if explicit else " " * key.column
    if not node.anchored:
        return " " * node.column
    dash = _DASH.search(text, node.start, node.items[0].start + 1)
    return dash[1] if dash else " " * node.column


def _block(text: str, end: int, indent: str, block: str, least: int) -> _Edit:
    """Lines behind the line in which a value ends, and behind the comments of it: those that are indented by
    `least` and as far as what is added. A file without a last line end stays one."""
    at, mark = _line_end(text, end), _mark(text, end)
    at = _behind_comments(text, at, max(least, len(indent)))
    lines = [(indent + line).rstrip(" ") if not line else indent + line for line in block.splitlines()]
    body = mark.join(lines)
    if at > 0 and text[at - 1] == "\n":
        return _Edit(at, at, body + mark)
    return _Edit(at, at, mark + body)


def _behind_comments(text: str, at: int, least: int) -> int:
    here = at
    while here < len(text) and (found := _COMMENT.match(text, here)):
        here = found.end()
        if found[2] and len(found[1]) >= least:
            at = here
    return at


def _line_end(text: str, end: int) -> int:
    """Behind the line end of the line in which a value ends; a block of text ends behind its own."""
    if end > 0 and text[end - 1] == "\n":
        return end
    at = text.find("\n", end)
    return len(text) if at < 0 else at + 1


def _mark(text: str, end: int) -> str:
    """How the lines around a place end."""
    at = text.find("\n", max(0, end - 1))
    if at < 0:
        at = text.rfind("\n")
    return "\r\n" if at > 0 and text[at - 1] == "\r" else "\n"


def _flow(text: str, node: Node, new: Sequence[str]) -> list[_Edit]:
    """Items into brackets: in lines of their own where the last one is in one."""
    firsts = [key for key, _ in node.keys.values()] or node.items
    lasts = [value for _, value in node.keys.values()] or node.items
    close = node.end - 1
    if not lasts:
        return [_Edit(close, close, ", ".join(new))]
    start, end = firsts[-1].start, lasts[-1].end
    begin = text.rfind("\n", 0, start) + 1
    lead = text[begin:start]
    newline = text.find("\n", end, close)
    comma = "," in re.sub(r"#[^\n]*", "", text[end:close])
    if lead.strip(" \t") or newline < 0:
        return [_Edit(end, end, "".join(f", {one}" for one in new))]
    at = newline - 1 if text[newline - 1] == "\r" else newline
    mark = _mark(text, end)
    body = f",{mark}{lead}".join(new)
    edits = [] if comma else [_Edit(end, end, ",")]
    return [*edits, _Edit(at, at, f"{mark}{lead}{body}" + ("," if comma else ""))]
