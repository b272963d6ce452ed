"""A plan says what would change, what would have been cut, who is first and who has to say yes."""

import random

import numpy as np
import pytest
from msgspec.structs import replace

from aegisflux.domain.errors import Invalid
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.guardrails import Limits
from aegisflux.domain.net import parse_address
from aegisflux.domain.plan import Strategy, plan, stale
from aegisflux.domain.policy import Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.segment.flows import HOURS, Flows
from aegisflux.domain.segment.propose import Actor, Recorded
from aegisflux.domain.segment.replay import replay
from aegisflux.domain.snapshot import ruleset
from aegisflux.domain.verdict import judge

WEBS, DBS = tuple(f"w{n}" for n in range(1, 9)), ("d1", "d2")
HOSTS = {
    host: HostPlace({"rack": host[-1]}, (f"10.0.{'wd'.index(host[0])}.{host[1:]}",)) for host in (*WEBS, *DBS)
}
FLEET = Inventory({"web": ServicePlace(101, WEBS, 4), "db": ServicePlace(102, DBS)}, HOSTS)
ACTORS = (
    *(Actor(host, "web") for host in WEBS),
    *(Actor(host, "db") for host in DBS),
    Actor("w1"),
    Actor(address="203.0.113.7"),
)
NUMBER = {str(actor): n for n, actor in enumerate(ACTORS)}


def recorded(*calls):
    """(client, server, port, period, program)."""
    rows = [(period * HOURS, NUMBER[c], NUMBER[s], 6, port, 2, p) for c, s, port, period, p in calls]
    columns = zip(*rows, strict=True) if rows else [()] * 7
    return Recorded(
        ACTORS,
        len(ACTORS) - 1,
        Flows(*(np.array(c, np.int32) for c in columns)),
        ("/usr/bin/psql", "/bin/nc"),
    )


def policy(*rules, **more):
    return Policy(policy=1, rules=rules, **more)


def rule(from_, to, *ports):
    return Rule(from_=from_, to=to, ports=ports)


BOTH = policy(rule("anyone", "web", "tcp/443"), rule("web", "db", "tcp/5432"))
CALLS = (
    ("web@w1", "db@d1", 5432, 0, 0),
    ("web@w2", "db@d2", 5432, 1, 0),
    ("203.0.113.7", "web@w3", 443, 1, -1),
    ("web@w4", "db@d1", 6379, 2, 1),
    ("web@w5", "db@d2", 6379, 3, 1),
    ("w1", "203.0.113.7", 80, 3, 1),
)


def planned(given=BOTH, in_force=None, calls=CALLS, inventory=FLEET, **strategy):
    return plan(
        given, inventory, in_force or {}, recorded(*calls), Strategy(**strategy), "ada", 1_800_000_000
    )


def test_what_would_be_cut_is_said_with_the_rule_that_it_needs():
    found = planned().replay
    assert (found.records, found.judged, found.blocked, found.unplaced) == (6, 5, 2, 0)
    said = [(one.at, one.direction, one.rule, one.records, one.connections, one.since) for one in found.lines]
    assert said == [
        ("db", "ingress", "web -> db tcp/6379", 2, 4, 2),
        ("web", "egress", "web -> db tcp/6379", 2, 4, 2),
    ]
    assert (found.lines[1].hosts, found.lines[1].programs) == (("w4", "w5"), ("/bin/nc",))


