"""Of which own addresses others are told where there are more than a heartbeat has room for."""

import pytest

from aegisflux.domain.net import parse_address
from aegisflux.domain.own_addresses import (
    MOST_TOLD,
    Standing,
    believed,
    likeliest_first,
    told,
    unbelieved_text,
)

VIPS = {f"10.0.{i >> 8}.{i & 255}": Standing.ALONE for i in range(300)}
OLD = {f"10.8.0.{i}": Standing.DEPRECATED for i in range(100)}
TEMPORARY = {f"2001:db8::{i:x}": Standing.SECONDARY for i in range(1, 100)}
REAL = {"192.168.7.7": Standing.PRIMARY, "fd00::7": Standing.PRIMARY}


@pytest.mark.parametrize(
    ("found", "always", "left"),
    [
        (REAL, REAL, 0),
        (REAL | VIPS, REAL, 302 - MOST_TOLD),
        (REAL | OLD, REAL, 102 - MOST_TOLD),
        (REAL | TEMPORARY, REAL, 101 - MOST_TOLD),
        (REAL | VIPS | {"fe80::1": Standing.PRIMARY, "127.0.0.1": Standing.PRIMARY}, REAL, 302 - MOST_TOLD),
        (OLD | {"192.168.7.9": Standing.ALONE}, {"192.168.7.9"}, 101 - MOST_TOLD),
        (TEMPORARY | OLD | {"192.168.7.9": Standing.ALONE}, {"192.168.7.9"}, 200 - MOST_TOLD),
        ({}, (), 0),
    ],
)
def test_the_likeliest_are_told_and_the_others_counted(found, always, left):
    """Each of these numbers is below, in the order of addresses, what fills a heartbeat alone."""
    texts, more = told(likeliest_first({parse_address(text): how for text, how in found.items()}))
    assert set(always) <= set(texts)
    assert more == left
    assert len(texts) == min(MOST_TOLD, len(texts) + more)
    assert not {"fe80::1", "127.0.0.1"} & set(texts)
    assert list(texts) == [str(a) for a in sorted(map(parse_address, texts))]


MANY = tuple(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(45_000))
REPORTED = {  # how many of these are believed, and how many are not looked at
    "a few": (MANY[:3], 3, 0),
    "as many as an agent tells": (MANY[:MOST_TOLD], MOST_TOLD, 0),
    "one more": (MANY[: MOST_TOLD + 1], MOST_TOLD, 1),
    "very many": (MANY, MOST_TOLD, 45_000 - MOST_TOLD),
    "no addresses": (("x", "10.0.0.1/24", "10.0.0.1\n", "", *MANY[:2]), 2, 0),
    "many that are none": (("x" * 300,) * 45_000, 0, 45_000 - MOST_TOLD),
    "the same again": (MANY[:1] * 45_000, 1, 45_000 - MOST_TOLD),
    "none": ((), 0, 0),
}


@pytest.mark.parametrize("case", REPORTED)
def test_no_more_addresses_of_a_host_are_believed_than_an_agent_tells(case):
    reported, count, left = REPORTED[case]
    found = believed(reported)
    assert (len(found.addresses), found.more) == (count, left)
    assert found.addresses == tuple(text for text in dict.fromkeys(reported) if text in MANY)[:count]
    said = unbelieved_text(found)
    assert bool(said) == bool(left or found.unusable)
    assert not left or f"{len(reported)} are reported, and {MOST_TOLD} are believed" in said
