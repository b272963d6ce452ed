"""The text of a policy: YAML with places for errors, written with its comments kept.

What is written goes through the same tree that was read, so that nothing of a person's file is lost: its
comments, its order and its quotes stay.
"""

import re
from io import StringIO
from typing import Any, Final

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from aegisflux.domain.errors import Invalid, OverLimit
from aegisflux.domain.policy import Policy, Rule, check
from aegisflux.domain.snapshot import explained

MAX_BYTES: Final = 8 << 20
MAX_VALUES: Final = 1_000_000  # aliases told out, which grow faster than the text
_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Located(Invalid):
    """An error of a policy file with its line, counted from 1."""

    def __init__(self, line: int, error: Invalid) -> None:
        super().__init__(error.path, error.expected, error.got)
        self.line = line
        self.args = (f"line {line}: {self.args[0]}",)


def read(text: str) -> Policy:
    """The policy of a text; raises Located or Invalid by path, or OverLimit."""
    tree = _tree(text)
    try:
        policy = msgspec.convert(_plain(tree), Policy)
        check(policy)
    except msgspec.ValidationError as error:
        raise _located(tree, explained(error, tree)) from None
    except Invalid as error:
        raise _located(tree, error) from None
    return policy


def line_of(text: str, path: str) -> int:
    """The line (from 1) of a path such as `rules[3].to`; of what holds it, when it is not there."""
    return _line(_tree(text), path)


def write(policy: Policy) -> str:
    """A new file of a policy, with what each rule rests on as a comment above it."""
    found = StringIO()
    tree = CommentedMap(msgspec.to_builtins(policy))
    tree["rules"] = _rules(policy.rules)
    _yaml().dump(tree, found)
    return found.getvalue()


def merged(text: str, policy: Policy) -> tuple[str, tuple[str, ...]]:
    """The text with those rules and groups of a policy that it does not name yet, and the names of the new
    rules. All else of the text stays as it is; raises as `read`."""
    read(text)
    tree = _tree(text)
    known = {rule.get("name") for rule in tree.get("rules") or ()}
    new = tuple(rule for rule in policy.rules if rule.name not in known)
    named = {end for rule in new for end in (rule.from_, rule.to)}
    for name, group in policy.groups.items():
        if name in named and name not in (tree.get("groups") or {}):
            _part(tree, "groups", CommentedMap())[name] = msgspec.to_builtins(group)
    rules = _part(tree, "rules", CommentedSeq())
    for rule in _rules(new):
        rules.append(rule)
    _comments(rules, [None] * len(known) + [rule.why for rule in new])
    found = StringIO()
    _yaml().dump(tree, found)
    return found.getvalue(), tuple(rule.name for rule in new)


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


def _comments(rules: CommentedSeq, words: list[str | None]) -> None:
    for n, why in enumerate(words[: len(rules)]):
        if why:
            rules.yaml_set_comment_before_after_key(n, before=why.replace("; ", "\n"), indent=2)


def _yaml() -> Any:
    yaml: Any = YAML()
    yaml.width, yaml.preserve_quotes = 110, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _tree(text: str) -> CommentedMap:
    if len(text) > MAX_BYTES:
        raise OverLimit("policy_bytes", MAX_BYTES, len(text), "a policy")
    try:
        tree = _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark is not None else 1
        raise Located(line, Invalid("", "YAML", error.problem or str(error))) from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise Invalid("", "YAML", str(error)) from None
    if not isinstance(tree, CommentedMap):
        raise Invalid("", "a mapping with policy, rules, ...", tree)
    return tree


def _plain(tree: CommentedMap) -> Any:
    """Without ruamel's own kinds of values, which msgspec does not know; raises OverLimit."""
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

    return plain(tree)


def _located(tree: CommentedMap, error: Invalid) -> Located:
    return Located(_line(tree, error.path), error)


def _line(tree: CommentedMap, path: str) -> int:
    value: Any = tree
    line: int = tree.lc.line
    for name, index in _STEP.findall(path):
        try:
            key = name or int(index)
            place = value.lc.data.get(key) if value.lc.data else None
            line = place[0] if place else line
            value = value[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line + 1
