"""Synthetic fleets whose truth is known, to measure mining. The same plan and seed make the same fleet.

Applications of several tiers live side by side in environments that look alike (same ports, other peers), and
all of them use shared infrastructure. Calls spread over a role's hosts like behind a load balancer, stick to
one of them for days, or come from one host of a role alone; some jobs run weekly or monthly. Over that lie
scans, mistakes and intruders.

It is made for measuring, and knows nothing of how mining works. It says nothing of any real fleet.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.random import Generator
from numpy.typing import NDArray

from aegisflux.domain.net import TCP
from aegisflux.domain.segment.fleet_calls import (
    INFRASTRUCTURE,
    KEPT_A_DAY,
    METRICS_PORT,
    METRICS_RATE,
    MISTAKES,
    PARTNERS,
    PATIENT,
    SHELL_PORT,
    SHELL_RATE,
    STYLES,
    USED_BY_ALL,
    WORLD,
    Call,
    Pattern,
)
from aegisflux.domain.segment.flows import HOURS, Flows, Int, pair_keys, tuple_keys


class Plan(Struct, frozen=True, kw_only=True):
    """The parameters of a fleet; days: of the window, then of the time after it.

    records: flow records of the window, about
    noise:   share of them that scans and mistakes made
    poison:  share of them that intruders made, to be learned
    """

    hosts: int = 350
    roles: int = 108
    environments: int = 3
    days: int = 7
    later_days: int = 7
    records: int = 200_000
    noise: float = 0.01
    poison: float = 0.0
    intruders: int = 5
    world: int = 400
    partners: int = 12


class Link(NamedTuple):
    """A role may call another: the truth. Records a client and day."""

    client: int
    server: int
    proto: int
    port: int
    rate: float
    pattern: Pattern


@dataclass(frozen=True)
class Fleet:
    """A fleet, what it did, what it will do, and what it may do.

    role:   of each actor, by number; hosts come first, then partners, then the world
    hosts:  how many actors are hosts
    window, later: what was recorded, and the true flows of the days after it (no noise, no intruder)
    poison: keys of the tuples that intruders made, none of them true
    """

    names: tuple[str, ...]
    role: Int
    hosts: int
    links: tuple[Link, ...]
    window: Flows
    later: Flows
    poison: NDArray[np.uint64]

    @property
    def world(self) -> int:
        """The first actor of the world: addresses that come and go."""
        return int(np.argmax(self.role == self.names.index(WORLD)))

    def truth(self) -> NDArray[np.uint64]:
        """Keys of all tuples (client, server, protocol, port) that may be, sorted; nobody with itself."""
        found = []
        for link in self.links:
            outside = self.names[link.client] == WORLD  # whoever it is
            clients = np.arange(self.hosts, len(self.role)) if outside else self._of(link.client)
            found.append(pair_keys(clients, self._of(link.server), link.proto, link.port))
        return np.unique(np.concatenate(found))

    def _of(self, role: int) -> NDArray[np.intp]:
        return np.nonzero(self.role == role)[0]


def make(plan: Plan, seed: int) -> Fleet:
    """A fleet by its plan; raises ValueError where it has fewer hosts than roles."""
    if plan.hosts < plan.roles or plan.roles <= len(INFRASTRUCTURE):
        raise ValueError(
            f"a fleet needs {len(INFRASTRUCTURE) + 1} roles or more, and as many hosts: "
            f"got {plan.roles} roles, {plan.hosts} hosts"
        )
    rng = np.random.default_rng(seed)
    names, links = _roles(plan, rng)
    role = _members(plan, names, rng)
    callers = _scaled(_Callers.of(links, role, rng), plan)
    window = callers.records(plan.days, 0, role, rng)
    later = callers.records(plan.later_days, plan.days, role, rng)
    fleet = Fleet((*names, PARTNERS, WORLD), role, plan.hosts, links, window, later, np.empty(0, np.uint64))
    truth = fleet.truth()
    poison = _poison(fleet, truth, plan, rng)
    whole = window.and_(_noise(fleet, truth, plan, rng)).and_(poison)
    return replace(
        fleet,
        window=whole.where(np.lexsort((whole.client, whole.hour))),
        poison=np.unique(tuple_keys(poison.client, poison.server, poison.proto, poison.port)),
    )


def _roles(plan: Plan, rng: Generator) -> tuple[list[str], tuple[Link, ...]]:
    """Names and links: as many applications in each environment as there are roles for."""
    names = list(INFRASTRUCTURE)
    calls: list[tuple[str, Call]] = []
    number = 0
    while len(names) < plan.roles:
        style = list(STYLES)[number // plan.environments % len(STYLES)]
        place = f"env{number % plan.environments}-{style}{number // plan.environments}"
        tiers = dict.fromkeys(
            t for c in STYLES[style] for t in (c.client, c.server) if t not in (WORLD, PARTNERS)
        )
        names += [f"{place}-{tier}" for tier in tiers][: plan.roles - len(names)]
        calls += [(place, call) for call in STYLES[style]]
        number += 1
    at = {name: i for i, name in enumerate((*names, PARTNERS, WORLD))}
    links = []
    for place, call in calls:
        ends = [end if end in (WORLD, PARTNERS) else f"{place}-{end}" for end in (call.client, call.server)]
        if all(end in at for end in ends):
            rate = call.rate * rng.lognormal(0, 0.8)
            links.append(Link(at[ends[0]], at[ends[1]], call.proto, call.port, rate, call.pattern))
    return names, (*links, *_between(names, at, rng), *_shared(names, at))


def _between(names: list[str], at: dict[str, int], rng: Generator) -> list[Link]:
    """Applications of one environment that call each other, and the jobs that run now and then."""
    found = []
    roles = names[len(INFRASTRUCTURE) :]
    servers = [n for n in roles if n.endswith(("-api", "-app", "-search", "-control"))]
    stores = [n for n in roles if n.endswith(("-db", "-data"))]
    for name in servers:
        others = [o for o in servers if o.split("-")[0] == name.split("-")[0] and o != name]
        found += [
            Link(at[name], at[other], TCP, 8443, 30 * rng.lognormal(0, 0.8), "mesh")
            for other in rng.permutation(others)[:3]
        ]
    for name in roles:
        if stores and rng.random() < 0.25:
            pattern: Pattern = ("weekly", "weekly", "monthly", "leader")[rng.integers(4)]
            store = stores[rng.integers(len(stores))]
            if store != name:
                found.append(Link(at[name], at[store], TCP, 5433, 2.0, pattern))
    return found


def _shared(names: list[str], at: dict[str, int]) -> list[Link]:
    found = []
    for name in names:
        me = at[name]
        found += [
            Link(me, at[c.server], c.proto, c.port, c.rate, c.pattern)
            for c in USED_BY_ALL
            if c.server != name
        ]
        if name != "metrics":
            found.append(Link(at["metrics"], me, TCP, METRICS_PORT, METRICS_RATE, "mesh"))
        if name != "bastion":
            found.append(Link(at["bastion"], me, TCP, SHELL_PORT, SHELL_RATE, "mesh"))
        if name.endswith(("-db", "-data", "-files")):
            found.append(Link(at["backup"], me, TCP, 873, 2.0, "mesh"))
    return found


def _members(plan: Plan, names: list[str], rng: Generator) -> Int:
    """The role of each actor: each role has a host, the others fall by weights; a few of each of the rest."""
    weights = rng.lognormal(0, 0.7, len(names))
    weights[: len(INFRASTRUCTURE)] = 0.3
    more = rng.choice(len(names), plan.hosts - len(names), p=weights / weights.sum())
    hosts = np.concatenate((np.arange(len(names)), more))
    rng.shuffle(hosts)
    beyond = np.repeat([len(names), len(names) + 1], [plan.partners, plan.world])
    return np.concatenate((hosts, beyond)).astype(np.int32)


@dataclass(frozen=True)
class _Callers:
    """One row a link and client; `home` is the server that a sticky caller is with, `rate` records a day."""

    link: Int
    client: Int
    rate: NDArray[np.float64]
    home: Int
    links: tuple[Link, ...]

    @classmethod
    def of(cls, links: tuple[Link, ...], role: Int, rng: Generator) -> "_Callers":
        link, client, rate = [], [], []
        for number, one in enumerate(links):
            members = np.nonzero(role == one.client)[0]
            callers = members[:1] if one.pattern == "leader" else members
            if one.pattern in ("weekly", "monthly"):
                callers = members[rng.integers(len(members), size=1)]
            link += [number] * len(callers)
            client += list(callers)
            rate += list(_rates(one, len(callers), int((role == one.server).sum()), rng))
        home = rng.integers(1 << 30, size=len(link))
        return cls(
            np.array(link, np.int32), np.array(client, np.int32), np.array(rate), home.astype(np.int32), links
        )

    def records(self, days: int, begin: int, role: Int, rng: Generator) -> Flows:
        """What they do in these days, the first of them the day `begin` of the whole time."""
        counts = np.stack([self._runs(day, rng) for day in range(begin, begin + days)], axis=1)
        row, day = (a.ravel() for a in np.indices(counts.shape))
        n = counts.ravel()
        row, day = np.repeat(row, n), np.repeat(day, n)
        link = self.link[row]
        moved = (rng.random((len(self.link), begin + days)) > KEPT_A_DAY).cumsum(axis=1)
        turn = self.home[row] + moved[row, begin + day]
        server = _server(link, self.client[row], turn, self.links, role, rng)
        kept = server >= 0
        column = np.array([(one.proto, one.port) for one in self.links], np.int32)
        hour = day * HOURS + rng.integers(HOURS, size=len(day))
        return Flows(
            hour.astype(np.int32),
            self.client[row],
            server,
            column[link, 0],
            column[link, 1],
            rng.geometric(0.3, len(row)).astype(np.int32),
            link.astype(np.int32),
        ).where(kept)

    def _runs(self, day: int, rng: Generator) -> NDArray[np.int64]:
        """Records of each row on a day; weekly and monthly jobs run on theirs alone."""
        found = rng.poisson(self.rate)
        for pattern, every in (("weekly", 7), ("monthly", 30)):
            rows = np.array([self.links[number].pattern == pattern for number in self.link])
            found[rows & (self.home % every != day % every)] = 0
        return found


def _rates(link: Link, callers: int, servers: int, rng: Generator) -> NDArray[np.float64]:
    """Busy and idle hosts of one role; metrics and backup visit each server, a person picks some."""
    if link.port in (METRICS_PORT, 873):
        return np.full(callers, link.rate * servers / max(1, callers))
    if link.port == SHELL_PORT:
        return np.full(callers, link.rate / 100)
    return link.rate * rng.lognormal(0, 0.4, callers)


def _scaled(callers: _Callers, plan: Plan) -> _Callers:
    """So busy that the window has about as many records as the plan says; jobs stay as rare as they are."""
    rare = np.array([callers.links[n].pattern in ("leader", "weekly", "monthly") for n in callers.link])
    rare |= np.array([callers.links[n].port == SHELL_PORT for n in callers.link])
    busy = callers.rate[~rare].sum() * plan.days
    factor = plan.records * (1 - plan.noise - plan.poison) / busy
    rate = np.where(rare, callers.rate, callers.rate * factor)
    return replace(callers, rate=rate)


def _server(
    link: Int, client: Int, turn: NDArray[np.int64], links: tuple[Link, ...], role: Int, rng: Generator
) -> Int:
    """One of the server role's hosts for each record, never the client itself; -1 where there is no other."""
    order = np.argsort(role, kind="stable")
    first = np.searchsorted(role[order], np.arange(int(role.max()) + 2))
    of = np.array([one.server for one in links])[link]
    size = first[of + 1] - first[of]
    sticky = np.array([one.pattern != "mesh" for one in links])[link]
    draw = rng.integers(1 << 30, size=len(link))
    found = order[first[of] + np.where(sticky, turn, draw) % size]
    again = order[first[of] + (np.where(sticky, turn, draw) + 1) % size]
    found = np.where(found == client, again, found)
    return np.where(found == client, -1, found).astype(np.int32)


