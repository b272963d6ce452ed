"""How well mining finds the truth of a synthetic fleet, and that community detection would not."""

from collections import Counter

import networkx as nx
import numpy as np

from aegisflux.domain.segment.fleets import Fleet, Plan, make
from aegisflux.domain.segment.flows import pair_keys
from aegisflux.domain.segment.forecast import forecast
from aegisflux.domain.segment.mine import Mined, mine
from aegisflux.domain.segment.propose import Actor, Recorded
from aegisflux.domain.segment.rules import ANYONE, FLEET
from aegisflux.domain.segment.stability import adjusted_rand

MOST_COMMUNITY_ARI = 0.4  # a fleet counts only where community detection does not do better
RESOLUTIONS = (1.0, 2.0, 5.0, 10.0, 20.0)


def community_ari(fleet: Fleet) -> float:
    """The best that Louvain does at any of the resolutions, on calls between hosts, counted and not."""
    graph = nx.Graph()
    flows = fleet.window
    inside = (flows.client < fleet.hosts) & (flows.server < fleet.hosts)
    ends = np.sort(np.stack((flows.client[inside], flows.server[inside])), axis=0)
    graph.add_nodes_from(range(fleet.hosts))
    for (a, b), n in Counter(zip(*ends.tolist(), strict=True)).items():
        graph.add_edge(a, b, weight=n)
    best = 0.0
    for resolution in RESOLUTIONS:
        for weight in ("weight", None):
            found = nx.community.louvain_communities(graph, weight=weight, resolution=resolution, seed=0)
            label = {host: number for number, hosts in enumerate(found) for host in hosts}
            labels = [label[host] for host in range(fleet.hosts)]
            best = max(best, adjusted_rand(labels, fleet.role[: fleet.hosts].tolist()))
    return best


def fleets(plan: Plan, seeds: int, first: int = 0):
    """(seed, fleet, the ARI of community detection) of the first seeds on which it stays low enough."""
    seed = first
    while seeds:
        fleet = make(plan, seed)
        community = community_ari(fleet)
        if community <= MOST_COMMUNITY_ARI:
            seeds -= 1
            yield seed, fleet, community
        seed += 1


def mined(fleet: Fleet) -> Mined:
    return mine(fleet.window, fleet.hosts, len(fleet.role))


def recorded(fleet: Fleet) -> Recorded:
    """As the segmenter gets it: nothing is known of any service."""
    hosts = [Actor(host=f"host-{n}") for n in range(fleet.hosts)]
    outside = [Actor(address=f"address {n}") for n in range(fleet.hosts, len(fleet.role))]
    programs = tuple(f"program {n}" for n in range(len(fleet.links)))
    return Recorded((*hosts, *outside), fleet.hosts, fleet.window, programs)


def grouping_ari(fleet: Fleet, found: Mined) -> float:
    return adjusted_rand(found.groups[: fleet.hosts].tolist(), fleet.role[: fleet.hosts].tolist())


def cover_later(fleet: Fleet, found: Mined) -> float:
    """The share of the flows of the days after the window that the rules allow."""
    later = fleet.later
    return float(found.allows(later.client, later.server, later.proto, later.port).mean())


def forecast_of(fleet: Fleet, found: Mined):
    """What a proposal of the window says of later flows."""
    flows = fleet.window
    return forecast(flows, found, found.allows(flows.client, flows.server, flows.proto, flows.port))


def allowed_keys(fleet: Fleet, found: Mined):
    """Keys of all tuples that the proposed rules allow, between all actors there are."""
    everyone = np.arange(len(fleet.role))
    members = {g: everyone[found.groups == g] for g in set(found.groups.tolist())}
    members[FLEET] = everyone[: fleet.hosts]
    members[ANYONE] = everyone[fleet.hosts :]
    keys = [pair_keys(members[r.client], members[r.server], r.proto, r.port) for r in found.proposed]
    return np.unique(np.concatenate(keys))


def over_permission(fleet: Fleet, allowed) -> float:
    """The share of the allowed tuples that the truth does not hold."""
    return float((~np.isin(allowed, fleet.truth())).mean())
