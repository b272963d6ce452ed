"""From flow records to groups and rules: lift core services, group, set aside who looks wide, group again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegisflux.domain.segment.core import CoreService, core_rows, core_services
from aegisflux.domain.segment.flows import Flows, Int
from aegisflux.domain.segment.grouping import (
    CUT,
    features_of,
    group,
    group_clients_outside,
    group_servers_outside,
)
from aegisflux.domain.segment.rules import (
    ANYONE,
    Rule,
    allowed,
    called_by_others,
    coming_back,
    core_rules,
    gone_by_wide_hosts_alone,
    hours_of,
    public_ways,
    rules_of,
    support_of,
    wide_hosts,
)
from aegisflux.domain.segment.tuples import tuples_of


@dataclass(frozen=True)
class Mined:
    """Groups and rules of a window.

    groups: of every actor; hosts first, then servers outside of the fleet and clients outside that came
            back to what is not public; ANYONE who is neither
    wide:   hosts that look like a scanner or an intruder, whose own ways were not learned
    """

    groups: Int
    hosts: int
    rules: tuple[Rule, ...]
    core: tuple[CoreService, ...]
    wide: tuple[int, ...]

    @property
    def proposed(self) -> tuple[Rule, ...]:
        """Rules that are not held back."""
        return tuple(rule for rule in self.rules if not rule.held)

    def allows(self, client: Int, server: Int, proto: Int, port: Int) -> NDArray[np.bool_]:
        """Which of these tuples the proposed rules allow."""
        return allowed(self.proposed, self.groups, self.hosts, client, server, proto, port)


def mine(flows: Flows, hosts: int, actors: int, labels: Int | None = None, cut: float = CUT) -> Mined:
    """Groups and rules; actors below `hosts` are hosts of the fleet, the rest addresses outside of it.

    labels: of each host, hosts with one label are one group, with different labels never; -1: none
    """
    tuples = tuples_of(flows)
    core = core_services(tuples, hosts)
    by_core, of_core = core_rows(tuples, core, "client"), core_rows(tuples, core, "server")
    lifted = by_core | of_core

    def grouped(rows: NDArray[np.bool_]) -> Int:
        some = tuples.where(rows)
        groups = np.full(actors, ANYONE, np.int32)
        groups[:hosts] = group(features_of(some, hosts, of_core[rows], by_core[rows]), labels, cut)
        return group_servers_outside(some, groups, hosts)

    groups = grouped(np.ones(len(tuples), bool))
    wide = wide_hosts(tuples, groups, hosts, lifted)
    if len(wide):
        groups = grouped(called_by_others(tuples, wide))
    covered = (of_core & (tuples.client < hosts)) | (by_core & (tuples.server < hosts))
    hours = hours_of(flows, tuples)
    public = public_ways(tuples, groups, hosts, covered)
    named = (coming_back(tuples, groups, hosts, hours) & ~public) | by_core
    groups = group_clients_outside(tuples.where(named), groups, hosts)
    rest, anyone = tuples.where(~covered), (tuples.client >= hosts) & ~named
    support = support_of(rest, groups, anyone[~covered], hours[:, ~covered])
    alone = gone_by_wide_hosts_alone(rest, support, wide)
    rules = core_rules(core, groups, tuples, hosts) + rules_of(support, alone, _fleets(groups, hosts))
    return Mined(groups, hosts, rules, core, tuple(wide.tolist()))


def _fleets(groups: Int, hosts: int) -> int:
    """The number of the fleet's groups; those outside come after."""
    return int(groups[:hosts].max(initial=-1)) + 1
