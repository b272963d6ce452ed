"""Groups of hosts: what is alike comes together, whatever the numbers of the hosts are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain.segment.core import core_rows, core_services
from aegisflux.domain.segment.flows import HOURS, Flows
from aegisflux.domain.segment.grouping import Features, features_of, group, likeness
from aegisflux.domain.segment.tuples import tuples_of

TCP = 6
CALL = st.tuples(st.integers(0, 7), st.integers(0, 9), st.sampled_from((80, 443, 5432)))


def flows(calls, days=3):
    """Each call on each of some days; (client, server, port)."""
    rows = [(day * HOURS, *call[:2], TCP, call[2], 1, -1) for call in calls for day in range(days)]
    return Flows(*(np.array(c, np.int32) for c in zip(*rows, strict=True)))


def features(calls, hosts, days=3):
    tuples = tuples_of(flows(calls, days))
    nobody = np.zeros(len(tuples), bool)
    return features_of(tuples, hosts, nobody, nobody)


def partition(groups):
    return {frozenset(np.nonzero(groups == g)[0].tolist()) for g in set(groups.tolist())}


SHOP = [(lb, web, 8080) for lb in (0, 1) for web in (2, 3, 4)]
TWIN = [(lb + 5, web + 5, port) for lb, web, port in SHOP]


def test_two_applications_that_look_alike_are_four_groups():
    groups = group(features(SHOP + TWIN, 10))
    assert partition(groups) == {frozenset(g) for g in ({0, 1}, {2, 3, 4}, {5, 6}, {7, 8, 9})}
    assert groups[0] == 0, "numbered by their first host"


def test_callers_that_stick_to_one_server_are_one_group():
    """No two of the three web hosts share a database; what calls them, and the cache, they have in common."""
    sticky = [(2, 5, 5432), (3, 6, 5432), (4, 7, 5432)]
    cache = [(web, 8, 6379) for web in (2, 3, 4)]
    groups = group(features(SHOP + sticky + cache, 9))
    assert partition(groups) == {frozenset(g) for g in ({0, 1}, {2, 3, 4}, {5, 6, 7}, {8})}


def test_members_of_a_cluster_have_the_same_peers_although_nobody_calls_itself():
    ring = [(a, b, 9300) for a in range(3) for b in range(3) if a != b]
    assert partition(group(features(ring, 4))) == {frozenset({0, 1, 2}), frozenset({3})}


def test_what_was_seen_on_one_day_says_nothing_of_a_role():
    assert partition(group(features(SHOP, 5, days=1))) == {frozenset({h}) for h in range(5)}


def test_who_is_called_from_outside_is_another_role():
    """Hosts 0 and 1 do the same, and 2 and 3; the world, 6, calls 0 and 1."""
    inner = [(host, 4, 8080) for host in range(4)]
    groups = group(features([*inner, (6, 0, 443), (6, 1, 443)], 5))
    assert partition(groups) == {frozenset(g) for g in ({0, 1}, {2, 3}, {4})}


def test_labels_join_and_keep_apart():
    """By themselves 0 and 1 are one group, and 2, 3 and 4."""
    labels = np.array([0, 1, 1, -1, 2, -1], np.int32)
    groups = group(features(SHOP, 6), labels)
    assert groups[1] == groups[2], "one label"
    assert len({groups[0], groups[1], groups[4]}) == 3, "three labels"
    assert partition(group(features(SHOP, 6), np.full(6, -1))) == partition(group(features(SHOP, 6)))


@settings(max_examples=40)
@given(st.lists(CALL, min_size=1, max_size=30), st.lists(st.integers(-1, 3), min_size=8, max_size=8))
def test_a_group_holds_one_label_and_a_label_one_group(calls, labels):
    calls = [call for call in calls if call[0] != call[1]] or [(0, 1, 80)]
    groups = group(_of(calls), np.array(labels, np.int32)).tolist()
    pairs = {(label, of) for label, of in zip(labels, groups, strict=True) if label >= 0}
    assert len(pairs) == len({label for label, _ in pairs}) == len({of for _, of in pairs})


def test_one_host_and_none_are_no_error():
    assert group(features([(0, 1, 80)], 1)).tolist() == [0]
    assert group(features([(0, 1, 80)], 0)).tolist() == []


@given(st.lists(CALL, min_size=1, max_size=40), st.permutations(range(8)))
def test_numbers_of_hosts_do_not_matter(calls, renumbered):
    """Hosts are 0 to 7; 8 and 9 lie outside."""
    calls = [call for call in calls if call[0] != call[1]]
    if not calls:
        return
    other = [(renumbered[c], renumbered[s] if s < 8 else s, port) for c, s, port in calls]
    one, two = likeness(_of(calls)), likeness(_of(other))
    assert np.allclose(one, two[np.ix_(renumbered, renumbered)])
    assert np.array_equal(one, one.T)
    assert ((one >= 0) & (one <= 1)).all()


def _of(calls) -> Features:
    return features(calls, 8)


def test_core_services_are_found_by_whom_they_touch_and_lifted():
    dns = [(host, 10, 53) for host in range(10)]
    backup = [(11, host, 873) for host in range(10)]
    tuples = tuples_of(flows(SHOP + TWIN + dns + backup))
    core = core_services(tuples, 12)
    assert [(c.side, c.port, c.actors, c.touched) for c in core] == [
        ("server", 53, (10,), 10),
        ("client", 873, (11,), 10),
    ]
    of, by = core_rows(tuples, core, "server"), core_rows(tuples, core, "client")
    assert set(tuples.port[of].tolist()) == {53}
    assert set(tuples.port[by].tolist()) == {873}
    groups = group(features_of(tuples, 12, of, by))
    assert partition(groups) == {frozenset(g) for g in ({0, 1}, {2, 3, 4}, {5, 6}, {7, 8, 9}, {10}, {11})}
