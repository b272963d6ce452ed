"""Whom a plan has to ask, however it is written: what widens, what is open to all; and what else changes."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.guardrails import Limits
from aegisflux.domain.plan import MOST_CHANGES, Plan, Strategy, plan
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.segment.flows import Flows
from aegisflux.domain.segment.propose import Recorded
from aegisflux.domain.snapshot import TTL_MAX, TTL_MIN

NOTHING = Recorded((), 0, Flows(*[np.empty(0, np.int32)] * 7))
HOSTS = {
    name: HostPlace({"env": "prod"}, (at,))
    for name, at in (("w1", "10.0.0.1"), ("w2", "10.0.0.2"), ("d1", "10.0.1.1"), ("d2", "10.0.1.2"))
}
FLEET = Inventory({"web": ServicePlace(1, ("w1", "w2"), 2), "db": ServicePlace(2, ("d1", "d2"), 2)}, HOSTS)
WIDENS = "it allows what was blocked"


def rule(from_, to, *ports, **more):
    return Rule(from_=from_, to=to, ports=ports or ("tcp/22",), **more)


def policy(*rules, **more):
    return Policy(policy=1, services=("web", "db"), rules=rules, **more)


def planned(given, in_force=None, **strategy):
    return plan(given, FLEET, in_force or {}, NOTHING, Strategy(**strategy), "ann", 0)


def again(found):
    """As it is kept and read."""
    return msgspec.convert(msgspec.json.decode(msgspec.json.encode(found)), Plan)


MANY = policy(rule("web", "db", *(f"tcp/{n}" for n in range(1, MOST_CHANGES + 100))))


def test_a_widening_beyond_what_is_named_is_one_and_is_named_first():
    found = planned(policy(rule("web", "db", "tcp/9999")), compile_policy(MANY, FLEET))
    assert all(one.widens and one.more_changes for one in found.services)
    assert [one.changes[0].what for one in found.services] == ["tcp/9999", "tcp/9999"]
    assert (found.approval, again(found).widens) == ((WIDENS,), True)


def test_narrowing_needs_nobody_however_much_it_is():
    found = planned(policy(rule("web", "db", "tcp/7")), compile_policy(MANY, FLEET))
    assert (found.approval, found.widens) == ((), False)


@pytest.mark.parametrize("widens", [True, False])
def test_a_plan_that_was_kept_before_says_it_by_its_changes(widens):
    old, new = policy(rule("web", "db", "tcp/1")), policy(rule("web", "db", "tcp/1", "tcp/2"))
    found = planned(*((new, compile_policy(old, FLEET)) if widens else (old, compile_policy(new, FLEET))))
    body = msgspec.to_builtins(found)
    for one in body["services"]:
        del one["widens"], one["settings"]
    assert msgspec.convert(body, Plan).widens is widens


GROUPS = {
    "role-1": Group(hosts=("w1",), unregistered=True),
    "office": Group(cidrs=("192.0.2.0/24",)),
    "world": Group(cidrs=("0.0.0.0/1", "128.0.0.0/1")),
    "slices": Group(cidrs=tuple(f"203.{n}.0.0/17" for n in range(3))),
    "none": Group(labels={"env": "nowhere"}),
}
OPENED = {
    ("anyone", "db"): "db is open to anyone",
    ("fleet", "db"): "db is open to fleet",
    (("anyone",), "db"): "db is open to anyone",
    (("office", "anyone"), ("db",)): "db is open to office, anyone",
    ("0.0.0.0/0", "db"): "db is open to 0.0.0.0/0",
    ("::/0", "db"): "db is open to ::/0",
    ("172.0.0.0/15", "db"): "db is open to 172.0.0.0/15",
    ("2001:db8::/47", "db"): "db is open to 2001:db8::/47",
    ("world", "db"): "db is open to world",
    ("slices", "db"): "db is open to slices",
    (("172.16.0.0/16", "172.17.0.0/16"), "db"): "db is open to 172.16.0.0/16, 172.17.0.0/16",
    ("anyone", ("web", "db", "office")): "web, db is open to anyone",
    ("anyone", "label:env=prod"): "label:env=prod is open to anyone",
    ("role-1", "fleet"): "fleet is open to role-1",
    ("web", "fleet"): "fleet is open to web",
    ("fleet", "fleet"): "fleet is open to fleet",
    ("web", "anyone"): "anyone is open to web",
    ("web", "0.0.0.0/0"): "0.0.0.0/0 is open to web",
}


@pytest.mark.parametrize("ends", OPENED)
def test_what_is_open_to_everybody_is_so_however_it_is_written(ends):
    given = policy(rule(*ends, "tcp/22", "udp/53"), groups=GROUPS)
    assert planned(given).approval == (f"{OPENED[ends]} on tcp/22, udp/53",)


@pytest.mark.parametrize("ends", OPENED)
def test_what_is_in_force_was_looked_at(ends):
    given = policy(rule(*ends), groups=GROUPS)
    assert planned(given, compile_policy(given, FLEET)).approval == ()


@pytest.mark.parametrize(
    "one",
    [
        rule("office", "db"),
        rule("172.16.0.0/16", "db"),
        rule("2001:db8::/48", "db"),
        rule("anyone", "db", action="deny"),
        rule("fleet", "db", action="deny"),
        rule("web", "db"),
        rule("anyone", "host:d1"),
        rule("anyone", "office"),
        rule("role-1", "anyone"),
        rule("label:env=prod", "db"),
        rule("none", "db"),
    ],
)
def test_what_is_not_open_to_everybody_needs_nobody(one):
    assert planned(policy(one, groups=GROUPS)).approval == ()


def test_what_opens_to_many_names_some_of_them():
    many = ("anyone", *(f"192.0.2.{n}" for n in range(20)))
    (told,) = planned(policy(rule(many, "db"))).approval
    assert told == f"db is open to {', '.join(many[:8])} and 13 more on tcp/22"


SAME = policy(rule("web", "db"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"on_expiry": "closed"}, "on_expiry was open, becomes closed"),
        ({"established": "cut"}, "established was keep, becomes cut"),
        ({"ttl_seconds": 600}, "ttl_seconds was 86400, becomes 600"),
        ({"mode": "observe"}, "mode was enforce, becomes observe"),
    ],
)
def test_a_setting_alone_is_a_change_and_is_said(change, words):
    before = compile_policy(SAME, FLEET)
    found = planned(replace(SAME, **change), before)
    assert found.unchanged == ()
    assert [(one.service, one.settings) for one in found.services] == [("db", (words,)), ("web", (words,))]
    assert planned(SAME, before).unchanged == ("db", "web")
    assert again(found) == found


def test_a_mode_that_flips_no_verdict_is_a_change_as_well():
    world = ("0.0.0.0/0", "::/0")
    given = policy(*(rule(*ends, "any") for ends in (("web", world), (world, "web"))))
    before = {"web": compile_policy(given, FLEET)["web"]}
    found = planned(replace(given, mode="observe"), before)
    assert [one.settings for one in found.services if one.service == "web"] == [
        ("mode was enforce, becomes observe",)
    ]


@given(
    st.sampled_from(["open", "closed"]), st.sampled_from(["keep", "cut"]), st.integers(TTL_MIN, TTL_MAX),
    st.booleans(),
)  # fmt: skip
def test_unchanged_means_that_nothing_changes(on_expiry, established, ttl, first):
    given = replace(SAME, on_expiry=on_expiry, established=established, ttl_seconds=ttl)
    before = {} if first else compile_policy(SAME, FLEET)
    found = planned(given, before)
    same = not first and given == SAME
    assert (found.unchanged == ("db", "web")) is same
    assert first is not any(one.settings for one in found.services) or same


def test_no_canary_bears_one_of_the_labels_of_both_sides():
    hosts = {
        name: HostPlace({"env": env}, HOSTS[name].addresses) for name, env in (("w1", "lab"), ("w2", "x"))
    }
    inventory = Inventory({"web": FLEET.services["web"]}, HOSTS | hosts)
    limits = Limits(never_block={"env": ("prod", "lab")})
    given = Policy(policy=1, services=("web",))
    (web,) = plan(given, inventory, {}, NOTHING, Strategy(limits=limits), "ann", 0).services
    assert web.canary == ("w2",)
