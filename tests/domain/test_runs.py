"""One identity, several processes: a restart is none of two that live at once."""

import pytest

from aegisflux.domain.runs import MAX_EARLIER, Run, Runs, answered

A, A2, B = Run("boot-a", 10), Run("boot-a", 20), Run("boot-b", 10)


def after(*runs: Run) -> Runs:
    known = Runs()
    for at, run in enumerate(runs, 100):
        known = answered(known, run, at)
    return known


@pytest.mark.parametrize(
    ("runs", "clashed_at"),
    [
        ((A,), 0),
        ((A, A, A), 0),
        ((A, A2), 0),
        ((A, A2, A2), 0),
        ((A, B, B), 0),
        ((A, B, A), 102),
        ((A, A2, A), 102),
        ((A, B, A, B, B), 103),
        ((A, B, A2, B), 103),
    ],
)
def test_two_are_alive_when_one_answers_after_another_began_to(runs, clashed_at):
    known = after(*runs)
    assert (known.current, known.clashed_at) == (runs[-1], clashed_at)
    assert known.clashes(clashed_at + 60, 60) == (clashed_at > 0)
    assert not known.clashes(clashed_at + 61, 60)


def test_what_is_remembered_is_bounded():
    known = after(*(Run("boot", n) for n in range(100)))
    assert len(known.earlier) == MAX_EARLIER
    assert known.clashed_at == 0
