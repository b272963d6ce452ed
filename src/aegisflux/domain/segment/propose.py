"""A proposal: groups with names, rules with their evidence, and what a person has to know of it first.

It is a function of recorded flows alone: the same flows give the same proposal. It does not say what is in
force; see `simulate` and `diff` for that.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from aegisflux.domain.segment.flows import Flows, Int
from aegisflux.domain.segment.forecast import LEAST_DAYS as LEAST_FORECAST_DAYS
from aegisflux.domain.segment.forecast import Forecast, forecast
from aegisflux.domain.segment.grouping import CUT
from aegisflux.domain.segment.mine import Mined, mine
from aegisflux.domain.segment.rules import ANYONE, FLEET, LEAST_DAYS, LEAST_DAYS_OF_ONE, Rule, allowed
from aegisflux.domain.segment.stability import adjusted_rand, kept_names
from aegisflux.domain.segment.tuples import tuples_of

MOST_PROGRAMS: Final = 3  # named as evidence of a rule
ANYONE_NAME, FLEET_NAME = "anyone", "fleet"
NEIGHBOUR: Final = 0.04  # how far the cuts lie apart whose groups are compared
DAY_SECONDS: Final = 86_400
WIDE: Final = "calls far more groups or ports than others do"
REVIEWED: Final = frozenset({"core", "public", "outside"})  # kinds of rules


class Actor(Struct, frozen=True):
    """What a rule can speak of: a service on a host, a host, or (host empty) an address outside."""

    host: str = ""
    service: str = ""
    address: str = ""

    def __str__(self) -> str:
        if not self.host:
            return self.address
        return f"{self.service}@{self.host}" if self.service else self.host


@dataclass(frozen=True)
class Recorded:
    """A window of flows. Actors of the fleet come first, `fleet` of them; `programs` are the clients'.

    between: of two hosts the addresses, the caller's and the callee's, at which they were seen to talk
    """

    actors: tuple[Actor, ...]
    fleet: int
    flows: Flows
    programs: tuple[str, ...] = ()
    between: Mapping[tuple[str, str], tuple[tuple[str, str], ...]] = field(default_factory=dict)


class Group(Struct, frozen=True):
    """Actors that play one role, by their names; of a registered service its name."""

    name: str
    members: tuple[str, ...]


class ProposedRule(Struct, frozen=True, kw_only=True):
    """`client` may call `server`, by their groups' names. `held` says why it is not proposed; empty: it is.

    programs: which programs of the client did, most often first
    confidence: that it is used on a day to come, by the days on which it was (Laplace's rule of succession)
    """

    client: str
    server: str
    proto: int
    port: int
    kind: str
    held: str
    clients: int
    servers: int
    days: int
    connections: int
    programs: tuple[str, ...] = ()
    confidence: float = 0.0


class Proposal(Struct, frozen=True, kw_only=True):
    """What may be, by what was.

    coverage: share of the recorded flows that the proposed rules allow
    unseen: share of the pairs of actors and ports that they allow and nobody used: over-permission at most
    review: rules that a person has to look at: core services, and all that is called from outside of the
            fleet, what is held of it too
    left_out: actors that do not teach, and why
    stability: adjusted Rand index of the groups of both halves of the window, and of neighbouring cuts
    segmentedness: 1 - share of the pairs of groups that may talk
    blast_radius: of each group, how many actors of the fleet can be reached from it, over others too
    blast_radius_before: the same without a policy, of every group: all of the fleet
    advice: what to do first, where the window is too small to propose anything of worth
    forecast: how many later legitimate flows it would block; None: the window is too short to tell
    """

    groups: tuple[Group, ...]
    rules: tuple[ProposedRule, ...]
    coverage: float
    unseen: float
    review: tuple[ProposedRule, ...]
    left_out: Mapping[str, str]
    stability: Mapping[str, float]
    segmentedness: float
    blast_radius: Mapping[str, int]
    advice: tuple[str, ...] = ()
    forecast: Forecast | None = None
    blast_radius_before: int = 0


def propose(
    recorded: Recorded,
    suspicious: Collection[str] = (),
    names_before: Mapping[str, frozenset[str]] | None = None,
    period_seconds: int = DAY_SECONDS,
) -> Proposal:
    """The proposal of a window.

    suspicious: hosts whose flows do not teach
    names_before: the groups of an earlier proposal, by name, so that a group keeps its name
    period_seconds: what stands for a day in these flows
    """
    taught, silenced = _teaching(recorded, suspicious)
    labels = _labels(recorded)
    flows = taught.flows
    mined = mine(flows, recorded.fleet, len(recorded.actors), labels)
    names = _names(recorded, mined, names_before or {})
    days = len(np.unique(flows.day))
    rules = tuple(_rule(rule, names, programs, days) for rule, programs in _with_programs(mined, taught))
    allowed_rows = mined.allows(flows.client, flows.server, flows.proto, flows.port)
    wide = {str(recorded.actors[actor]): WIDE for actor in mined.wide}
    return Proposal(
        groups=_groups(recorded, mined, names),
        rules=rules,
        coverage=float(allowed_rows.mean()) if len(flows) else 0.0,
        unseen=_unseen(mined, flows),
        review=tuple(rule for rule in rules if rule.kind in REVIEWED),
        left_out={**wide, **silenced},
        stability=_stability(recorded, flows, labels),
        segmentedness=_segmentedness(mined),
        blast_radius={names[g]: reach for g, reach in _blast_radius(mined).items()},
        advice=(*_of_period(period_seconds), *_advice(flows, rules)),
        forecast=forecast(flows, mined, allowed_rows),
        blast_radius_before=recorded.fleet,
    )


def _teaching(recorded: Recorded, suspicious: Collection[str]) -> tuple[Recorded, dict[str, str]]:
    """Without the flows that suspicious hosts began, and without those to them: what was taken from us must
    not be learned either."""
    left_out = [a for a, actor in enumerate(recorded.actors) if actor.host and actor.host in suspicious]
    flows = recorded.flows
    keep = ~(np.isin(flows.client, left_out) | np.isin(flows.server, left_out))
    found = Recorded(recorded.actors, recorded.fleet, flows.where(keep), recorded.programs)
    return found, {str(recorded.actors[actor]): "marked as suspicious" for actor in left_out}


def _labels(recorded: Recorded) -> Int:
    """A registered service is one group."""
    services = sorted({actor.service for actor in recorded.actors[: recorded.fleet]} - {""})
    number = {name: n for n, name in enumerate(services)}
    return np.array([number.get(a.service, -1) for a in recorded.actors[: recorded.fleet]], np.int32)


def _names(recorded: Recorded, mined: Mined, before: Mapping[str, frozenset[str]]) -> dict[int, str]:
    """Of every group, and of ANYONE and FLEET."""
    members = _members(mined)
    found = {g: recorded.actors[actors[0]].service for g, actors in members.items()}
    unnamed = sorted(g for g, service in found.items() if not service)
    sets = [frozenset(str(recorded.actors[a]) for a in members[g]) for g in unnamed]
    taken = {*found.values(), ANYONE_NAME, FLEET_NAME}
    fresh = (name for name in (f"role-{n}" for n in count(1)) if name not in taken)
    earlier = {name: of for name, of in before.items() if name not in taken}
    found.update(zip(unnamed, kept_names(sets, earlier, fresh), strict=True))
    return {**found, ANYONE: ANYONE_NAME, FLEET: FLEET_NAME}


def _members(mined: Mined) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for actor, of in enumerate(mined.groups.tolist()):
        if of >= 0:
            found[of].append(actor)
    return found


def _groups(recorded: Recorded, mined: Mined, names: Mapping[int, str]) -> tuple[Group, ...]:
    return tuple(
        Group(names[g], tuple(str(recorded.actors[a]) for a in actors))
        for g, actors in sorted(_members(mined).items())
    )


def _with_programs(mined: Mined, recorded: Recorded) -> Iterable[tuple[Rule, tuple[str, ...]]]:
    """Each rule with the programs that went its way most often."""
    flows = recorded.flows
    client, server = mined.groups[flows.client], mined.groups[flows.server]
    columns = (client, server, flows.proto, flows.port, flows.program)
    known = flows.program >= 0
    rows, times = np.unique(np.stack([c[known] for c in columns]), axis=1, return_counts=True)
    by_way: dict[tuple[int, int, int, int], Counter[str]] = defaultdict(Counter)
    for (c, s, proto, port, program), n in zip(rows.T.tolist(), times.tolist(), strict=True):
        for way in ((c, s, proto, port), (FLEET, s, proto, port), (c, FLEET, proto, port)):
            by_way[way][recorded.programs[program]] += n
    for rule in mined.rules:
        often = by_way[rule.client, rule.server, rule.proto, rule.port].most_common()
        often.sort(key=lambda pair: (-pair[1], pair[0]))
        yield rule, tuple(name for name, _ in often[:MOST_PROGRAMS])


def _rule(rule: Rule, names: Mapping[int, str], programs: tuple[str, ...], days: int) -> ProposedRule:
    return ProposedRule(
        client=names[rule.client],
        server=names[rule.server],
        proto=rule.proto,
        port=rule.port,
        kind=rule.kind,
        held=rule.held,
        clients=rule.clients,
        servers=rule.servers,
        days=rule.days,
        connections=rule.connections,
        programs=programs,
        confidence=round((rule.days + 1) / (days + 2), 4),
    )


def _unseen(mined: Mined, flows: Flows) -> float:
    """Counted over the fleet's groups and named addresses outside; what anyone may call is for review."""
    sizes = Counter(mined.groups.tolist())
    sizes[FLEET] = mined.hosts
    rules, pairs = [rule for rule in mined.proposed if rule.client != ANYONE], 0
    for rule in rules:
        own = sizes[rule.client] if FLEET not in (rule.client, rule.server) else 0
        pairs += sizes[rule.client] * sizes[rule.server] - (own if rule.client == rule.server else 0)
    columns = flows.client, flows.server, flows.proto, flows.port
    some = flows.where(allowed(rules, mined.groups, mined.hosts, *columns))
    return max(0.0, 1 - len(tuples_of(some)) / pairs) if pairs else 0.0


def _stability(recorded: Recorded, flows: Flows, labels: Int) -> dict[str, float]:
    def groups(rows: NDArray[np.bool_], cut: float = CUT) -> Sequence[int]:
        found = mine(flows.where(rows), recorded.fleet, len(recorded.actors), labels, cut)
        whole: Sequence[int] = found.groups[: recorded.fleet].tolist()
        return whole

    days = int(flows.day.max()) + 1 if len(flows) else 0
    every = np.ones(len(flows), bool)
    early = flows.day < days // 2
    return {
        "halves": round(adjusted_rand(groups(early), groups(~early)), 3) if days > 1 else 0.0,
        "cuts": round(adjusted_rand(groups(every, CUT - NEIGHBOUR), groups(every, CUT + NEIGHBOUR)), 3),
    }


def _edges(mined: Mined) -> dict[int, set[int]]:
    """Which groups of the fleet each may call."""
    own = set(mined.groups[: mined.hosts].tolist())
    found: dict[int, set[int]] = {g: set() for g in own}
    for rule in mined.proposed:
        callers = own if rule.client == FLEET else {rule.client} & own
        called = own if rule.server == FLEET else {rule.server} & own
        for caller in callers:
            found[caller] |= called
    return found


def _segmentedness(mined: Mined) -> float:
    edges = _edges(mined)
    pairs = len(edges) * (len(edges) - 1)
    joined = sum(len(called - {caller}) for caller, called in edges.items())
    return 1 - joined / pairs if pairs else 0.0


def _blast_radius(mined: Mined) -> dict[int, int]:
    edges, sizes = _edges(mined), Counter(mined.groups[: mined.hosts].tolist())
    found = {}
    for start in edges:
        reached, ahead = {start}, deque([start])
        while ahead:
            new = edges[ahead.popleft()] - reached
            reached |= new
            ahead.extend(new)
        found[start] = sum(sizes[g] for g in reached)
    return found


def _of_period(seconds: int) -> tuple[str, ...]:
    if seconds >= DAY_SECONDS:
        return ()
    return (f"a period of {seconds} s stands for a day: only for demonstrations",)


def _advice(flows: Flows, rules: Sequence[ProposedRule]) -> tuple[str, ...]:
    days = len(np.unique(flows.day))
    if not len(flows):
        return ("no flows were recorded in this window: check that its hosts tell telemetry",)
    if days < LEAST_DAYS:
        more = LEAST_DAYS_OF_ONE - days
        return (f"flows of {days} day say nothing of habits: learn for {more} days more",)
    found = []
    waiting = sum(rule.held in ("few_days", "one_client_few_days") for rule in rules)
    if waiting:
        found.append(f"{waiting} ways were seen too seldom to be proposed: learn longer, or add them by hand")
    few = sum(rule.held == "few_outside" for rule in rules)
    if few:
        found.append(
            f"{few} ways are called by few addresses outside of the fleet, not on {LEAST_DAYS} days by one: "
            "learn longer, or add these addresses by hand"
        )
    if days < LEAST_FORECAST_DAYS:
        more = LEAST_FORECAST_DAYS - days
        found.append(f"a forecast needs flows of {LEAST_FORECAST_DAYS} days: learn for {more} more")
    return tuple(found)
