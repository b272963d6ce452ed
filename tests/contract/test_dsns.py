"""URLs of databases for another user, and for nobody."""

import pytest

from aegisflux.adapters.store.dsns import anonymous, as_user

URLS = {
    "postgresql://own:pw@db.example:5433/flux?sslmode=verify-full": (
        "postgresql://db.example:5433/flux?sslmode=verify-full",
        "postgresql://r:a%2Fb%40c@db.example:5433/flux?sslmode=verify-full",
    ),
    "postgres://own@[::1]/flux": ("postgres://[::1]/flux", "postgres://r:a%2Fb%40c@[::1]/flux"),
    "postgresql://own:pw@/flux?host=/run/pg&port=5432": (
        "postgresql:///flux?host=%2Frun%2Fpg&port=5432",
        "postgresql://r:a%2Fb%40c@/flux?host=%2Frun%2Fpg&port=5432",
    ),
    "postgresql://db/flux?user=own&password=pw&passfile=/x": (
        "postgresql://db/flux",
        "postgresql://r:a%2Fb%40c@db/flux",
    ),
    "postgresql://a,b/flux": ("postgresql://a,b/flux", "postgresql://r:a%2Fb%40c@a,b/flux"),
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_for_another_user_has_nothing_of_the_first(url):
    nobody, other = URLS[url]
    assert anonymous(url) == nobody
    assert as_user(url, "r", "a/b@c") == other
    assert "pw" not in nobody + other
    assert "own" not in nobody + other