def test_a_host_without_a_known_address_is_counted_and_not_judged():
    inventory = Inventory(FLEET.services, HOSTS | {"d2": HostPlace()})
    found = planned(inventory=inventory).replay
    assert (found.unplaced, found.judged, found.blocked) == (2, 3, 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_replay_is_what_the_reference_says_of_each_flow(seed):
    rng = random.Random(seed)
    clients, servers = ("web", "db", "anyone", "host:w1"), ("web", "db")
    rules = [
        rule(rng.choice(clients), rng.choice(servers), f"tcp/{rng.randint(1, 3)}")
        for _ in range(rng.randint(0, 4))
    ]
    given = policy(*rules, services=("web", "db") if rng.random() < 0.7 else ("db",))
    names = sorted(NUMBER)
    calls = [(*rng.sample(names, 2), rng.randint(1, 3), 0, -1) for _ in range(300)]
    snapshots = compile_policy(given, FLEET)
    rules = {name: ruleset(one) for name, one in snapshots.items()}

    def denied(own, peer, direction, port):
        at = [HOSTS[a.host].addresses[0] if a.host else a.address for a in (own, peer)]
        if own.service not in rules:
            return False
        flow = Flow(direction, 6, parse_address(at[1]), port)
        return judge(rules[own.service], flow, Host(frozenset({parse_address(at[0])}))).action == "deny"

    expected = 0
    for client, server, port, *_ in calls:
        one, other = ACTORS[NUMBER[client]], ACTORS[NUMBER[server]]
        expected += denied(one, other, "egress", port) or denied(other, one, "ingress", port)
    assert replay(recorded(*calls), snapshots, FLEET).blocked == expected


def test_what_nothing_changes_is_left_alone_and_each_change_has_a_witness():
    before = compile_policy(BOTH, FLEET)
    assert planned(in_force=before).services == ()
    assert planned(in_force=before).unchanged == ("db", "web")
    more = policy(*BOTH.rules, rule("web", "db", "tcp/6379"))
    (db, web) = planned(more, before).services
    (change,) = web.changes
    assert (change.direction, change.what, change.before, change.after) == (
        "egress",
        "tcp/6379",
        "blocked",
        "allowed",
    )
    assert (change.cidrs, change.witness) == (("10.0.1.1/32", "10.0.1.2/32"), "to 10.0.1.1 tcp/6379")
    assert (web.replaces, web.snapshot.version) == (4, 4)
    assert db.service == "db"


@pytest.mark.parametrize(
    ("given", "calls", "reasons"),
    [
        (policy(*BOTH.rules, rule("web", "db", "tcp/6379")), CALLS, ("it allows what was blocked",)),
        (BOTH, CALLS, ("it would have blocked 2 recorded flows",)),
        (BOTH, CALLS[:3], ()),
        (
            policy(BOTH.rules[1], services=("web", "db")),
            CALLS[:3],
            ("it would have blocked 1 recorded flows",),
        ),
    ],
)
def test_who_has_to_say_yes(given, calls, reasons):
    before = compile_policy(BOTH, FLEET)
    assert planned(given, before, calls).approval == reasons


def test_what_is_opened_to_everybody_has_to_be_looked_at_once():
    assert planned(calls=()).approval == ("web is open to anyone on tcp/443",)
    wider = policy(*BOTH.rules, rule("fleet", "db", "udp/53"))
    in_force = {"web": compile_policy(BOTH, FLEET)["web"]}
    opened, widened = planned(wider, in_force, ()).approval
    assert (opened, widened) == ("db is open to fleet on udp/53", "it allows what was blocked")


def test_a_rule_that_no_recorded_flow_used_is_remarked_on_when_there_are_flows():
    unused = policy(*BOTH.rules, rule("web", "db", "tcp/9"))
    told = [(one.kind, one.about) for one in planned(unused, calls=CALLS).lint]
    assert [kind for kind, _ in told] == ["never_hit"]
    assert planned(unused, calls=()).lint == ()


def test_canary_hosts_are_those_that_do_most_of_what_the_service_does():
    calls = [("web@w6", "db@d1", port, 0, 0) for port in (1, 2, 3)] + [("web@w2", "db@d1", 4, 0, 0)]
    (db, web) = planned(calls=calls, canary_share=0.25).services
    assert (db.canary, web.canary) == (("d1",), ("w6", "w2"))
    assert planned(canary_share=0.01, calls=()).services[1].canary == ("w1",)
    marked = Limits(never_block={"rack": "1"})
    assert planned(calls=(), limits=marked).services[1].canary == ("w2",)
    assert planned(canary_hosts=("w8", "d2")).services[1].canary == ("w8",)
    with pytest.raises(Invalid, match="canary_hosts: expected a host of db"):
        planned(canary_hosts=("w8",))


def test_waves_begin_with_the_canary_and_keep_to_the_shares():
    found = planned(calls=())
    assert found.canary == (("d1", "w1"),)
    waves = found.canary + found.waves
    assert sorted(host for wave in waves for host in wave) == sorted(HOSTS)
    assert all(len(wave) <= 2 for wave in waves)
    one = planned(calls=(), limits=Limits(most_of_fleet=0.1))
    assert one.canary == (("d1",), ("w1",))
    assert one.held == ()


def test_a_guardrail_that_does_not_hold_is_said_and_observing_touches_nobody():
    limits = Limits(never_block={"rack": "3"}, ttl_seconds=60)
    held = planned(limits=limits).held
    assert [text.partition(":")[0] for text in held] == ["ttl", "never_block"]
    watching = policy(*BOTH.rules, mode="observe")
    assert [text.partition(":")[0] for text in planned(watching, limits=limits).held] == ["ttl"]
    assert planned().held == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("web", ("web: when planned it was web [] {}, now it is web ['unit:x'] {}",)),
        ("db", ("db: when planned it was db [] {}, now it is db ['unit:x'] {}",)),
        ("idle", ()),
    ],
)
def test_a_plan_holds_for_who_its_services_were(name, why):
    """Those that it governs and those that it names; `web` alone is governed."""
    places = {
        other: replace(FLEET.services.get(other, ServicePlace(103)), definition=f"{other} [] {{}}")
        for other in ("web", "db", "idle")
    }
    wanted, fleet = policy(*BOTH.rules, services=("web",)), Inventory(places, HOSTS)
    made = plan(wanted, fleet, {}, recorded(*CALLS), Strategy(), "olga", 0)
    assert set(made.definitions) == {"web", "db"}
    assert stale(made, wanted, fleet, {}) == ()
    now = Inventory(places | {name: replace(places[name], definition=f"{name} ['unit:x'] {{}}")}, HOSTS)
    assert stale(made, wanted, now, {}) == why
    assert stale(replace(made, definitions={}), wanted, now, {}) == (), "a plan of before this was kept"
