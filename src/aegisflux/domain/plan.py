"""A plan: what a policy would change, on whom first, what would have been cut, and who has to say yes.

It is a function of the policy, the inventory, what is in force, and recorded flows: the same of all four give
the same plan, and the same digest. Carrying it out is the rollout's.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from aegisflux.domain.diff import Change, diff
from aegisflux.domain.errors import Invalid, Refused
from aegisflux.domain.guardrails import GUARDRAILS, Limits, Wave, checked, waves
from aegisflux.domain.manifest import HostId
from aegisflux.domain.net import PROTOCOL_NAMES
from aegisflux.domain.policy import Policy, ends_named
from aegisflux.domain.policy_compile import Inventory, compile_policy
from aegisflux.domain.policy_lint import Lint, Seen, lint
from aegisflux.domain.policy_opened import opened
from aegisflux.domain.policy_tests import Broken, outcome
from aegisflux.domain.segment.propose import Recorded
from aegisflux.domain.segment.replay import Replay, place_of, replay
from aegisflux.domain.snapshot import MapSnapshot, ruleset
from aegisflux.domain.stages import Gate

MOST_CHANGES: Final = 500
MOST_CIDRS: Final = 8
SETTINGS: Final = ("mode", "on_expiry", "established", "ttl_seconds")
Hosts = tuple[tuple[str, ...], ...]


class Strategy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How carefully.

    canary_share: of the hosts of each service, at least one host; canary_hosts: these instead
    limits: of the guardrails; gate: when a stage of the rollout passes
    """

    canary_share: Annotated[float, Meta(gt=0, le=0.5)] = 0.1
    canary_hosts: Annotated[tuple[HostId, ...], Meta(max_length=10_000)] = ()
    limits: Limits = field(default_factory=Limits)
    gate: Gate = field(default_factory=Gate)


class ChangeLine(Struct, frozen=True):
    """Initiations that get another verdict, with one that shows it (`witness`)."""

    direction: str
    what: str
    before: str
    after: str
    cidrs: tuple[str, ...]
    more_cidrs: int
    witness: str


class ServicePlan(Struct, frozen=True, kw_only=True):
    """What happens to one service.

    replaces: the version in force, None: nothing is
    changes: what becomes allowed that was blocked comes first; more_changes: how many are not named
    canary: the hosts that are first, of `hosts`
    widens: whether any change, named or not, allows what was blocked
    settings: what else changes, in words
    """

    service: str
    snapshot: MapSnapshot
    replaces: int | None
    changes: tuple[ChangeLine, ...]
    more_changes: int
    canary: tuple[str, ...]
    hosts: tuple[str, ...]
    widens: bool = False
    settings: tuple[str, ...] = ()


class Plan(Struct, frozen=True, kw_only=True):
    """All of it. `held`: guardrails that do not hold, in words: while there are some the plan cannot begin.

    unchanged: governed services for which nothing changes
    canary, waves: hosts that change at once, in turn; the canary hosts first
    approval: why a second person has to approve; empty: nobody has to
    definitions: who each service is that it governs or names; plans of before this was kept have none
    """

    services: tuple[ServicePlan, ...]
    unchanged: tuple[str, ...]
    replay: Replay
    broken_tests: tuple[Broken, ...]
    lint: tuple[Lint, ...]
    canary: Hosts
    waves: Hosts
    guardrails: tuple[str, ...]
    held: tuple[str, ...]
    approval: tuple[str, ...]
    strategy: Strategy = field(default_factory=Strategy)
    definitions: dict[str, str] = {}

    @property
    def widens(self) -> bool:
        """Whether something becomes allowed that was blocked; old plans say it by the changes they name."""
        return any(one.widens or any(map(_widens, one.changes)) for one in self.services)


