"""A rotation of keys waits for hosts that are online, and for none of them for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.rotation import HostSerial, progress, to_come

HAS, BEHIND = HostSerial("has", 9, 9, False), HostSerial("behind", 3, 9, False)
OFFLINE, AHEAD = HostSerial("offline", 3, 9, True), HostSerial("ahead", 2**63 - 1, 9, False)
CASES = {
    "nobody": ([], (), True, ()),
    "all have it": ([HAS, HAS], (), True, ()),
    "one has more than was made": ([HAS, AHEAD], (), False, ("ahead",)),
    "one has more than was made and is offline": ([replace(AHEAD, offline=True)], (), True, ()),
    "one has more than was made and is not waited for": ([AHEAD], ("ahead",), True, ("ahead",)),
    "an offline host": ([HAS, OFFLINE], (), True, ()),
    "one is behind": ([HAS, BEHIND], (), False, ("behind",)),
    "one is behind and not waited for": ([HAS, BEHIND], ("behind",), True, ("behind",)),
    "another is not waited for": ([BEHIND], ("has",), False, ("behind",)),
}


@pytest.mark.parametrize(("hosts", "without", "over", "missing"), CASES.values(), ids=CASES)
def test_who_is_waited_for(hosts, without, over, missing):
    found = progress(hosts, without, waits_until=100.0, now=99.0)
    assert (found.over, found.missing) == (over, missing)


HOSTS = st.lists(
    st.builds(HostSerial, st.sampled_from("abcdef"), st.integers(0, 9), st.integers(0, 9), st.booleans())
)


@given(HOSTS, st.sets(st.sampled_from("abcdef")), st.floats(0, 1e9), st.floats(0, 1e9))
def test_no_host_holds_a_rotation_beyond_its_deadline(hosts, without, until, later):
    found = progress(hosts, without, until, until + later)
    assert found.over
    assert found.missing == progress(hosts, (), until, 0.0).missing, "who is left behind is always named"


def test_each_host_that_is_online_has_a_manifest_to_take_when_a_rotation_begins():
    found = progress(to_come([HAS, BEHIND, OFFLINE]), (), 100, 0)
    assert (found.over, found.missing) == (False, ("has", "behind"))
