"""Which cgroups are bound where more are selected than there is room for."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.room import fitting, listed, shares
from aegisflux.domain.selectors import parse_selector

counts = st.dictionaries(st.integers(0, 9), st.integers(0, 20))


@given(counts, st.integers(0, 100))
def test_shares_are_equal_but_for_what_is_not_wanted(wanted, room):
    found = shares(wanted, room)
    assert sum(found.values()) == min(room, sum(wanted.values()))
    short = [found[who] for who in wanted if found[who] < wanted[who]]
    assert max(short, default=0) - min(short, default=0) <= 1
    assert all(found[who] <= wanted[who] for who in wanted)
    assert all(found[who] <= min(short) + 1 for who in wanted if short)


PODS = {f"pods/{n}": 101 for n in range(9)}
JOBS = {f"jobs/{n}": 102 for n in range(9)}
POSTGRES = {"system.slice/postgres.service": 103}
SELECTORS = {
    101: tuple(map(parse_selector, ("cgroup:pods/*", "cgroup:pods/8"))),
    102: (parse_selector("cgroup:jobs/*"),),
    103: (parse_selector("unit:postgres"),),
    104: (parse_selector("unit:app*"),),
}


@pytest.mark.parametrize(
    ("owned", "most", "bound", "expected"),
    [
        ({**PODS, **POSTGRES}, 2, (), {"pods/8", "system.slice/postgres.service"}),
        ({**PODS, **POSTGRES}, 3, (), {"pods/8", "pods/0", "system.slice/postgres.service"}),
        ({**PODS, **POSTGRES}, 3, {"pods/5"}, {"pods/8", "pods/5", "system.slice/postgres.service"}),
        ({**PODS, **POSTGRES}, 1, (), {"pods/8"}),
        ({**PODS, **JOBS}, 5, (), {"pods/8", "pods/0", "pods/1", "jobs/0", "jobs/1"}),
        ({**PODS, "jobs/1": 102}, 5, (), {"pods/8", "pods/0", "pods/1", "pods/2", "jobs/1"}),
        ({"pods/a/b": 101, "pods/z": 101}, 1, (), {"pods/z"}),
        (PODS, 99, (), set(PODS)),
        (PODS, 0, (), set()),
    ],
)
def test_named_ones_come_first_and_then_an_equal_share(owned, most, bound, expected):
    found = fitting(owned, SELECTORS, most, bound)
    if most == 1 and POSTGRES.keys() <= owned.keys():
        assert len(found) == 1
        assert found <= {"pods/8", *POSTGRES}
    else:
        assert found == expected


@given(st.dictionaries(st.sampled_from([*PODS, *JOBS]), st.sampled_from([101, 102])), st.integers(0, 20))
def test_no_more_is_bound_than_there_is_room_for_and_no_room_is_left_unused(owned, most):
    found = fitting(owned, SELECTORS, most)
    assert found <= owned.keys()
    assert len(found) == min(most, len(owned))
    assert fitting(owned, SELECTORS, most, found) == found, "what is bound stays bound"
    assert set(Counter(owned[path] for path in found)) <= {101, 102}


texts = st.text(max_size=9) | st.text(alphabet="\u20ac", max_size=9)


@given(
    st.dictionaries(st.integers(0, 9), st.lists(texts, max_size=9)), st.integers(0, 9), st.integers(-9, 300)
)
def test_lists_are_cut_to_bytes_and_to_lines(lists, most, room):
    found = listed(lists, most, room)
    assert found.keys() == lists.keys()
    assert all(tuple(lists[who][: len(kept)]) == kept for who, kept in found.items())
    assert all(len(kept) <= most for kept in found.values())
    bare = msgspec.msgpack.encode([[] for _ in found])
    assert len(msgspec.msgpack.encode(list(found.values()))) - len(bare) <= max(0, room)
    if room >= sum(len(line.encode()) + 5 for lines in lists.values() for line in lines):
        assert all(kept == tuple(lists[who][:most]) for who, kept in found.items())