def plan(
    policy: Policy, inventory: Inventory, in_force: Mapping[str, MapSnapshot], recorded: Recorded,
    strategy: Strategy, author: str, now: int,
) -> Plan:  # fmt: skip
    """The plan of a policy; raises NotFound, Invalid or OverLimit by the path of a rule."""
    snapshots = compile_policy(policy, inventory)
    channels = _channels(recorded)
    services, unchanged = [], []
    for name, snapshot in snapshots.items():
        before = in_force.get(name)
        changes, settings = _changes(before, snapshot), settings_changed(before, snapshot)
        if before is not None and not changes and not settings:
            unchanged.append(name)
            continue
        services.append(
            ServicePlan(
                service=name,
                snapshot=snapshot,
                replaces=before.version if before else None,
                changes=tuple(map(change_line, changes[:MOST_CHANGES])),
                more_changes=max(0, len(changes) - MOST_CHANGES),
                canary=_canary(name, inventory, channels, strategy),
                hosts=inventory.services[name].hosts,
                widens=any(map(_widens, changes)),
                settings=settings,
            )
        )
    replayed = replay(recorded, snapshots, inventory)
    canary, rest = _waves(services, inventory, strategy.limits)
    held = _held(services, (*canary, *rest), inventory, policy, strategy.limits, author, now)
    return Plan(
        services=tuple(services),
        unchanged=tuple(unchanged),
        replay=replayed,
        broken_tests=outcome(policy, inventory, snapshots).broken,
        lint=lint(policy, inventory, _seen(recorded, inventory)),
        canary=canary,
        waves=rest,
        guardrails=tuple(guardrail.__name__ for guardrail in GUARDRAILS),
        held=held,
        approval=_approval(services, replayed, policy, inventory),
        strategy=strategy,
        definitions=_definitions(policy, snapshots, inventory),
    )


def _definitions(policy: Policy, governed: Iterable[str], inventory: Inventory) -> dict[str, str]:
    """Who the services are that a policy governs or names."""
    meant = {*governed, *ends_named(policy.rules)} & inventory.services.keys()
    return {name: inventory.services[name].definition for name in sorted(meant)}


def stale(
    plan: Plan, policy: Policy, inventory: Inventory, in_force: Mapping[str, MapSnapshot]
) -> tuple[str, ...]:
    """Why it cannot be carried out any more, in words: the same policy would give something else by now.
    What changed elsewhere in the fleet does not matter."""
    try:
        now = compile_policy(policy, inventory)
    except Refused as error:
        return (str(error),)
    found = [
        f"{name}: when planned it was {was}, now it is {place.definition}"
        for name, was in plan.definitions.items()
        if (place := inventory.services.get(name)) is not None and place.definition != was
    ]
    for one in plan.services:
        place, after = inventory.services.get(one.service), now.get(one.service)
        before = in_force.get(one.service)
        version = before.version if before else None
        if place is None or after is None:
            found.append(f"{one.service} is not there any more")
        elif version != one.replaces:
            was, is_ = one.replaces or "nothing", version or "nothing"
            found.append(f"{one.service}: {is_} is in force, when planned it was {was}")
        elif place.hosts != one.hosts:
            changed = sorted(set(place.hosts) ^ set(one.hosts))
            named = ", ".join(changed[:MOST_CIDRS]) or "their order"
            found.append(f"{one.service}: its hosts changed: {named}")
        elif after.version != one.snapshot.version:
            found.append(f"{one.service}: version {after.version - 1} was stored since")
        elif after != one.snapshot:
            found.append(f"{one.service}: its peers have other addresses")
    return tuple(found)


def change_line(change: Change) -> ChangeLine:
    """A change in words."""
    ports = {0: "every port", -1: "every other port"}
    port = ports.get(change.port, str(change.port))
    flow = change.witness
    proto = PROTOCOL_NAMES.get(flow.proto, str(flow.proto))
    where = f"{flow.peer} {proto}" + (f"/{flow.port}" if flow.port is not None else "")
    return ChangeLine(
        direction=change.direction,
        what=f"{change.proto}/{port}",
        before=change.before,
        after=change.after,
        cidrs=tuple(map(str, change.cidrs[:MOST_CIDRS])),
        more_cidrs=max(0, len(change.cidrs) - MOST_CIDRS),
        witness=f"{'to' if flow.direction == 'egress' else 'from'} {where}",
    )


def settings_changed(before: MapSnapshot | None, after: MapSnapshot) -> tuple[str, ...]:
    """What changes beside verdicts, in words; of what replaces nothing, nothing."""
    if before is None:
        return ()
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in SETTINGS)
    return tuple(f"{name} was {was}, becomes {is_}" for name, was, is_ in pairs if was != is_)


def _changes(before: MapSnapshot | None, after: MapSnapshot) -> list[Change]:
    """All of them; those that widen come first, so that none of them is cut while another is named."""
    found = diff(ruleset(before) if before else None, ruleset(after))
    return sorted(found, key=lambda change: not _widens(change))


def _widens(change: Change | ChangeLine) -> bool:
    return change.before == "blocked" and change.after != "blocked"


