"""Which addresses of a heartbeat a host may be known by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.own_addresses import MOST_TOLD, believed, conflict_text, unbelieved_text

UNUSABLE = [
    "0.0.0.0", "0.1.2.3", "255.255.255.255", "127.0.0.1", "127.255.0.9", "224.0.0.1", "239.255.255.250",
    "169.254.169.254", "::", "::1", "ff02::1", "ff0e::fb", "fe80::1", "::ffff:127.0.0.1", "::ffff:0.0.0.0",
    "::ffff:224.0.0.1", "::ffff:255.255.255.255",
]  # fmt: skip
NONE_AT_ALL = [
    "",
    "x",
    "10.0.0.0/8",
    "10.0.0.256",
    "10.0.0.1%eth0",
    " 10.0.0.1",
    "\x1b[31m",
    "١٠.0.0.1",
    "1" * 4000,
]
USABLE = {
    "10.0.0.1": "10.0.0.1",
    "192.0.2.7": "192.0.2.7",
    "100.64.3.4": "100.64.3.4",
    "fd00::1": "fd00::1",
    "FD00:0:0::0001": "fd00::1",
    "::ffff:10.0.0.9": "10.0.0.9",
    "2001:db8::5": "2001:db8::5",
}


@pytest.mark.parametrize("text", [*UNUSABLE, *NONE_AT_ALL])
def test_an_address_of_no_single_host_is_never_believed(text):
    found = believed(["10.0.0.1", text, "10.0.0.2"])
    assert found.addresses == ("10.0.0.1", "10.0.0.2")
    assert found.unusable == (text,)
    words = unbelieved_text(found)
    assert words.startswith("own addresses: no host can be called by ")
    assert len(words) < 120
    assert words.isprintable()


@pytest.mark.parametrize("text", USABLE)
def test_an_address_is_believed_in_its_usual_spelling(text):
    assert believed([text]) == ((USABLE[text],), 0, ())
    assert unbelieved_text(believed([text])) == ""


def test_one_address_in_two_spellings_is_one():
    assert believed(["10.0.0.9", "::ffff:10.0.0.9"]).addresses == ("10.0.0.9",)


@given(st.lists(st.one_of(st.ip_addresses().map(str), st.text(max_size=20)), max_size=300))
def test_what_is_believed_is_bounded_and_of_usable_classes(reported):
    found = believed(reported)
    assert len(found.addresses) + len(found.unusable) <= MOST_TOLD
    assert found.more == max(0, len(reported) - MOST_TOLD)
    assert believed(found.addresses) == (found.addresses, 0, ()), "nothing of it is left out a second time"


def test_a_conflict_names_some_others():
    assert conflict_text("10.0.0.1", ["b"]) == "10.0.0.1 is also reported by b: it is used for none of them"
    assert "and 7 more" in conflict_text("10.0.0.1", list("bcdefghijk"))
