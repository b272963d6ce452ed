"""One identity, several processes: a restart is no second agent, however its answers are delivered."""

import pytest

from aegisflux.domain.runs import MAX_EARLIER, Run, Runs, answered

A, A2, B = Run("boot-a", 10), Run("boot-a", 20), Run("boot-b", 10)
TRAVEL = 0.1


def after(*answers, skew=None):
    """What is known when these came, one each second: a process, or with the second in which it was sent."""
    known = Runs()
    for at, answer in enumerate(answers, 100):
        run, sent = answer if isinstance(answer, tuple) else (answer, at)
        known = answered(known, run, sent - TRAVEL + (skew or {}).get(run, 0), at)
    return known


@pytest.mark.parametrize("skew", [{}, {A: 3600, A2: 3600}, {B: 3600}, {B: -3600}], ids=str)
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
def test_two_are_alive_when_one_answers_after_another_began_to(runs, clashed_at, skew):
    known = after(*runs, skew=skew)
    assert (known.current, known.clashed_at) == (runs[-1], clashed_at)
    assert known.clashes(clashed_at + 60, 60) == (clashed_at > 0)
    assert not known.clashes(clashed_at + 61, 60)


@pytest.mark.parametrize("skew", [{}, {A: 3600, A2: 3600}, {B: 3600}, {B: -3600}], ids=str)
@pytest.mark.parametrize(
    "answers",
    [
        (A, B, (A, 100), B),
        (A, A2, (A, 100), (A2, 101), A2),
        (A, A, B, (A, 100), (A, 101), (B, 102), B),
        (A, (B, 101), (A, 100.5), B),
        (A, (A2, 101), (A, 100.5), A2, A2),
        ((A2, 100), (A, 99), A2, A2),
    ],
)
def test_an_answer_that_comes_again_or_late_is_none_of_a_living_process(answers, skew):
    known = after(*answers, skew=skew)
    assert (known.current, known.clashed_at) == (answers[-1], 0)


def test_what_is_delivered_again_changes_nothing():
    known = after(A, B, A)
    for run, sent in ((A, 100), (B, 101), (A, 102)):
        assert answered(known, run, sent - TRAVEL, 110) is known


def test_what_is_remembered_is_bounded():
    known = after(*(Run("boot", n) for n in range(100)))
    assert len(known.earlier) == MAX_EARLIER
    assert known.clashed_at == 0
