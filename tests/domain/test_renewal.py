"""A renewal is bounded: by how much it changes, by how often, and by how long the fleet has been quiet."""

import pytest

from aegisflux.domain.policy import Group, Policy
from aegisflux.domain.renewal import ALWAYS, HOUR, HOURLY, SETTLED_SECONDS, delta, stopped, without_gone
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


def test_what_comes_and_goes_is_named():
    assert str(delta(snapshot(1, 2), snapshot(2, 3))) == "+ to 10.0.0.3/32 tcp/443, - to 10.0.0.1/32 tcp/443"
    assert str(delta(SMALL, SMALL)) == "nothing"
    assert str(delta(snapshot(1), snapshot(*range(1, 9)))).endswith("and 3 more")
    assert SETTLED_SECONDS > 0


def test_hosts_that_left_are_in_no_group():
    policy = Policy(policy=1, groups={"old": Group(hosts=("a", "b")), "by": Group(labels={"x": "y"})})
    left = without_gone(policy, {"b"})
    assert (left.groups["old"].hosts, left.groups["by"]) == (("b",), policy.groups["by"])
