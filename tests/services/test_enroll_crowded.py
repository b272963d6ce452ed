"""A host that enrols while many do asks again; what is refused it does not ask twice."""

import pytest

from aegisflux.agent import enroll
from aegisflux.domain.errors import Refused, Unavailable
from support.http_answers import OK, answering, problem


@pytest.fixture
def pauses(monkeypatch):
    found: list[float] = []
    monkeypatch.setattr(enroll.time, "sleep", found.append)
    return found


@pytest.mark.parametrize("crowded", [problem(429), problem(503)])
def test_it_asks_again_and_pauses_longer_each_time(pauses, crowded):
    with answering(crowded, crowded, OK) as url:
        assert enroll._call(url, None, b"{}") == b"ok"
    assert len(pauses) == 2
    assert 0.5 <= pauses[0] <= 1 <= pauses[1] <= 2


def test_it_gives_up_in_the_end(pauses):
    with answering(*[problem(429)] * enroll.TRIES) as url, pytest.raises(Unavailable, match="429"):
        enroll._call(url, None, b"{}")
    assert len(pauses) == enroll.TRIES - 1
    assert sum(pauses) < 60


@pytest.mark.parametrize(("status", "kind"), [(403, Refused), (409, Refused), (500, Unavailable)])
def test_what_would_be_the_same_again_is_asked_once(pauses, status, kind):
    with answering(problem(status)) as url, pytest.raises(kind):
        enroll._call(url, None, b"{}")
    assert not pauses


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0), ("", 0), ("0", 0), ("1", 1), (" 90 ", 90), ("3600", 3600), ("3601", 3600),
        ("9" * 400, 3600), ("-1", 0), ("1.5", 0), ("1 s", 0), ("soon", 0), ("\u0661", 0), ("nan", 0),
        ("inf", 0), ("0x10", 0), ("1,2", 0),
        ("Thu, 01 Jan 1970 00:20:00 GMT", 200), ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600), ("Thu, 01 Jan 1970 00:20:00 -0000", 200),
        ("Thu, 99 Jan 1970 00:00:00 GMT", 0), ("Thu, 01 Jan 99999999999 00:00:00 GMT", 0),
    ],
)  # fmt: skip
def test_when_to_ask_again_is_seconds_or_a_date(header, seconds):
    assert enroll.retry_after(header, now=1000.0) == seconds


def test_it_waits_as_long_as_the_control_plane_says(pauses):
    with answering(problem(503, "Retry-After: 20"), OK) as url:
        assert enroll._call(url, None, b"{}") == b"ok"
    assert 20 <= pauses[0] <= 21


def test_it_does_not_wait_longer_than_somebody_looks_on(pauses):
    with answering(problem(429, "Retry-After: 900")) as url, pytest.raises(Unavailable, match="in 900 s"):
        enroll._call(url, None, b"{}")
    assert not pauses
