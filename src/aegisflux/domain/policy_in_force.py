"""A policy in force, compiled with a later inventory: what cannot be said any more stays as it is.

Nobody is asked when a policy in force is compiled again, so what a host says of itself changes nothing for
others (ADR 0035):

* a host that is a member of a service by its own report alone stays where it is allowed or denied, and enters
  no allow and no deny: a plan, which somebody approves, may add it to the denies;
* a rule that cannot be compiled, or has no room, keeps the entries of its ports, and affects no other rule.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from aegisflux.domain.errors import AegisError, Refused
from aegisflux.domain.net import Cidr, masked
from aegisflux.domain.policy import Policy, label_of, ports_of
from aegisflux.domain.policy_compile import Inventory, Reports, compile_policy, unlabelled
from aegisflux.domain.renewal import without_gone
from aegisflux.domain.snapshot import Deny, Edge, Entry, IngressRule, MapSnapshot, canonical, ruleset
from aegisflux.domain.spans import Spans
from aegisflux.domain.text import first_of

MOST_NAMED: Final = 4
ACTIONS: Final = ("allow", "allow", "deny")  # of `_lists`
Key = tuple[str, str, int]  # action, protocol, port


class Stuck(NamedTuple):
    """A rule that cannot be compiled, why, and what it may have entries of."""

    rule: str
    why: str
    keys: frozenset[Key]


class Compiled(Struct, frozen=True):
    """The snapshots of a policy: `labelled` of labels alone, `reported` as if reports were labels."""

    labelled: Mapping[str, MapSnapshot]
    reported: Mapping[str, MapSnapshot]
    members: tuple[tuple[str, tuple[str, ...]], ...] = ()
    stuck: tuple[Stuck, ...] = ()


class Carried(Struct, frozen=True):
    """What a service is to get, and why some of it is not what its policy gives now, in words."""

    snapshot: MapSnapshot
    notes: tuple[str, ...] = ()


def compile_in_force(policy: Policy, inventory: Inventory) -> Compiled:
    """Compile what can be compiled; raises NotFound, Invalid or OverLimit where nothing can."""
    known = _registered(policy, inventory)
    labelled, stuck = _compiled(known, inventory, "ignored")
    members = tuple(unlabelled(known, inventory))
    reported = labelled
    if members or any(inventory.services[name].reported for name in labelled):
        reported, more = _compiled(known, inventory, "believed")
        stuck += tuple(one for one in more if one.rule not in {had.rule for had in stuck})
    return Compiled(labelled, reported, members, stuck)


def compile_each(policies: Sequence[Policy], inventory: Inventory) -> list[Compiled | None]:
    """Compile many for one inventory; None for one that is refused, which stops no other."""
    found: list[Compiled | None] = []
    for policy in policies:
        try:
            found.append(compile_in_force(policy, inventory))
        except Refused:
            found.append(None)
    return found


def carried(name: str, before: MapSnapshot, compiled: Compiled, inventory: Inventory) -> Carried | None:
    """What replaces the snapshot that a service has in force; None where the policy has none for it.

    Each entry is one of the policy compiled now, or lies inside one that is in force.
    """
    after, reported = compiled.labelled.get(name), compiled.reported.get(name)
    if after is None or reported is None:
        return None
    kept: list[Cidr] = []
    lists = []
    now = _lists(after)
    believed = now if reported is after else _lists(reported)
    for own, new, wide, action in zip(_lists(before), now, believed, ACTIONS, strict=True):
        stuck = {key for one in compiled.stuck for key in one.keys if key[0] == action}
        rows, by_report = _merged(own, new, wide, stuck, action)
        lists.append(rows)
        kept += by_report
    made = canonical(
        replace(
            after,
            edges=tuple(Edge(str(e.cidr), e.proto, e.port) for e in lists[0]),
            ingress=tuple(IngressRule(str(e.cidr), e.proto, e.port) for e in lists[1]),
            deny=tuple(Deny(str(e.cidr), e.proto, e.port, e.direction) for e in lists[2]),
        )
    )
    words = (f"rule {one.rule} keeps the entries it has: {one.why}" for one in compiled.stuck)
    said = _by_report(kept, _uncovered(reported, made), compiled, inventory)
    if kept and not said:
        said = [
            f"{name} keeps entries that a report would take from it; give {name} host_labels and plan again"
        ]
    return Carried(made, (*said, *words))


def _lists(snapshot: MapSnapshot) -> tuple[tuple[Entry, ...], ...]:
    rules = ruleset(snapshot)
    return rules.edges, rules.ingress or (), rules.deny


def _merged(
    own: Sequence[Entry], new: Sequence[Entry], wide: Sequence[Entry], stuck: Set[Key], action: str
) -> tuple[list[Entry], list[Cidr]]:
    """The new entries with those of our own that stay, and those which a report alone stands for."""
    held, fresh, believed = _keyed(own), _keyed(new), _keyed(wide)
    rows = []
    kept: list[Cidr] = []
    for place in held.keys() | fresh.keys():
        mine, now = held.get(place, set()), fresh.get(place, set())
        key: Key = (action, place[0], place[1])
        stays = mine if key in stuck else _common(believed.get(place, set()) - now, mine)
        stays = {cidr for cidr in stays if not _inside(cidr, now)}
        if key not in stuck:
            kept += stays
        all_of_it = stays | {cidr for cidr in now if cidr in mine or not _inside(cidr, stays)}
        rows += [Entry(cidr, *place) for cidr in all_of_it]
    return rows, kept


def _keyed(entries: Iterable[Entry]) -> dict[Any, set[Cidr]]:
    found: dict[Any, set[Cidr]] = defaultdict(set)
    for cidr, *place in entries:
        found[tuple(place)].add(cidr)
    return found


def _common(some: Set[Cidr], others: Set[Cidr]) -> set[Cidr]:
    """The prefixes of either that lie inside one of the other: what both hold, in the pieces they have."""
    ordered = sorted(others)
    found = set()
    for cidr in some:
        if _inside(cidr, others):
            found.add(cidr)
            continue
        at = bisect_left(ordered, Cidr(cidr.family, cidr.value, 0))
        while at < len(ordered) and cidr.contains(ordered[at]):
            found.add(ordered[at])
            at += 1
    return found


def _inside(cidr: Cidr, others: Set[Cidr]) -> bool:
    """Whether a prefix is one of these, or lies inside one."""
    if not others:
        return False
    return any(masked(cidr.family, cidr.value, plen) in others for plen in range(cidr.plen, -1, -1))


def _by_report(
    kept: Sequence[Cidr], undenied: Sequence[Cidr], compiled: Compiled, inventory: Inventory
) -> list[str]:
    """Who stays where it is for its report alone, and who is not denied for it, in words."""
    words = []
    for cidrs, effect in ((kept, ""), (undenied, " and is not denied")):
        spans = Spans(cidrs)
        for service, hosts in compiled.members if cidrs else ():
            here = [host for host in hosts if any(spans.has(a) for a in inventory.addresses((host,)))]
            if here:
                named = f"host{'s' if len(here) > 1 else ''} {first_of(here, MOST_NAMED)}"
                run = f"run{'s' if len(here) == 1 else ''} {service} by report alone{effect}"
                words.append(f"{named} {run}; give {service} host_labels and plan again")
    return words


def _uncovered(wide: MapSnapshot, made: MapSnapshot) -> list[Cidr]:
    """The prefixes that would be denied if reports were labels, and are not."""
    if wide is made:
        return []
    held = {place: Spans(cidrs) for place, cidrs in _keyed(_lists(made)[2]).items()}
    nothing = Spans(())
    return [
        cidr
        for place, cidrs in _keyed(_lists(wide)[2]).items()
        for cidr in cidrs
        if not held.get(place, nothing).holds(Spans((cidr,)))
    ]


def _compiled(
    policy: Policy, inventory: Inventory, reports: Reports
) -> tuple[dict[str, MapSnapshot], tuple[Stuck, ...]]:
    stuck: list[Stuck] = []

    def note(number: int, error: AegisError) -> None:
        rule = policy.rules[number]
        keys = frozenset((rule.action, *port) for port in ports_of(rule, ""))
        stuck.append(Stuck(label_of(rule, number), str(error), keys))

    return compile_policy(policy, inventory, note, reports=reports), tuple(stuck)


def _registered(policy: Policy, inventory: Inventory) -> Policy:
    """The policy without hosts that left its groups, and without governed services that are no more."""
    left = without_gone(policy, inventory.hosts)
    if policy.services is None:
        return left
    return replace(left, services=tuple(name for name in policy.services if name in inventory.services))
