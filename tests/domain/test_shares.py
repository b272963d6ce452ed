"""The shares of the map `own` add up, whatever users do."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.adapters.datapath.bpf.shares import (
    ENTRIES,
    MARKS_EACH,
    MOST,
    MOST_NAMESPACES,
    Share,
    admitted,
    room,
)

OBJECTS = Path(__file__).parents[2] / "bpf" / "objects.h"


def test_the_map_is_as_large_as_the_shares_believe():
    (size,) = re.findall(
        r"max_entries, (\d+)\);\s+__uint\(key_size, sizeof\(struct own_key\)", OBJECTS.read_text()
    )
    assert int(size) == ENTRIES


@given(st.lists(st.integers(0, 2 * MOST["root"]), max_size=MOST_NAMESPACES["root"]))
def test_all_that_is_written_has_room_whatever_the_namespaces_want(wanted):
    used = 0
    for entries in wanted:
        if entries + MARKS_EACH <= room("root", used):
            used += entries + MARKS_EACH
    users = MOST_NAMESPACES["users"] * room("users", 0)
    assert used + users + room("host", users) <= ENTRIES
    assert room("host", used) == MOST["host"] + MARKS_EACH
    assert room("users", used) == MOST["users"] + MARKS_EACH


@pytest.mark.parametrize("share", ["root", "users"])
def test_who_makes_more_namespaces_pushes_nobody_out(share: Share):
    most, many = MOST_NAMESPACES[share], 3 * MOST_NAMESPACES[share]
    everyone = [(0, "host"), *((1 + i, share) for i in range(many)), (9999, "root"), (9998, "users")]
    known = {1 + i for i in range(2 * most, many)} - {many} | {9999, 9998}
    taken, left = admitted(everyone, known)
    assert {0, 9999, 9998} | known <= taken
    assert left == {share: many + 1 - most}
