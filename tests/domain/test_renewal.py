"""A renewal is bounded: by how much it changes, by how often, and by how long the fleet has been quiet."""

import pytest

from aegisflux.domain.net import parse_address
from aegisflux.domain.policy import Group, Policy
from aegisflux.domain.renewal import (
    ALWAYS,
    HOUR,
    HOURLY,
    SETTLED_SECONDS,
    delta,
    stopped,
    told,
    without_gone,
)
from aegisflux.domain.snapshot import from_builtins


def snapshot(*hosts, port=443):
    edges = [
        {"dst_cidr": f"10.0.{host // 250}.{host % 250}/32", "proto": "tcp", "port": port} for host in hosts
    ]
    return from_builtins({"version": 1, "service_id": 7, "ttl_seconds": 600, "edges": edges})


SMALL = snapshot(*range(10))
LARGE = snapshot(*range(100))
CASES = {
    "one host more": (SMALL, snapshot(*range(11)), 99, [], ""),
    "the fleet moves": (SMALL, snapshot(*range(11)), 3, [], "changed 3 s ago, expected it quiet for 15 s"),
    "a small one may change a lot": (SMALL, snapshot(*range(20, 20 + ALWAYS - 10)), 99, [], ""),
    "but not all": (SMALL, snapshot(*range(20, 27)), 99, [], "change 17 entries, expected at most 16"),
    "a quarter of a large one": (LARGE, snapshot(*range(75)), 99, [], ""),
    "more than a quarter": (LARGE, snapshot(*range(74)), 99, [], "change 26 entries, expected at most 25"),
    "often": (SMALL, snapshot(1), 99, [1000 - n for n in range(HOURLY)], "12 in the last hour"),
    "long ago": (SMALL, snapshot(1), 99, [999.0 - HOUR] * HOURLY, ""),
    "an hour ago": (SMALL, snapshot(1), 99, [1000.0 - HOUR] * HOURLY, ""),
    "one below often": (SMALL, snapshot(1), 99, [1000 - n for n in range(HOURLY - 1)], ""),
    "just quiet": (SMALL, snapshot(1), SETTLED_SECONDS, [], ""),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_too_much_is_stopped_and_says_why(case):
    before, after, quiet, renewals, said = CASES[case]
    why = stopped(delta(before, after), quiet, renewals, 1000.0)
    assert (said in why, bool(why)) == (True, bool(said))


CUTS = {
    "all of one": ((1,), (), (1,), "1 of 1 allows from hosts that are still enrolled, expected at most 0"),
    "all of three": ((1, 2, 3), (), (1, 2, 3), "3 of 3 allows from hosts that are still enrolled"),
    "more than half": ((1, 2, 3, 4), (1,), (1, 2, 3, 4), "3 of 4 allows from hosts that are still enrolled"),
    "half": ((1, 2, 3, 4), (1, 2), (1, 2, 3, 4), ""),
    "half of an odd number": ((1, 2, 3), (1,), (1, 2, 3), "2 of 3 allows from hosts that are still enrolled"),
    "one of two": ((1, 2), (1,), (1, 2), ""),
    "a service of one host moves": ((1,), (2,), (1, 2), ""),
    "two of two move": ((1, 2), (3, 4), (1, 2, 3, 4), "2 of 2 allows from hosts that are still enrolled"),
    "all hosts left": ((1, 2, 3), (), (), ""),
    "hosts left, and one is cut": ((1, 2, 3), (), (3,), "1 of 3 allows from hosts that are still enrolled"),
    "most left": ((1, 2, 3, 4), (4,), (4,), ""),
}


@pytest.mark.parametrize("case", CUTS)
def test_a_small_policy_does_not_lose_what_hosts_that_are_there_need(case):
    before, after, fleet, said = CUTS[case]
    addresses = {parse_address(f"10.0.0.{host}") for host in fleet}
    why = stopped(delta(snapshot(*before), snapshot(*after), addresses), 99, [], 1000.0)
    assert (said in why, bool(why)) == (True, bool(said))
    assert not why or why.endswith(": plan again")


def test_what_is_written_as_one_prefix_is_no_cut():
    both = from_builtins(
        {
            "version": 1, "service_id": 7, "ttl_seconds": 600,
            "edges": [{"dst_cidr": "10.0.0.2/31", "proto": "tcp", "port": 443}],
        }
    )  # fmt: skip
    fleet = {parse_address("10.0.0.2"), parse_address("10.0.0.3")}
    assert (delta(snapshot(2, 3), both, fleet).cut, delta(both, snapshot(2), fleet).cut) == (0, 1)


@pytest.mark.parametrize(
    ("said", "parts", "held", "next_"),
    [
        ("promoted", [], [], "promoted"),
        ("promoted", [], ["a", "b"], "not renewed: a; b"),
        ("not renewed: a", [], [], "in force as its policy says"),
        ("renewal of db waits: b", [], [], "in force as its policy says"),
        ("renewed: the fleet has changed; not renewed: a", [], [], "in force as its policy says"),
        ("promoted", ["renewal of db waits: b"] * 2, ["a"], "renewal of db waits: b; not renewed: a"),
    ],
)
def test_the_rollout_says_what_was_done_and_what_is_held(said, parts, held, next_):
    assert told(said, parts, held) == next_


def test_what_comes_and_goes_is_named():
    assert str(delta(snapshot(1, 2), snapshot(2, 3))) == "+ to 10.0.0.3/32 tcp/443, - to 10.0.0.1/32 tcp/443"
    assert str(delta(SMALL, SMALL)) == "nothing"
    assert str(delta(snapshot(1), snapshot(*range(1, 9)))).endswith("and 3 more")
    assert SETTLED_SECONDS > 0


def test_hosts_that_left_are_in_no_group():
    policy = Policy(policy=1, groups={"old": Group(hosts=("a", "b")), "by": Group(labels={"x": "y"})})
    left = without_gone(policy, {"b"})
    assert (left.groups["old"].hosts, left.groups["by"]) == (("b",), policy.groups["by"])
