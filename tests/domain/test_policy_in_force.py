"""A policy in force that is compiled again loses no allow for what nobody decided, and gains none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.errors import Invalid
from aegisflux.domain.net import parse_address
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_in_force import carried, compile_in_force
from aegisflux.domain.snapshot import canonical, from_builtins, ruleset
from aegisflux.domain.spans import Spans

NAMES = ("w1", "d1", "d2", "d3", "d4", "d5", "d6")
HOSTS = {name: HostPlace({}, (f"10.0.0.{n}",)) for n, name in enumerate(NAMES, 1)}
RULE = Rule(from_="web", to="db", ports=("tcp/5432",))
POLICY = Policy(policy=1, rules=(RULE,), services=("web",))
KEPT = "run db by report alone; give db host_labels and plan again"


def fleet(labelled=(), reported=(), hosts=HOSTS, **more):
    """web on w1; db where labels say, and where reports do."""
    db = ServicePlace(2, tuple(sorted({*labelled, *reported})), 1, tuple(reported))
    return Inventory({"web": ServicePlace(1, ("w1",)), "db": db, **more}, hosts)


def believed(*hosts, policy=POLICY):
    """What was in force when a report was as good as a label."""
    return compile_policy(policy, fleet(labelled=hosts))["web"]


def again(before, inventory, policy=POLICY):
    found = carried("web", before, compile_in_force(policy, inventory), inventory)
    return found.snapshot, found.notes


def reach(snapshot):
    return {e.dst_cidr for e in snapshot.edges}


def left(*names):
    return {name: place for name, place in HOSTS.items() if name not in names}


CASES = {
    "by report alone": (("d1", "d2"), fleet((), ("d1", "d2")), ("d1", "d2"), f"hosts d1, d2 {KEPT}"),
    "one is labelled": (("d1", "d2"), fleet(("d1",), ("d2",)), ("d1", "d2"), "host d2 runs db by report"),
    "all are labelled": (("d1", "d2"), fleet(("d1", "d2")), ("d1", "d2"), ""),
    "one more reports": (("d1", "d2"), fleet((), ("d1", "d2", "d3")), ("d1", "d2"), f"hosts d1, d2 {KEPT}"),
    "only a new one": (("d1",), fleet(("d1",), ("d4",)), ("d1",), ""),
    "one more is labelled": (("d1",), fleet(("d4",), ("d1",)), ("d1", "d4"), "host d1 runs db by"),
    "one has left": (("d1", "d2"), fleet((), ("d2",), left("d1")), ("d2",), "host d2 runs db by report"),
    "one stopped": (("d1", "d2", "d3"), fleet((), ("d2", "d3")), ("d2", "d3"), f"hosts d2, d3 {KEPT}"),
    "many": (NAMES[1:], fleet((), NAMES[1:]), NAMES[1:], f"d1, d2, d3, d4 and 2 more {KEPT}"),
    "its labels name others": (("d1", "d2"), fleet(("d5",), ("d1",)), ("d1", "d5"), "host d1 runs db by"),
}


@pytest.mark.parametrize("case", CASES)
def test_who_is_a_member_by_report_alone_stays_where_it_is(case):
    were, inventory, stay, said = CASES[case]
    after, notes = again(believed(*were), inventory)
    wanted = inventory.addresses(stay)
    assert {
        a for a in fleet().addresses(HOSTS) if Spans(e.cidr for e in ruleset(after).edges).has(a)
    } == wanted
    assert (said in " ".join(notes), bool(notes)) == (True, bool(said))
    assert again(after, inventory)[0] == after, "there is nothing more to do"


@pytest.mark.parametrize("case", ["by report alone", "one is labelled", "one more reports", "many"])
def test_nothing_is_written_anew_for_it(case):
    were, inventory, _, _ = CASES[case]
    before = believed(*were)
    assert again(before, inventory)[0] == before


def test_a_plan_still_leaves_them_out():
    assert not compile_policy(POLICY, fleet((), ("d1", "d2")))["web"].edges


@given(*(st.sets(st.sampled_from(NAMES[1:])) for _ in range(4)), st.integers(0, 3))
def test_nobody_enters_by_a_report(were, labelled, reported, gone, extra):
    policy = replace(POLICY, extra_addresses=extra)
    before = compile_policy(policy, fleet(labelled=were))["web"]
    hosts = left(*gone)
    inventory = fleet(labelled - gone, reported - labelled - gone, hosts)
    after = again(before, inventory, policy)[0]
    plain = compile_policy(policy, inventory)["web"]
    had, new, has = (Spans(e.cidr for e in ruleset(s).edges) for s in (before, plain, after))
    for host in HOSTS:
        address = parse_address(HOSTS[host].addresses[0])
        assert not has.has(address) or had.has(address) or new.has(address)
        if host in hosts and had.has(address) and host in labelled | reported:
            assert has.has(address)
        assert not new.has(address) or has.has(address)
    assert again(after, inventory, policy)[0] == after


ODD = ServicePlace(9, ("d6",))
STUCK = {
    "a keyword": ("fleet", {"fleet": ODD}, "a keyword of policies too; rename it"),
    "an address": ("10.9.9.9", {"10.9.9.9": ODD}, "an address too; rename it"),
    "nobody": ("gone", {}, "no service, group or kind of end is named 'gone'"),
    "a host that left": ("host:gone", {}, "host 'gone' is not enrolled"),
    "a group's": ("members", {"members": ODD}, "a name that no registered service has"),
}


@pytest.mark.parametrize("case", STUCK)
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_a_rule_that_cannot_be_compiled_keeps_its_entries_and_stops_no_other(case, action):
    end, more, why = STUCK[case]
    odd = Rule(from_="web", to=end, ports=("tcp/99",), action=action, name="odd")
    policy = replace(POLICY, rules=(RULE, odd), groups={"members": Group(hosts=("d1",))})
    own = {"cidr": "10.7.7.7/32", "direction": "egress"} if action == "deny" else {"dst_cidr": "10.7.7.7/32"}
    held = from_builtins(
        {
            "version": 1, "service_id": 1, "ttl_seconds": 86_400, "ingress": [],
            ("deny" if action == "deny" else "edges"): [{**own, "proto": "tcp", "port": 99}],
        }
    )  # fmt: skip
    after, notes = again(canonical(held), fleet(("d1",), **more), policy)
    entries = ruleset(after)
    assert [str(e.cidr) for e in (*entries.edges, *entries.deny) if e.port == 99] == ["10.7.7.7/32"]
    assert [str(e.cidr) for e in entries.edges if e.port == 5432] == ["10.0.0.2/32"]
    assert [note for note in notes if note.startswith("rule odd keeps the entries it has: ") and why in note]
    with pytest.raises(Exception, match=r"expected|named|enrolled"):
        compile_policy(policy, fleet(("d1",), **more))


def test_a_governed_service_that_is_no_more_stops_no_other():
    policy = replace(POLICY, services=("web", "gone"))
    assert again(believed("d1"), fleet(("d1",)), policy) == (believed("d1"), ())
    with pytest.raises(Exception, match="no service is named 'gone'"):
        compile_policy(policy, fleet(("d1",)))


@pytest.mark.parametrize("name", ["all", "to", "tcp", "443", "true", "1e5"])
def test_a_name_that_no_rule_can_mean_otherwise_goes_on(name):
    policy = replace(POLICY, rules=(RULE, Rule(from_="web", to=name, ports=("tcp/99",))))
    after, notes = again(believed("d1"), fleet(("d1",), **{name: ODD}), policy)
    assert (reach(after), notes) == ({"10.0.0.2/32", "10.0.0.7/32"}, ())


def test_what_a_rule_may_say_without_a_name_is_no_service():
    with pytest.raises(Invalid, match="rename it"):
        compile_policy(
            replace(POLICY, rules=(Rule(from_="web", to="fleet", ports=("tcp/1",)),)), fleet(fleet=ODD)
        )
