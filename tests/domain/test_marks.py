"""Sets of sequences, against Python's own sets."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.marks import Range, Seen, ranges_of, text_of

NUMBERS = st.integers(1, 60)
RANGES = st.lists(st.tuples(NUMBERS, st.integers(1, 8)).map(lambda p: (p[0], p[0] + p[1])), max_size=20)


@given(RANGES)
def test_it_is_the_set_of_what_was_added(ranges):
    seen, expected = Seen(), set()
    for start, end in ranges:
        seen.add(start, end)
        expected |= set(range(start, end))
    assert {n for n in range(80) if n in seen} == expected
    assert seen.high == max(expected, default=0)
    found = seen.ranges
    assert all(a.end < b.start for a, b in pairwise(found))
    assert all(a.start < a.end for a in found)


@given(st.sets(NUMBERS))
def test_ranges_of_rising_sequences_are_those_sequences(numbers):
    found = ranges_of(sorted(numbers))
    assert [n for start, end in found for n in range(start, end)] == sorted(numbers)
    assert Seen(found).ranges == tuple(found)


@given(RANGES)
def test_a_copy_is_its_own(ranges):
    seen = Seen()
    for start, end in ranges:
        seen.add(start, end)
    copy, before = seen.copy(), seen.ranges
    copy.add(100, 200)
    assert seen.ranges == before


def test_it_is_written_as_postgresql_writes_it():
    assert text_of(ranges_of([1, 2, 5])) == "{[1,3),[5,6)}"
    assert text_of([]) == "{}"


def test_the_lowest_gaps_are_closed_when_there_are_too_many():
    seen = Seen(Range(n, n + 1) for n in range(1, 31, 2))
    assert seen.copy().close(14) == []
    closed = seen.close(10)
    assert closed == [Range(n, n + 1) for n in range(2, 20, 2)]
    assert seen.ranges == (Range(1, 20), *(Range(n, n + 1) for n in range(21, 31, 2)))
    assert all(n in seen for n in range(1, 20))
    assert 20 not in seen
