"""What a proposal adds to a policy that somebody else wrote (see `segment export --into`).

Nothing that the file says changes its meaning. A group of the proposal that the file defines in another way
comes under a new name, and its rules with it; a rule that the file words in another way is named, for the
file's owner decided on it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from aegisflux.domain.policy import RESERVED, Ends, Group, Policy, Rule, ends_named, ends_of
from aegisflux.domain.segment.export import rule_name
from aegisflux.domain.text import first_of

MOST: Final = 63  # characters of a name
SHOWN: Final = 10  # names in one message


class Additions(NamedTuple):
    """Groups and rules that join a policy, and in words all that the proposal says in another way."""

    groups: dict[str, Group]
    rules: tuple[Rule, ...]
    differs: tuple[str, ...]


def additions(old: Policy, proposal: Policy) -> Additions:
    """Return what a proposal adds to a policy without changing what anything in it means."""
    taken = _names(old) | _names(proposal)
    renamed, differs = dict[str, str](), list[str]()
    used = ends_named(proposal.rules)
    for name, group in proposal.groups.items():
        if name in used and not _fits(name, group, old):
            renamed[name] = new = _free_group(name, group, old, taken)
            taken.add(new)
            differs.append(_group_words(name, group, old, new))
    rules, told = _rules(old, proposal, renamed)
    named = ends_named(rules)
    groups = {renamed.get(name, name): group for name, group in proposal.groups.items()}
    new_groups = {n: g for n, g in groups.items() if n in named and n not in old.groups}
    return Additions(new_groups, rules, (*differs, *told, *_services(old, proposal)))


def _rules(
    old: Policy, proposal: Policy, renamed: Mapping[str, str]
) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    by_name = {rule.name: rule for rule in old.rules if rule.name}
    meant = {_meaning(rule) for rule in old.rules}
    taken = by_name.keys() | {rule.name for rule in proposal.rules}
    found, differs = list[Rule](), list[str]()
    for rule in proposal.rules:
        ends = ends_named((rule,))
        if foreign := sorted(end for end in ends if end in old.groups and end not in proposal.groups):
            told = ", ".join(foreign)
            differs.append(
                f"{rule.name}: not added: {told} is a service to the proposal, and a group of the file"
            )
        elif ends & renamed.keys() or not rule.name:
            moved = replace(rule, from_=_moved(rule.from_, renamed), to=_moved(rule.to, renamed))
            if _meaning(moved) not in meant:
                name = _free(_renamed(rule, moved), taken) if rule.name else ""
                taken |= {name}
                found.append(replace(moved, name=name))
        elif (there := by_name.get(rule.name)) is None:
            found.append(rule)
        elif _meaning(there) != _meaning(rule):
            differs.append(f"{rule.name}: {'; '.join(_rule_words(there, rule))}")
    return tuple(found), tuple(differs)


def _names(policy: Policy) -> set[str]:
    ends = ends_named(policy.rules) | {end for test in policy.tests for end in (test.from_, test.to)}
    return ends | set(policy.services or ()) | policy.groups.keys() | RESERVED


def _fits(name: str, group: Group, old: Policy) -> bool:
    """Whether the name means this group in the policy, or nothing yet."""
    if name in old.groups:
        return _content(old.groups[name]) == _content(group)
    return name not in _names(old)


def _content(group: Group) -> object:
    return frozenset(group.hosts), group.labels, frozenset(group.cidrs), group.unregistered


def _meaning(rule: Rule) -> object:
    ends = frozenset(ends_of(rule.from_)), frozenset(ends_of(rule.to))
    return rule.action, *ends, frozenset(rule.ports)


def _numbered(name: str) -> Iterator[str]:
    for n in range(2, 1 << 20):
        tail = f"-{n}"
        yield name[: MOST - len(tail)] + tail


def _free_group(name: str, group: Group, old: Policy, taken: Collection[str]) -> str:
    """A new name; the one under which an earlier merge put the same group, where there is one."""
    for new in _numbered(name):
        if new in old.groups and _content(old.groups[new]) == _content(group):
            return new
        if new not in taken:
            return new
    raise AssertionError("more names are taken than a policy can have")


def _free(name: str, taken: Collection[str]) -> str:
    return next(new for new in (name, *_numbered(name)) if new not in taken) if name in taken else name


def _renamed(rule: Rule, moved: Rule) -> str:
    """The name that the exporter gives to a rule of the new ends, where it named this one."""
    if rule.name == rule_name(ends_of(rule.from_)[0], ends_of(rule.to)[0]):
        return rule_name(ends_of(moved.from_)[0], ends_of(moved.to)[0])
    return rule.name


def _moved(ends: Ends, renamed: Mapping[str, str]) -> Ends:
    if isinstance(ends, str):
        return renamed.get(ends, ends)
    return tuple(renamed.get(end, end) for end in ends)


def _group_words(name: str, group: Group, old: Policy, new: str) -> str:
    there = old.groups.get(name)
    words = f"is {_told(there)}" if there is not None else "is no group, but an end that its rules name"
    return f"group {name}: in the file it {words}, in the proposal {_told(group)}; there it is {new}"


def _told(group: Group) -> str:
    parts = [f"labels {', '.join(f'{k}={v}' for k, v in group.labels.items())}"] if group.labels else []
    parts += [f"hosts {_cut(group.hosts)}"] if group.hosts else []
    parts += [f"CIDRs {_cut(group.cidrs)}"] if group.cidrs else []
    parts += ["outside of registered services"] if group.unregistered else []
    return "; ".join(parts) or "empty"


def _cut(names: Sequence[str]) -> str:
    return first_of(names, SHOWN)


def _rule_words(there: Rule, rule: Rule) -> Iterator[str]:
    verb = "allows" if rule.action == "allow" else "denies"
    if there.action != rule.action:
        yield f"proposal {verb} what the file {'denies' if verb == 'allows' else 'allows'}"
    for word, mine, other in (
        ("from", ends_of(there.from_), ends_of(rule.from_)),
        ("to", ends_of(there.to), ends_of(rule.to)),
    ):
        if set(mine) != set(other):
            yield f"proposal {verb} {word} {_cut(other)}, the file {word} {_cut(mine)}"
    if more := [port for port in rule.ports if port not in there.ports]:
        yield f"proposal also {verb} {_cut(more)}"
    if less := [port for port in there.ports if port not in rule.ports]:
        yield f"proposal does not name {_cut(less)}"


def _services(old: Policy, proposal: Policy) -> Iterator[str]:
    if old.services is not None:
        more = sorted(set(proposal.services or ()) - set(old.services))
        if more:
            yield f"services: proposal also governs {_cut(more)}: add what you want governed to `services:`"
