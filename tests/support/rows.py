"""Tables of which some rows are run for each change, and all of them at night."""

from collections.abc import Collection, Iterable

import pytest


def by_day(rows: Iterable[str], day: Collection[str]) -> list:
    """The rows as parameters; those that are not `day`'s run at night (`script/nightly rows`). Raises
    AssertionError for a row of `day` that is none, which would be left out by a slip of the pen.
    """
    rows = list(rows)
    assert set(day) <= set(rows), f"no such row: {set(day) - set(rows)}"
    return [pytest.param(row, marks=() if row in day else pytest.mark.nightly, id=row) for row in rows]
