"""A log repeats no line without a count."""

from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain import repeats
from aegisflux.domain.repeats import EACH, WINDOW, Repeats


def test_a_flood_is_written_ten_times_and_counted():
    found = Repeats()
    written = [found.count("x", n / 1000) for n in range(5000)]
    assert written == [0] * EACH + [None] * (5000 - EACH)
    assert found.count("y", 5.0) == 0, "of another kind"
    assert found.count("x", WINDOW) == 5000 - EACH
    assert found.count("x", WINDOW) == 0


def test_what_ends_is_told_once():
    found = Repeats()
    for _ in range(EACH + 7):
        found.count("x", 1.0)
    found.count("y", 1.0)
    assert found.over(WINDOW - 1) == []
    assert found.over(WINDOW + 1) == [("x", 7)]
    assert found.over(3 * WINDOW) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3)), max_size=300))
def test_every_line_is_written_or_counted_once(lines):
    found, now, written, counted = Repeats(), 0.0, 0, 0
    for kind, later in lines:
        now += later
        counted += sum(count for _, count in found.over(now))
        before = found.count(kind, now)
        if before is not None:
            written += 1
            counted += before
    counted += sum(count for _, count in found.over(now + 2 * WINDOW))
    assert written + counted == len(lines)


def test_kinds_are_bounded_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(repeats, "MAX_KINDS", 50)
    found = Repeats()
    for n in range(1000):
        for _ in range(EACH + 1):
            found.count(n, 1.0)
    assert len(found._kinds) == 50
    assert sum(count for _, count in found.over(100.0)) == 1000
