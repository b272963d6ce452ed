"""Synthetic fleets: the same for the same seed, and true to what they say of themselves."""

import numpy as np
import pytest

from aegisflux.domain.segment.fleets import WORLD, Plan, make
from aegisflux.domain.segment.flows import Flows, tuple_keys

SMALL = Plan(hosts=60, roles=24, records=6000, world=40)


def keys_of(flows: Flows):
    return tuple_keys(flows.client, flows.server, flows.proto, flows.port)


def test_the_same_plan_and_seed_make_the_same_fleet():
    one, two, other = make(SMALL, 7), make(SMALL, 7), make(SMALL, 8)
    assert all(np.array_equal(getattr(one.window, c), getattr(two.window, c)) for c in Flows.__slots__)
    assert not np.array_equal(one.window.client, other.window.client)


@pytest.mark.parametrize("seed", range(3))
def test_what_comes_later_is_true_and_what_intruders_do_is_not(seed):
    fleet = make(Plan(hosts=60, roles=24, records=20_000, poison=0.1, noise=0.02, world=40), seed)
    truth = fleet.truth()
    assert np.isin(keys_of(fleet.later), truth).all()
    assert len(fleet.poison)
    assert not np.isin(fleet.poison, truth).any()
    false = ~np.isin(keys_of(fleet.window), truth)
    assert 0.08 < false.mean() < 0.14, "noise and poison, as planned"
    assert set(fleet.poison.tolist()) <= set(keys_of(fleet.window).tolist())


def test_it_is_as_large_as_planned():
    fleet = make(SMALL, 1)
    assert abs(len(fleet.window) - SMALL.records) < 0.05 * SMALL.records
    assert set(fleet.role[: fleet.hosts].tolist()) == set(range(SMALL.roles)), "each role has a host"
    assert fleet.window.day.max() == SMALL.days - 1
    assert fleet.names[fleet.role[fleet.world]] == WORLD


def test_nobody_calls_itself():
    fleet = make(SMALL, 2)
    assert (fleet.window.client != fleet.window.server).all()


def test_too_few_hosts_are_refused():
    with pytest.raises(ValueError, match="as many hosts: got 24 roles, 10 hosts"):
        make(Plan(hosts=10, roles=24), 0)