def _channels(recorded: Recorded) -> Mapping[tuple[str, str], frozenset[tuple[bool, str, int, int]]]:
    """Of each (service, host): (calls, peer, protocol, port) that it was seen with."""
    found: dict[tuple[str, str], set[tuple[bool, str, int, int]]] = defaultdict(set)
    flows, actors = recorded.flows, recorded.actors
    rows = zip(*(c.tolist() for c in (flows.client, flows.server, flows.proto, flows.port)), strict=True)
    for client, server, proto, port in set(rows):
        for calls, own, peer in (
            (True, actors[client], actors[server]),
            (False, actors[server], actors[client]),
        ):
            if own.host:
                found[own.service, own.host].add((calls, peer.service or peer.host or "outside", proto, port))
    return {key: frozenset(channels) for key, channels in found.items()}


def _canary(
    service: str,
    inventory: Inventory,
    channels: Mapping[tuple[str, str], frozenset[object]],
    strategy: Strategy,
) -> tuple[str, ...]:
    """The hosts that together do most of what the service does: each next one adds most; then by name."""
    hosts = sorted(inventory.services[service].hosts)
    if strategy.canary_hosts:
        chosen = tuple(host for host in strategy.canary_hosts if host in hosts)
        if hosts and not chosen:
            raise Invalid("strategy.canary_hosts", f"a host of {service}", strategy.canary_hosts[0])
        return chosen
    forbidden = strategy.limits.marks
    left = [h for h in hosts if not forbidden & set(inventory.hosts[h].labels.items())] or hosts
    wanted, seen, found = max(1, int(strategy.canary_share * len(hosts))), set[object](), list[str]()
    while left and len(found) < wanted:
        best = max(left, key=lambda host: len(channels.get((service, host), frozenset()) - seen))
        left.remove(best)
        found.append(best)
        seen |= channels.get((service, best), frozenset())
    return tuple(found)


def _members(services: list[ServicePlan]) -> dict[str, frozenset[str]]:
    return {one.service: frozenset(one.hosts) for one in services}


def _waves(services: list[ServicePlan], inventory: Inventory, limits: Limits) -> tuple[Hosts, Hosts]:
    """The canary hosts and the others, each in waves that pass the guardrails of shares."""
    canary = sorted({host for one in services for host in one.canary})
    rest = sorted({host for one in services for host in one.hosts} - set(canary))
    first, then = (waves(hosts, _members(services), len(inventory.hosts), limits) for hosts in (canary, rest))
    return tuple(map(tuple, first)), tuple(map(tuple, then))


def _held(
    services: list[ServicePlan], found: Hosts, inventory: Inventory, policy: Policy,
    limits: Limits, author: str, now: int,
) -> tuple[str, ...]:  # fmt: skip
    """What the second person is asked for is no guardrail that holds the plan: see `approval`."""
    labels, members = {host: place.labels for host, place in inventory.hosts.items()}, _members(services)
    held = [
        str(one)
        for hosts in found
        for one in checked(
            Wave(
                hosts=frozenset(hosts),
                labels=labels,
                members=members,
                ttl_seconds=policy.ttl_seconds,
                now=now,
                author=author,
                enforces=policy.mode == "enforce",
            ),
            limits,
        )
    ]
    return tuple(dict.fromkeys(held))


def _seen(recorded: Recorded, inventory: Inventory) -> set[Seen] | None:
    """Every kind of recorded flow, by addresses; None: there is none, so that nothing can be said."""
    flows = recorded.flows
    if not len(flows):
        return None
    at = [place_of(actor, inventory) for actor in recorded.actors]
    rows = zip(*(c.tolist() for c in (flows.client, flows.server, flows.proto, flows.port)), strict=True)
    ways = ((at[client], at[server], proto, port) for client, server, proto, port in set(rows))
    return {(client, server, proto, port) for client, server, proto, port in ways if client and server}


def _approval(
    services: Sequence[ServicePlan], replayed: Replay, policy: Policy, inventory: Inventory
) -> tuple[str, ...]:
    first = frozenset(one.service for one in services if one.replaces is None)
    reasons = list(opened(policy, inventory, first))
    if any(one.widens for one in services):
        reasons.append("it allows what was blocked")
    if replayed.blocked and policy.mode == "enforce":
        reasons.append(f"it would have blocked {replayed.blocked} recorded flows")
    return tuple(reasons)