def _noise(fleet: Fleet, truth: NDArray[np.uint64], plan: Plan, rng: Generator) -> Flows:
    """Two scanners that touch everything once, and mistakes: any host, any port that is in use."""
    n = round(plan.records * plan.noise)
    mistakes = round(n * MISTAKES)
    scanners = rng.choice(plan.hosts, 2, replace=False)
    client = np.concatenate((rng.integers(plan.hosts, size=mistakes), rng.choice(scanners, n - mistakes)))
    ports = np.array(sorted({link.port for link in fleet.links} | {21, 23, 445, 3389, 8081, 11211, 27017}))
    hour = rng.integers(plan.days * HOURS, size=n)
    hour[mistakes:] = rng.integers(plan.days) * HOURS + rng.integers(2, 5, size=n - mistakes)
    return _untrue(truth, hour, client, rng.integers(plan.hosts, size=n), rng.choice(ports, n), rng)


def _poison(fleet: Fleet, truth: NDArray[np.uint64], plan: Plan, rng: Generator) -> Flows:
    """Each intruder touches many services, half of them again on each day from when it came in."""
    each = round(plan.records * plan.poison / max(1, plan.intruders))
    parts = []
    ports = np.array(sorted({link.port for link in fleet.links if link.proto == TCP} | {445, 3389}))
    for intruder in rng.choice(plan.hosts, plan.intruders, replace=False) if each else ():
        begin = int(rng.integers(max(1, plan.days // 2)))
        days = np.arange(begin, plan.days)
        targets = max(1, round(each / (1 - PATIENT + PATIENT * len(days))))
        patient = round(targets * PATIENT)
        server, port = rng.integers(plan.hosts, size=targets), rng.choice(ports, targets)
        chosen = np.concatenate((np.tile(np.arange(patient), len(days)), np.arange(patient, targets)))
        day = np.concatenate((np.repeat(days, patient), rng.choice(days, targets - patient)))
        hour = day * HOURS + rng.integers(HOURS, size=len(day))
        client = np.full(len(hour), intruder)
        parts.append(_untrue(truth, hour, client, server[chosen], port[chosen], rng))
    nothing = fleet.window.where(np.empty(0, np.intp))
    for part in parts:
        nothing = nothing.and_(part)
    return nothing


def _untrue(
    truth: NDArray[np.uint64],
    hour: NDArray[np.int64],
    client: NDArray[np.int64],
    server: NDArray[np.int64],
    port: NDArray[np.int64],
    rng: Generator,
) -> Flows:
    """These as flows, without those that happen to be true."""
    proto = np.full(len(hour), TCP)
    keys = tuple_keys(
        client.astype(np.int32), server.astype(np.int32), proto.astype(np.int32), port.astype(np.int32)
    )
    false = ~np.isin(keys, truth) & (client != server)
    columns = (hour, client, server, proto, port, rng.geometric(0.6, len(hour)), np.full(len(hour), -1))
    return Flows(*(column.astype(np.int32)[false] for column in columns))
