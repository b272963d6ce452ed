"""The text of a policy: YAML with places for errors, written with its comments kept.

What is written goes through the same tree that was read, so that nothing of a person's file is lost: its
comments, its order and its quotes stay. Only what merges needs that tree; reading does without it, and finds
lines in the nodes that the text was parsed into.

Comments hold what hosts reported, such as paths of programs: nothing of it may end a comment. What is written
is read back, and has to mean what was to be written.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from aegisflux.domain.decoding import converted
from aegisflux.domain.errors import Invalid, OverLimit, Refused
from aegisflux.domain.policy import MAX_RULES, Policy, Rule, check, ends_of

MAX_BYTES: Final = 1 << 20
MAX_MARKS: Final = 200_000  # what can begin a value: they bound the time that reading takes
_MARKS: Final = (",", "\n", "- ", ": ", "? ", "[", "{")
MAX_VALUES: Final = 1_000_000  # aliases told out, which grow faster than the text
LEFT_OUT: Final = "# what rules rest on is left out: with it, this file would be too long to be read\n"
_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Located(Invalid):
    """An error of a policy file with its line, counted from 1."""

    def __init__(self, line: int, error: Invalid) -> None:
        super().__init__(error.path, error.expected, error.got)
        self.line = line
        self.args = (f"line {line}: {self.args[0]}",)


def read(text: str) -> Policy:
    """The policy of a text; raises Located or Invalid by path, or OverLimit."""
    node, tree = _read(text)
    try:
        plain = _plain(tree)
        _bounded(plain.get("rules"))
        policy: Policy = converted(plain, Policy)
        check(policy)
    except Invalid as error:
        raise _located(node, error) from None
    return policy


def line_of(text: str, path: str) -> int:
    """The line (from 1) of a path such as `rules[3].to`; of what holds it, when it is not there."""
    return _line(_read(text)[0], path)


def write(policy: Policy) -> str:
    """A new file of a policy, with what each rule rests on as a comment above it; without comments where it
    would be too long with them. Raises as `read` for a policy that no file can say."""
    _bounded(policy.rules)
    text = _written(policy, policy.rules)
    try:
        _limited(text)
    except OverLimit:
        text = LEFT_OUT + _written(policy, _bare(policy.rules))
    _same(text, policy)
    return text


def merged(text: str, policy: Policy) -> tuple[str, tuple[str, ...]]:
    """The text with those rules and groups of a policy that it does not name yet, and the names of the new
    rules. All else of the text stays as it is; raises as `read`."""
    old, tree = read(text), _tree(text)
    known = {rule.name for rule in old.rules if rule.name}
    new = tuple(rule for rule in policy.rules if rule.name not in known)
    named = {end for rule in new for ends in (rule.from_, rule.to) for end in ends_of(ends)}
    groups = {n: g for n, g in policy.groups.items() if n in named and n not in old.groups}
    for name, group in groups.items():
        _part(tree, "groups", CommentedMap())[name] = msgspec.to_builtins(group)
    rules = _part(tree, "rules", CommentedSeq())
    for rule in _rules(new):
        rules.append(rule)
    _comments(rules, [""] * len(old.rules) + [rule.why for rule in new])
    found = _dumped(tree)
    _same(found, replace(old, groups=old.groups | groups, rules=old.rules + new))
    return found, tuple(rule.name for rule in new)


def _written(policy: Policy, rules: tuple[Rule, ...]) -> str:
    tree = CommentedMap(msgspec.to_builtins(policy))
    tree["rules"] = _rules(rules)
    return _dumped(tree)


def _dumped(tree: CommentedMap) -> str:
    found = StringIO()
    _yaml().dump(tree, found)
    return found.getvalue()


def _same(text: str, policy: Policy) -> None:
    """Raises Refused where a text does not read as this policy (what rules rest on is a comment, or not)."""
    found = read(text)
    if replace(found, rules=_bare(found.rules)) != replace(policy, rules=_bare(policy.rules)):
        raise Refused(
            f"policy {policy.name!r}: expected a text of its {len(policy.rules)} rules, got one of "
            f"{len(found.rules)} rules, or of others; nothing was written: look at its names and labels"
        )


def _bare(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(replace(rule, why="") for rule in rules)


def _part(tree: CommentedMap, name: str, empty: Any) -> Any:
    if not tree.get(name):
        tree[name] = empty
    return tree[name]


def _rules(rules: tuple[Rule, ...]) -> CommentedSeq:
    found = CommentedSeq()
    for rule in rules:
        given = msgspec.to_builtins(rule)
        given.pop("why", None)
        one = CommentedMap({"name": given.pop("name", "")} | given if rule.name else given)
        ports = CommentedSeq(given["ports"])
        ports.fa.set_flow_style()
        one["ports"] = ports
        found.append(one)
    _comments(found, [rule.why for rule in rules])
    return found


def _comments(rules: CommentedSeq, words: list[str]) -> None:
    """Above the rule at each place, the words for it: one line for each part."""
    for n, why in enumerate(words):
        if why:
            lines = "\n".join(map(_printable, why.split("; ")))
            rules.yaml_set_comment_before_after_key(n, before=lines, indent=2)


def _printable(text: str) -> str:
    """On one line, whatever a host said: YAML ends a comment at more than line feeds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _yaml() -> Any:
    yaml: Any = YAML()
    yaml.width, yaml.preserve_quotes = 110, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _read(text: str) -> tuple[MappingNode, dict[Any, Any]]:
    """The nodes of a text, and what they say; raises Located, Invalid or OverLimit."""
    _limited(text)
    with _as_refusals():
        reader, _ = YAML(typ="safe", pure=True).get_constructor_parser(text)
        node = reader.composer.get_single_node()
        tree = None if node is None else reader.construct_document(node)
    if not isinstance(node, MappingNode) or not isinstance(tree, dict):
        raise Invalid("", "a mapping with policy, rules, ...", tree)
    return node, tree


