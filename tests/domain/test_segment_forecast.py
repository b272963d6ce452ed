"""The forecast: what is held back and came again is what will be missed; too short a window gives none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.segment.flows import HOURS, Flows
from aegisflux.domain.segment.forecast import LEAST_DAYS, Forecast, forecast
from aegisflux.domain.segment.mine import Mined

# Actors 0 to 3 are two groups of two; 4 is outside.
MINED = Mined(np.array([0, 0, 1, 1, -1], np.int32), 4, (), (), ())


def flows(*rows):
    """(day, client, server, port), each one record."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * 4
    day, client, server, port = (np.array(column, np.int32) for column in columns)
    ones = np.ones(len(day), np.int32)
    return Flows(day * HOURS, client, server, 6 * ones, port, ones, -ones)


USUAL = [(day, 0, 2, 443) for day in range(LEAST_DAYS)] * 2
CASES = {
    "all is allowed": ([], 0.0, 3 / 10),
    "one flow of one kind is noise": ([(1, 0, 2, 22)], 0.0, 3 / 11),
    "two of one kind": ([(1, 0, 2, 22), (2, 0, 2, 22)], 2 / 12, 2.5 * 2 / 12 + 3 / 12),
    "by another host of the same group": ([(1, 0, 2, 22), (1, 1, 3, 22)], 2 / 12, 2.5 * 2 / 12 + 3 / 12),
    "two kinds, once each": ([(1, 0, 2, 22), (1, 0, 2, 23)], 0.0, 3 / 12),
}


@pytest.mark.parametrize("case", CASES)
def test_what_came_again_and_is_held_back_is_the_forecast(case):
    held, rate, high = CASES[case]
    window = flows(*USUAL, *held)
    allowed = np.arange(len(window)) < len(USUAL)
    assert forecast(window, MINED, allowed) == Forecast(rate, 0.0, pytest.approx(high))


@pytest.mark.parametrize("days", range(LEAST_DAYS))
def test_a_short_window_says_nothing(days):
    window = flows(*((day, 0, 2, 443) for day in range(days)))
    assert forecast(window, MINED, np.ones(days, bool)) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 4), st.integers(1, 3))))
def test_the_interval_holds_the_rate_and_is_a_share(rows):
    window = flows(*USUAL, *rows)
    allowed = np.arange(len(window)) % 3 > 0
    said = forecast(window, MINED, allowed)
    assert 0 <= said.low <= said.rate <= said.high <= 1
