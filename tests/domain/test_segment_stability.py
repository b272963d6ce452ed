"""The adjusted Rand index, and names that stay."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.segment.stability import adjusted_rand, kept_names

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30)


@given(LABELS)
def test_it_is_symmetric_and_knows_no_names(pairs):
    one, two = ([pair[side] for pair in pairs] for side in (0, 1))
    assert adjusted_rand(one, two) == pytest.approx(adjusted_rand(two, one))
    assert adjusted_rand(one, [7 - label for label in one]) == 1.0
    assert adjusted_rand(one, two) <= 1.0


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 2], 0.5714),  # 4/7, by hand: together 1, ours 2, theirs 1, of 6
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),
        ([0, 1, 2], [0, 1, 2], 1.0),
        ([0], [5], 1.0),
        ([], [], 1.0),
    ],
)
def test_known_values(one, two, expected):
    assert adjusted_rand(one, two) == pytest.approx(expected, abs=1e-4)


def names(groups, before):
    fresh = (f"role-{number}" for number in count(1))
    return kept_names([frozenset(g) for g in groups], {n: frozenset(m) for n, m in before.items()}, fresh)


@pytest.mark.parametrize(
    ("groups", "before", "expected"),
    [
        (["ab", "cd"], {}, ("role-1", "role-2")),
        (["cd", "ab"], {"role-1": "ab", "role-2": "cd"}, ("role-2", "role-1")),
        (["abc", "de"], {"web": "ab", "role-1": "xyz"}, ("web", "role-2")),
        (["abcd"], {"web": "ab", "db": "cd"}, ("db",)),
        (["ab", "cd"], {"web": "abcd"}, ("web", "role-1")),
        (["abcdef"], {"web": "ab"}, ("role-1",)),
    ],
)
def test_a_group_keeps_its_name_while_most_of_it_stays(groups, before, expected):
    assert names(groups, before) == expected
