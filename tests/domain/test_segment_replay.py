"""A replay judges hosts at the addresses at which they were seen to talk, as the reference does."""

import random

import numpy as np
import pytest

from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import parse_address
from aegisflux.domain.policy import Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.segment.flows import Flows
from aegisflux.domain.segment.propose import Actor, Recorded
from aegisflux.domain.segment.replay import place_of, replay, shared
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.verdict import judge

BRIDGE = "172.17.0.1"
ACTORS = (Actor("w1", "web"), Actor("d1", "db"))
SERVICES = {"web": ServicePlace(1, ("w1",)), "db": ServicePlace(2, ("d1",))}
WEB, DB = ("10.0.0.1", "192.168.0.1", "fd00::1"), ("10.0.0.2", "192.168.0.2", "fd00::2")


def inventory(web=WEB, db=DB):
    return Inventory(SERVICES, {"w1": HostPlace({}, web), "d1": HostPlace({}, db)})


def window(*ways, calls=((0, 1),)):
    rows = [(0, client, server, 6, 5432, 1, -1) for client, server in calls]
    columns = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    return Recorded(ACTORS, 2, Flows(*columns), (), {("w1", "d1"): ways} if ways else {})


def blocked(recorded, here, *rules, services=("web",)):
    snapshots = compile_policy(Policy(policy=1, services=services, rules=rules), here)
    return replay(recorded, snapshots, here).blocked


def to(peer):
    return Rule(from_="web", to=peer, ports=("tcp/5432",))


CASES = {
    "where it was seen": ((("10.0.0.1", "192.168.0.2"),), "192.168.0.2", 0),
    "elsewhere": ((("10.0.0.1", "192.168.0.2"),), "10.0.0.2", 1),
    "at one of two": ((("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")), "10.0.0.2", 1),
    "at both": ((("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")), "db", 0),
    "never seen: the lowest": ((), "10.0.0.2", 0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_flow_is_judged_at_the_addresses_at_which_it_was_seen(case):
    ways, peer, expected = CASES[case]
    assert blocked(window(*ways), inventory(), to(peer)) == expected


def test_an_address_that_two_hosts_claim_is_nobodys_place():
    here = inventory((BRIDGE, "192.168.0.1"), (BRIDGE, "192.168.0.2"))
    assert shared(here) == {parse_address(BRIDGE)}
    assert place_of(ACTORS[1], here, shared(here)) == parse_address("192.168.0.2")
    assert blocked(window(), here) == 1


@pytest.mark.parametrize("seed", range(20))
def test_several_ways_are_what_the_reference_says_of_each(seed):
    rng = random.Random(seed)
    here = inventory()
    ways = tuple(dict.fromkeys(zip(rng.choices(WEB, k=3), rng.choices(DB, k=3), strict=True)))
    rules = [Rule(from_=rng.choice((*WEB, "web")), to=rng.choice((*DB, "db")), ports=("tcp/5432",))]
    services = rng.choice((("web",), ("db",), ("web", "db")))
    snapshots = compile_policy(Policy(policy=1, services=services, rules=tuple(rules)), here)

    def denied(service, direction, own, peer):
        if service not in snapshots:
            return False
        host = Host(addresses=frozenset(map(parse_address, own)))
        flow = Flow(direction, 6, parse_address(peer), 5432)
        return judge(ruleset(snapshots[service]), flow, host).action == "deny"

    expected = any(
        denied("web", "egress", WEB, server) or denied("db", "ingress", DB, client) for client, server in ways
    )
    assert replay(window(*ways), snapshots, here).blocked == expected
