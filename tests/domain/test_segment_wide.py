"""Who is set aside: hosts that probe, in a fleet of any size; and who is not, however many it calls."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.segment.flows import HOURS, Flows
from aegisflux.domain.segment.mine import mine
from aegisflux.domain.segment.propose import Actor, Recorded, propose
from aegisflux.domain.segment.rules import days_apart
from tests.support.windows import window

TCP = 6
PORTS = (22, 23, 445, 3389, 8080, 9200)
WEEK, SIZES = range(5), (8, 12, 20, 40, 80)


def fleet(hosts, *calls, labels=True):
    """Each host is a service of its own, or of none that is known, and calls the next; besides that these
    (clients, servers, ports, days)."""
    calls = [((n,), ((n + 1) % hosts,), (5000 + n,), WEEK) for n in range(hosts)] + list(calls)
    actors = tuple(Actor(f"h{n}", f"s{n}" if labels else "") for n in range(hosts))
    return Recorded(actors, hosts, window(calls))


@pytest.mark.parametrize("labels", [True, False], ids=["services", "unknown"])
@pytest.mark.parametrize("ports", [PORTS, PORTS[:3]], ids=["six", "three"])
@pytest.mark.parametrize("hosts", SIZES)
def test_a_scanner_teaches_nothing_in_a_fleet_of_any_size(hosts, ports, labels):
    found = propose(fleet(hosts, ((1,), range(hosts), ports, range(3)), labels=labels))
    name = "s1@h1" if labels else "h1"
    assert found.left_out == {name: "calls far more groups or ports than others do"}
    own = [rule for rule in found.rules if rule.port in PORTS]
    assert own
    assert {rule.held for rule in own} == {"wide_host"}
    usual, scans = 5 * hosts, 3 * len(ports) * (hosts - 1)
    assert found.coverage == pytest.approx((usual - 5) / (usual + scans)), "nor what it alone does usually"


@pytest.mark.parametrize("hosts", SIZES)
def test_two_scanners_do_not_vouch_for_each_other(hosts):
    found = propose(fleet(hosts, ((1, 4), range(hosts), PORTS, range(3))))
    assert set(found.left_out) == {"s1@h1", "s4@h4"}
    assert all(rule.held == "wide_host" for rule in found.rules if rule.port in PORTS)


@pytest.mark.parametrize("hosts", SIZES)
def test_a_scanner_of_other_ports_on_each_host_is_found(hosts):
    calls = [((1,), (n,), (6000 + 10 * n, 6001 + 10 * n, 6002 + 10 * n), WEEK) for n in range(hosts)]
    assert set(propose(fleet(hosts, *calls)).left_out) == {"s1@h1"}


@pytest.mark.parametrize("ports", [(22,), (9100,), (9100, 9256)], ids=["bastion", "scraper", "monitoring"])
@pytest.mark.parametrize("hosts", SIZES)
def test_who_visits_everybody_on_a_port_or_two_is_a_core_service(hosts, ports):
    found = propose(fleet(hosts, ((1,), range(hosts), ports, WEEK)))
    assert found.left_out == {}
    assert [(r.client, r.server, r.port, r.kind, r.held) for r in found.review] == [
        ("s1", "fleet", port, "core", "") for port in ports
    ]


@pytest.mark.parametrize(
    ("servers", "ports"),
    [
        ((2, 3, 4, 5), PORTS),
        (range(2, 8), (80, 443)),
        ((3,), range(100, 140)),
    ],
    ids=["few_targets", "gateway", "one_target"],
)
@pytest.mark.parametrize("hosts", SIZES)
def test_an_ordinary_client_is_learned(hosts, servers, ports):
    found = propose(fleet(hosts, ((1,), servers, ports, (0, 2, 4))))
    assert found.left_out == {}
    assert not [rule for rule in found.rules if rule.held]


def test_a_controller_of_many_hosts_of_one_role_is_learned():
    """Seven nodes, all alike; one host calls each on four ports, and nobody else does."""
    nodes = range(1, 8)
    rows = [(day * HOURS, 0, n, TCP, port, 1, -1) for day in WEEK for n in nodes for port in (1, 2, 3, 4)]
    flows = Flows(*(np.array(c, np.int32) for c in zip(*rows, strict=True)))
    found = mine(flows, 8, 8)
    assert (found.wide, {rule.held for rule in found.rules}) == ((), {""})


def test_two_gateways_of_one_role_confirm_each_other():
    """Whatever a role is for, what two of its hosts do is not one intruder's."""
    found = fleet(12, ((1, 2), range(3, 12), PORTS, WEEK))
    actors = tuple(Actor(a.host, "gate" if a.host in ("h1", "h2") else a.service) for a in found.actors)
    assert propose(Recorded(actors, 12, found.flows)).left_out == {}


@pytest.mark.parametrize(
    ("hours", "days", "held"),
    [
        ((23, 24), 1, "few_days"),
        ((20, 22, 23, 24, 26, 31), 1, "few_days"),
        ((23, 34), 1, "few_days"),
        ((23, 35), 2, ""),
        ((17, 33), 2, ""),
        ((0, 24), 2, ""),
        ((23, 47, 48), 2, ""),
        ((23, 47, 59), 3, ""),
        ((0, 120), 2, ""),
        ((5, 6, 7), 1, "few_days"),
    ],
)
def test_a_burst_over_midnight_is_one_day(hours, days, held):
    rows = [(hour, client, 2, TCP, 31337, 1, -1) for hour in hours for client in (0, 1)]
    actors = (Actor("w1", "web"), Actor("w2", "web"), Actor("d1", "db"))
    flows = Flows(*(np.array(c, np.int32) for c in zip(*rows, strict=True)))
    (rule,) = propose(Recorded(actors, 3, flows)).rules
    assert (rule.days, rule.held) == (days, held)


HOUR = st.integers(0, 5 * HOURS - 1)


def counted(hours):
    days = sum({1 << (hour // HOURS) for hour in hours})
    ends = (np.array([end], np.int32) for end in (min(hours), max(hours)))
    return int(days_apart(np.array([days], np.uint64), *ends)[0])


@given(st.sets(HOUR, min_size=1, max_size=20))
def test_days_that_count_are_no_more_than_those_it_was_seen_on(hours):
    assert 1 <= counted(hours) <= len({hour // HOURS for hour in hours})
    if max(hours) - min(hours) < HOURS // 2:
        assert counted(hours) == 1


@given(st.integers(6, 17), st.lists(st.integers(-6, 6), min_size=1, max_size=5))
def test_who_comes_daily_at_about_one_time_comes_on_every_day(usual, jitter):
    assert counted({day * HOURS + usual + late for day, late in enumerate(jitter)}) == len(jitter)
