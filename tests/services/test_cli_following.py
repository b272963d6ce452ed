"""`-f`: every row once, also those that come late, and over a restart of what answers."""

from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from aegisflux.cli.following import AGAIN_SECONDS, following
from aegisflux.domain.errors import Unavailable

START = datetime(2026, 11, 26, 12, tzinfo=UTC)


class Store:
    """Rows that answer as the API does."""

    def __init__(self, limit=100):
        self.rows, self.away, self.limit, self.ticks = [], False, limit, count()
        self.now = START + timedelta(minutes=5)

    def put(self, *rows):
        """Rows of (source, seq, seconds after the start)."""
        self.rows += [
            {"source": s, "seq": n, "time": (START + timedelta(seconds=at)).isoformat()} for s, n, at in rows
        ]

    def ask(self, query):
        if self.away:
            raise Unavailable("away")
        since, after = datetime.fromisoformat(query["since"]), query.get("cursor")
        found = sorted((datetime.fromisoformat(r["time"]), r["source"], r["seq"]) for r in self.rows)
        found = [r for r in found if r[0] >= since and (after is None or r > after)][: self.limit]
        items = [{"time": at.isoformat(), "source": s, "seq": n} for at, s, n in found]
        return {"items": items, "next_cursor": found[-1] if found else after}

    def follow(self):
        """Parts; the clock goes on by so much with each look that every part looks for what is late."""
        query = {"since": START.isoformat(), "limit": self.limit}
        parts = following(
            self.ask, query, lambda: next(self.ticks) * AGAIN_SECONDS, lambda _: None, lambda: self.now
        )
        for part in parts:
            yield [(row["source"], row["seq"]) for row in part]


def test_what_comes_late_is_shown_and_nothing_twice():
    store = Store()
    parts = store.follow()
    store.put((1, 1, 10), (1, 2, 20))
    assert next(parts) == [(1, 1), (1, 2)]
    store.put((2, 1, 12), (1, 3, 21))
    assert sorted(next(parts)) == [(1, 3), (2, 1)]
    assert next(parts) == []


def test_a_row_of_the_future_hides_nothing():
    store = Store()
    parts = store.follow()
    store.put((1, 1, 86_000), (1, 2, 299))
    assert sorted(next(parts)) == [(1, 1), (1, 2)]
    store.put((2, 1, 298), (2, 2, 300))
    assert next(parts) == [(2, 1), (2, 2)]
    assert next(parts) == []


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_each_row_is_shown_once_however_small_the_pages(limit):
    store, shown = Store(limit), []
    parts = store.follow()
    for seq in range(1, 40):
        store.put((1, seq, seq), (2, seq, seq - 5 if seq > 5 else 0))
        shown += next(parts)
    for _ in range(100):
        shown += next(parts)
    assert sorted(shown) == sorted((s, n) for s in (1, 2) for n in range(1, 40))


def test_it_goes_on_over_a_restart_and_says_so_once(capsys):
    store = Store()
    parts = store.follow()
    store.put((1, 1, 1))
    assert next(parts) == [(1, 1)]
    store.away = True
    assert [next(parts) for _ in range(3)] == [[], [], []]
    store.away = False
    store.put((1, 2, 2))
    assert next(parts) == [(1, 2)]
    assert capsys.readouterr().err.count("away") == 1


def test_nobody_there_at_first_is_an_error():
    store = Store()
    store.away = True
    with pytest.raises(Unavailable):
        next(store.follow())