def _tree(text: str) -> CommentedMap:
    """With comments, order and quotes, of a text that was read."""
    with _as_refusals():
        tree: CommentedMap = _yaml().load(text)
    return tree


@contextmanager
def _as_refusals() -> Iterator[None]:
    try:
        yield
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark is not None else 1
        raise Located(line, Invalid("", "YAML", error.problem or str(error))) from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise Invalid("", "YAML", str(error)) from None


def _limited(text: str) -> None:
    if (size := _size(text)) > MAX_BYTES:
        raise OverLimit("policy_bytes", MAX_BYTES, size, "a policy: name groups, or split it")
    if (marks := sum(map(text.count, _MARKS))) > MAX_MARKS:
        raise OverLimit("policy_marks", MAX_MARKS, marks, "values of a policy: name groups, or split it")


def _size(text: str) -> int:
    return len(text) if len(text) > MAX_BYTES else len(text.encode(errors="surrogatepass"))


def _bounded(rules: Any) -> None:
    if isinstance(rules, list | tuple) and len(rules) > MAX_RULES:
        raise OverLimit("policy_rules", MAX_RULES, len(rules), "a policy: name groups, or split it")


def _plain(tree: dict[Any, Any]) -> Any:
    """Of JSON's kinds of values only, so that a date is its text; raises OverLimit, or Invalid for what holds
    itself."""
    left = MAX_VALUES

    def plain(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise OverLimit("policy_values", MAX_VALUES, MAX_VALUES + 1, "a policy, its aliases told out")
        if isinstance(value, dict):
            return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, bool) or value is None:
            return value
        kind = next((kind for kind in (str, int, float) if isinstance(value, kind)), str)
        return kind(value)

    try:
        return plain(tree)
    except RecursionError:
        raise Invalid("", "a mapping that does not hold itself", tree) from None


def _located(node: MappingNode, error: Invalid) -> Located:
    return Located(_line(node, error.path), error)


def _line(node: Any, path: str) -> int:
    line: int = node.start_mark.line
    for name, index in _STEP.findall(path):
        if isinstance(node, MappingNode) and name:
            key, node = next((pair for pair in node.value if pair[0].value == name), (None, None))
            line = key.start_mark.line if key is not None else line
        elif isinstance(node, SequenceNode) and index and int(index) < len(node.value):
            node = node.value[int(index)]
            line = node.start_mark.line
        else:
            break
    return line + 1
