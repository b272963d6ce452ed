"""What has ended stays ended for a store that is older: tokens, keys of hosts, keys that signed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain import rights
from aegisflux.domain.audit import Entry
from aegisflux.domain.rights import Rights


def host(action, key="KEY", name="h2", reason=""):
    if action == rights.RELEASE:
        return Entry("admin", action, f"host/{name}", before=key)
    return Entry("admin", action, f"host/{name}", before="00112233", after=f"{key} {{}}", reason=reason)


def keys(action, version, before="", after=""):
    return Entry("system", action, f"keys/{version}", before=before, after=after)


def said(*entries):
    found = Rights()
    for entry in entries:
        found.take(entry)
    return found


RELEASED = {
    "enrolled": ([host(rights.ENROL)], ""),
    "released": ([host(rights.ENROL), host(rights.RELEASE)], "h2"),
    "released before lines named keys of enrolments": ([host(rights.RELEASE)], "h2"),
    "another key of this host": ([host(rights.RELEASE, "OTHER")], ""),
    "enrolled again by an admin": ([host(rights.RELEASE), host(rights.ENROL)], ""),
    "enrolled again under another name": ([host(rights.RELEASE), host(rights.ENROL, name="h3")], ""),
    "its enrolment repeated": ([host(rights.RELEASE), host(rights.ENROL, reason="repeated")], "h2"),
    "its name given to another key": ([host(rights.RELEASE), host(rights.ENROL, "OTHER")], "h2"),
}


@pytest.mark.parametrize(("lines", "name"), RELEASED.values(), ids=RELEASED)
def test_the_key_of_a_released_host_is_known(lines, name):
    assert said(*lines).released_host("KEY") == name


ROTATED = [
    keys("keys.first", 1, after="s1"),
    keys("keys.add", 2, "s1", "s2"),
    keys("keys.switch", 3, "s1", "s2"),
    keys("keys.remove", 4, "s1", "s2"),
]


@pytest.mark.parametrize("count", range(5))
def test_the_newest_key_set_and_the_keys_before_it_are_known(count):
    found = said(*ROTATED[:count])
    assert (found.keys, list(found.retired)) == (count, ["s1"] if count == 4 else [])
    assert list(found.keyring) == [[], ["s1"], ["s1", "s2"], ["s1", "s2"], ["s2"]][count]


def test_keys_that_are_replaced_have_ended():
    found = said(*ROTATED[:2], keys(rights.REPLACE_KEYS, 1004, "s1 s2", "s3"))
    assert (found.keys, list(found.retired), list(found.keyring)) == (1004, ["s1", "s2"], ["s3"])


@pytest.mark.parametrize("number", ["", "x", "-1", "9" * 16, "\u0663"])
def test_a_line_about_no_number_says_nothing_of_keys(number):
    assert said(Entry("x", "keys.add", f"keys/{number}")).keys == 0


steps = st.lists(
    st.one_of(
        st.builds(host, st.sampled_from([rights.ENROL, rights.RELEASE]), st.sampled_from("ab")),
        st.builds(
            lambda action, number: Entry("admin", action, f"token/{number}", before=f"h{number}", after="x"),
            st.sampled_from([rights.ISSUE, rights.REVOKE]),
            st.sampled_from("12"),
        ),
        st.sampled_from(ROTATED),
    ),
    max_size=12,
)


@given(steps, st.integers(0, 12), steps)
def test_of_an_older_log_nothing_that_ended_lives_again(whole, kept, other):
    """Also where other lines were written after the part that the older store has."""
    known, older = said(*whole), said(*whole[:kept], *other)
    older.keep_ended(known)
    assert not known.ended.keys() & older.live.keys()
    assert known.ended.items() <= older.ended.items()
    assert known.released.items() <= older.released.items()
    assert known.retired.items() <= older.retired.items()
    assert older.keys >= known.keys


@given(steps)
def test_a_copy_says_the_same_and_is_another_one(lines):
    found = said(*lines)
    copy = found.copy()
    copy.take(host(rights.RELEASE, "c"))
    assert found.released_host("c") == ""
    assert said(*lines) == found


AT_ONCE = {
    rights.REVOKE, rights.RELEASE, rights.ISSUE, "keys.add", "keys.switch", "keys.remove",
    "snapshot.withdraw", "snapshot.rollback", "panic", "service.delete", "rollout.aborted",
    "rollout.rolled_back", "host.relabel", "host.suspicion",
}  # fmt: skip
OTHERS = {"host.token", "host.enroll", "segment.plan", "lease.renew"}


@pytest.mark.parametrize("action", sorted(AT_ONCE | OTHERS))
def test_the_mark_follows_at_once_what_takes_a_right_away(action):
    assert Rights().take(Entry("x", action, "x/1")) is (action in AT_ONCE)
