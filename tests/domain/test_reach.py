"""Who reaches whom: small towns drawn by hand, and random ones against the shortest ways by matrices."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.reach import MAX_HOPS, Hop, Reached, exposed, reaching


def hop(start, end, port=443, **more):
    return Hop(start, end, 6, port, **more)


A_B, B_C, C_D, A_C = hop("a", "b"), hop("b", "c"), hop("c", "d"), hop("a", "c", 22)
CHAIN = (A_B, B_C, C_D)


def actors(found):
    return [(one.actor, one.hops) for one in found]


def test_everybody_on_the_way_reaches_the_end_nearest_first():
    assert reaching("d", CHAIN) == (Reached("c", 1, C_D), Reached("b", 2, B_C), Reached("a", 3, A_B))


def test_everybody_behind_the_start_is_exposed_nearest_first():
    assert exposed(["a"], CHAIN) == (Reached("b", 1, A_B), Reached("c", 2, B_C), Reached("d", 3, C_D))


@pytest.mark.parametrize(
    ("target", "edges", "found"),
    [
        ("a", CHAIN, []),
        ("x", CHAIN, []),
        ("d", (), []),
        ("c", (*CHAIN, A_C), [("a", 1), ("b", 1)]),
        ("c", (*CHAIN, hop("d", "a")), [("b", 1), ("a", 2), ("d", 3)]),
        ("a", (hop("a", "a"),), []),
    ],
    ids=["nobody", "unknown", "no edges", "shortcut", "circle", "itself"],
)
def test_who_reaches(target, edges, found):
    assert actors(reaching(target, edges)) == found


@pytest.mark.parametrize(("most", "found"), [(0, []), (1, ["c"]), (2, ["c", "b"]), (3, ["c", "b", "a"])])
def test_no_way_is_longer_than_asked(most, found):
    assert [one.actor for one in reaching("d", CHAIN, most)] == found


def test_ways_end_after_the_most_hops():
    line = [hop(f"n{n:02}", f"n{n + 1:02}") for n in range(20)]
    assert len(exposed(["n00"], line)) == MAX_HOPS
    assert len(reaching("n20", line)) == MAX_HOPS


def test_of_equally_short_ways_the_one_that_was_seen_is_told():
    could = hop("a", "b", 1, seen=False)
    assert reaching("b", (could, A_B))[0].by == A_B
    assert exposed(["a"], (could, A_B))[0].by == A_B
    assert reaching("b", (could,))[0].by == could


def test_from_several_starts_the_nearest_counts_and_starts_are_not_exposed():
    found = exposed(["a", "c"], (*CHAIN, hop("c", "a")))
    assert found == (Reached("b", 1, A_B), Reached("d", 1, C_D))


NAMES = "abcdef"
EDGES = st.lists(
    st.builds(hop, st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(1, 3)), max_size=15
)


def distances(edges, most):
    """Hops of the shortest ways, by Floyd and Warshall."""
    far = {(a, b): 0 if a == b else most + 1 for a, b in product(NAMES, repeat=2)}
    for edge in edges:
        far[edge.start, edge.end] = min(far[edge.start, edge.end], 1)
    for via, a, b in product(NAMES, repeat=3):
        far[a, b] = min(far[a, b], far[a, via] + far[via, b])
    return far


@given(EDGES, st.sampled_from(NAMES), st.integers(0, 4))
def test_hops_are_those_of_a_shortest_way(edges, target, most):
    far = distances(edges, most)
    expected = {a: far[a, target] for a in NAMES if a != target and far[a, target] <= most}
    found = reaching(target, edges, most)
    assert {one.actor: one.hops for one in found} == expected
    assert all(one.by.start == one.actor and one.by in edges for one in found)
    assert all(one.hops == 1 + far[one.by.end, target] for one in found)


@given(EDGES, st.sets(st.sampled_from(NAMES), max_size=3), st.integers(0, 4))
def test_what_is_exposed_is_what_each_start_reaches(edges, starts, most):
    far = distances(edges, most)
    nearest = {b: min((far[a, b] for a in starts), default=most + 1) for b in NAMES if b not in starts}
    found = exposed(starts, edges, most)
    assert {one.actor: one.hops for one in found} == {b: n for b, n in nearest.items() if n <= most}
    assert all(one.by.end == one.actor and one.by in edges for one in found)
    assert list(found) == sorted(found, key=lambda one: (one.hops, one.actor))


@given(EDGES)
def test_the_order_of_the_edges_does_not_matter(edges):
    assert reaching("a", edges) == reaching("a", edges[::-1])
    assert exposed(["a"], edges) == exposed(["a"], edges[::-1])
