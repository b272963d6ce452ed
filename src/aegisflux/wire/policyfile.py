"""The text of a policy: YAML, read with places for errors, and written with what its rules rest on.

Comments hold what hosts reported, such as paths of programs: nothing of it may end a comment. What is written
is read back, and has to mean what was to be written.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from aegisflux.domain.decoding import converted
from aegisflux.domain.errors import Invalid, OverLimit, Refused
from aegisflux.domain.policy import MAX_RULES, Group, Policy, Rule, check, rewritten
from aegisflux.domain.text import printable
from aegisflux.wire.yaml_text import Located, Node, parse

MAX_BYTES: Final = 1 << 20
MAX_MARKS: Final = 200_000  # what can begin a value: they bound the time that reading takes
_PATH: Final = re.compile(r'((?:rules|tests|groups|services)(?:\[\d+\]|\["(?:[^"\\]|\\.)*"\]|\.[\w-]+)*): ')
_MARKS: Final = (",", "\n", "- ", ": ", "? ", "[", "{")
_LISTS: Final = frozenset({"groups", "rules", "tests"})  # with nothing behind the colon: empty
_EMPTY: Final = {"an array": "[]", "an object": "{}"}
LEFT_OUT: Final = "# what rules rest on is left out: with it, this file would be too long to be read\n"
INDENT: Final = 2
WIDTH: Final = 110


def read(text: str) -> Policy:
    """Return the policy of a text; raises Located by path, or OverLimit."""
    return policy_of(root_of(text))


class Stored(NamedTuple):
    """A policy that was stored, and what of it is refused in a new one, in words."""

    policy: Policy
    odd: tuple[str, ...]


def read_stored(text: str) -> Stored:
    """Return the policy of a text that was taken once: what is refused in a new one since is said, and means
    what it did. Raises as `read` for a text that never was a policy."""
    node = root_of(text, strict=False)
    found: list[Invalid] = []
    policy = rewritten(_policy(node), found.append)
    check(policy, found.append)
    return Stored(policy, tuple(str(node.located(error)) for error in found))


def policy_of(node: Node) -> Policy:
    """Return the policy of the root of a text; raises as `read`."""
    policy = _policy(node)
    try:
        check(policy)
    except Invalid as error:
        raise node.located(error) from None
    return policy


def _policy(node: Node) -> Policy:
    """The policy of the root of a text by its schema alone."""
    try:
        _bounded(node.value.get("rules"))
        said = {k: v for k, v in node.value.items() if v is not None or k not in _LISTS}
        policy: Policy = converted(said, Policy)
    except Invalid as error:
        if error.got is None and (brackets := _EMPTY.get(error.expected)):
            words = f"{error.expected} ({brackets} is an empty one; or take the line out)"
            error = Invalid(error.path, words, None)
        raise node.located(error) from None
    return policy


def root_of(text: str, strict: bool = True) -> Node:
    """Return the root of a text, which is a mapping; raises Located or OverLimit. `strict` as in `parse`."""
    _limited(text)
    node = parse(text, strict)
    if node.kind != "map":
        raise Located(node.line, Invalid("", "a mapping with policy, rules, ...", node.value))
    return node


def line_of(text: str, path: str) -> int:
    """Return the line (from 1) of a path such as `rules[3].to`; of what holds it, when it is not there."""
    return root_of(text).line_of(path)


@contextmanager
def lines_of(text: str | None) -> Iterator[None]:
    """What is refused by a path while a policy is looked up and compiled is refused with the line of its
    text, where there is one."""
    try:
        yield
    except Refused as error:
        found = _PATH.match(str(error))  # a job tells of what it refused in words alone
        if text is not None and found:
            error.args = (f"line {line_of(text, found[1])}: {error}",)
        raise


def write(policy: Policy) -> str:
    """Return a new file of a policy, with what each rule rests on as a comment above it; without comments
    where it would be too long with them. Raises as `read` for a policy that no file can say."""
    _bounded(policy.rules)
    text = _written(policy, policy.rules)
    try:
        _limited(text)
    except OverLimit:
        text = LEFT_OUT + _written(policy, _bare(policy.rules))
    check_same(text, policy)
    return text


def check_same(text: str, policy: Policy) -> None:
    """Raise Refused where a text does not read as this policy (what rules rest on is a comment, or not)."""
    found = read(text)
    if replace(found, rules=_bare(found.rules)) != replace(policy, rules=_bare(policy.rules)):
        raise Refused(
            f"policy {policy.name!r}: expected a text of its {len(policy.rules)} rules, got one of "
            f"{len(found.rules)} rules, or of others; nothing was written: look at its names and labels"
        )


def dumped_rules(rules: Sequence[Rule]) -> str:
    """Return rules as lines of a list without indentation, with what each rests on as comments above it."""
    return _dumped(_rules(rules, 0), 0)


def dumped_groups(groups: Mapping[str, Group]) -> str:
    """Return groups as lines of a mapping without indentation."""
    return _dumped(CommentedMap(msgspec.to_builtins(groups)), INDENT)


def _written(policy: Policy, rules: tuple[Rule, ...]) -> str:
    tree = CommentedMap(msgspec.to_builtins(policy))
    tree["rules"] = _rules(rules, INDENT)
    return _dumped(tree, INDENT)


def _dumped(tree: CommentedMap | CommentedSeq, indent: int) -> str:
    yaml: Any = YAML()
    yaml.width = WIDTH
    yaml.indent(mapping=2, sequence=indent + 2, offset=indent)
    found = StringIO()
    yaml.dump(tree, found)
    return found.getvalue()


def _bare(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(replace(rule, why="") for rule in rules)


def _rules(rules: Sequence[Rule], indent: int) -> CommentedSeq:
    found = CommentedSeq()
    for rule in rules:
        given = msgspec.to_builtins(rule)
        given.pop("why", None)
        one = CommentedMap({"name": given.pop("name", "")} | given if rule.name else given)
        ports = CommentedSeq(given["ports"])
        ports.fa.set_flow_style()
        one["ports"] = ports
        found.append(one)
    for n, rule in enumerate(rules):
        if rule.why:
            # On one line each, whatever a host said: YAML ends a comment at more than line feeds.
            lines = "\n".join(map(printable, rule.why.split("; ")))
            found.yaml_set_comment_before_after_key(n, before=lines, indent=indent)
    return found


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
