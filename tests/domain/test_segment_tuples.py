"""Flow records summed up: nothing is lost, and their order does not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.segment.flows import MOST_ACTORS, Flows
from aegisflux.domain.segment.tuples import tuples_of

ROW = st.tuples(
    st.integers(0, 99),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from((6, 17)),
    st.sampled_from((53, 443, 65_535)),
    st.integers(1, 9),
)


def flows(rows):
    columns = [np.array(column, np.int32) for column in zip(*rows, strict=True)] or [
        np.empty(0, np.int32)
    ] * 6
    return Flows(*columns, np.full(len(rows), -1, np.int32))


@given(st.lists(ROW, max_size=60))
def test_each_tuple_once_with_all_that_supports_it(rows):
    found = tuples_of(flows(rows))
    expected = {}
    for hour, *key, count in rows:
        records, connections, days = expected.get(tuple(key), (0, 0, set()))
        expected[tuple(key)] = (records + 1, connections + count, days | {hour // 24})
    got = {
        (int(found.client[i]), int(found.server[i]), int(found.proto[i]), int(found.port[i])): (
            int(found.records[i]),
            int(found.connections[i]),
            {d for d in range(8) if int(found.days[i]) >> d & 1},
        )
        for i in range(len(found))
    }
    assert got == expected


@given(st.lists(ROW, min_size=1, max_size=40), st.randoms())
def test_the_order_of_records_does_not_matter(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, two = tuples_of(flows(rows)), tuples_of(flows(shuffled))
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in one.__slots__)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((63 * 24, 0, 1, 6, 80, 1), "at most 63 days, got 64"),
        ((0, 0, MOST_ACTORS, 6, 80, 1), "at most 1048576 actors, got 1048577"),
    ],
)
def test_what_a_key_cannot_hold_is_refused(row, said):
    with pytest.raises(ValueError, match=said):
        tuples_of(flows([row]))
