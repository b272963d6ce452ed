"""A window bounds what is on its way, stops nobody within its share, and closes for who misuses it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.shares import Share
from aegisflux.domain.windows import BARRED_SECONDS, Asking, Windows

ASKING = Asking(window=8, share=Share(rate=50.0, burst=100.0))


def served(*names, asking=ASKING):
    windows = Windows(asking)
    for name in names:
        windows.add(name)
    return windows


def test_who_is_not_served_has_no_window():
    windows = served("web1")
    windows.remove("web1")
    for name in ("web1", "web2"):
        assert windows.open(name, 0.0) == 0
        assert windows.wait(name, 0.0) is None
        assert not windows.is_open(name)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_who_asks_a_few_at_once_always_finds_an_open_window(at_once):
    """2,000 requests, 40 a second: each time one is handled the next one comes."""
    windows, held = served("web1"), 0
    assert windows.open("web1", 0.0) == 8
    for n in range(2000):
        now = n / 40
        assert windows.is_open("web1"), n
        windows.came("web1", now)
        windows.open("web1", now)
        held += 1
        if held == at_once:
            windows.handled("web1")
            held -= 1
            windows.open("web1", now)


def test_a_flood_gets_its_burst_and_then_its_rate():
    windows, got = served("flooder"), 0
    for millisecond in range(10_000):
        now = millisecond / 1000
        for _ in range(windows.open("flooder", now)):
            windows.came("flooder", now)
            windows.handled("flooder")
            got += 1
    assert 590 <= got <= 100 + 50 * 10 + 2 * 8


def test_after_a_misuse_it_is_closed_and_opens_for_one():
    windows = served("web1", "web2")
    windows.open("web1", 0.0)
    windows.came("web1", 0.0)
    windows.misused("web1", 0.0)
    assert windows.open("web2", 0.0) == 8
    assert windows.wait("web1", 1.0) == BARRED_SECONDS - 1.0
    assert windows.open("web1", BARRED_SECONDS - 0.1) == 0
    windows.close_all()  # a reconnect forgives nothing
    windows.add("web1")
    assert windows.open("web1", BARRED_SECONDS - 0.1) == 0
    assert windows.open("web1", BARRED_SECONDS) == 1
    windows.came("web1", BARRED_SECONDS)
    windows.handled("web1")
    assert windows.open("web1", BARRED_SECONDS) == 8


STEPS = st.lists(st.tuples(st.sampled_from(["came", "handled", "misused", "lost", "tick"]), st.floats(0, 40)))


@given(STEPS)
def test_never_more_than_a_window_is_on_its_way_or_held(steps):
    windows, now, way, held = served("web1"), 0.0, 0, 0
    for step, seconds in steps:
        if step == "tick":
            now += seconds
        elif step == "came" and way:
            windows.came("web1", now)
            way, held = way - 1, held + 1
        elif step == "handled" and held:
            windows.handled("web1")
            held -= 1
        elif step == "misused" and held:
            windows.misused("web1", now)
            way, held = 0, held - 1
        elif step == "lost":
            windows.close_all()
            way = 0
        opened = windows.open("web1", now)
        assert not (opened and way)
        way += opened
        assert way + held <= 8
        assert windows.is_open("web1") == (way > 0)
