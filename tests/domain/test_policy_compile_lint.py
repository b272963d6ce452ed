"""What is told of pairs of rules is what comparing each with each tells; only services on one host differ."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain.net import Address, parse_address
from aegisflux.domain.policy import NUMBERS, Policy, Rule, ends_of, ports_of
from aegisflux.domain.policy_compile import HostPlace, Inventory, Places, ServicePlace, reached
from aegisflux.domain.policy_lint import lint
from aegisflux.domain.policy_ranges import Ranges, holders, numbers
from aegisflux.domain.spans import Spans

HOSTS = {
    "a1": HostPlace({}, ("10.0.0.1", "2001:db8::1")),
    "a2": HostPlace({}, ("10.0.0.2",)),
    "b1": HostPlace({}, ("10.0.1.1",)),
    "spare": HostPlace({}, ("10.0.9.1",)),
}
SERVICES = {
    "web": ServicePlace(1, ("a1", "a2")),
    "batch": ServicePlace(2, ("a1",)),
    "db": ServicePlace(3, ("b1",)),
}
FLEET = Inventory(SERVICES, HOSTS)
ENDS = ("web", "batch", "db", "fleet", "anyone", "host:a1", "10.0.0.0/24", "10.0.0.0/8", "2001:db8::/32")
PORTS = ("tcp/1", "tcp/2", "udp/1", "any/1", "tcp", "any")


def rule(from_, to, *ports, **more):
    return Rule(from_=from_, to=to, ports=ports or ("tcp/5432",), **more)


def policy(*rules, **more):
    return Policy(policy=1, rules=rules, **more)


def told(given, seen=None, inventory=FLEET, kinds=("redundant", "shadowed", "never_hit")):
    return [(one.kind, one.about, one.detail) for one in lint(given, inventory, seen) if one.kind in kinds]


def sides(given, one):
    places, names = Places(given, FLEET), given.services or ()
    for ends in (ends_of(one.from_), ends_of(one.to)):
        held = reached(ends, "", places)
        said = {(name, family) for name in names if name in held for family in held[name]}
        yield Spans(cidr for end in ends for cidr in places.prefixes(end, "")), said


def within(given, one, other):
    def opens(wide, port):
        return wide.proto in (port.proto, "any") and wide.port in (0, port.port)

    ports = all(any(opens(wide, port) for wide in ports_of(other, "")) for port in ports_of(one, ""))
    pairs = zip(sides(given, one), sides(given, other), strict=True)
    return ports and all(theirs.holds(own) for (own, _), (theirs, _) in pairs)


def repeats(given, one, other):
    pairs = zip(sides(given, one), sides(given, other), strict=True)
    return within(given, one, other) and all(own <= theirs for (_, own), (_, theirs) in pairs)


def beaten(given, one, deny):
    said = [
        (own, theirs) for (_, own), (_, theirs) in zip(sides(given, one), sides(given, deny), strict=True)
    ]
    whole = any(own and own <= theirs for own, theirs in said) or not any(own for own, _ in said)
    return within(given, one, deny) and whole


def pairs(given):
    """Each rule with each, in their order: the first remark counts."""
    for n, one in enumerate(given.rules):
        for m, other in enumerate(given.rules):
            if n == m:
                continue
            if one.action == other.action and repeats(given, one, other):
                if m > n and repeats(given, other, one):
                    continue
                yield "redundant", f"rules[{n}]", f"rules[{m}] says all of it"
                break
            if other.action == "deny" != one.action and beaten(given, one, other):
                yield "shadowed", f"rules[{n}]", f"rules[{m}] denies all of it"
                break


rules = st.builds(
    rule, st.sampled_from(ENDS), st.sampled_from(ENDS), st.sampled_from(PORTS),
    action=st.sampled_from(("allow", "allow", "deny")),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(rules, max_size=7), st.sampled_from([("web", "batch", "db"), ("db",), ()]))
def test_remarks_on_pairs_are_those_of_comparing_all(given_rules, services):
    one = policy(*given_rules, services=services)
    assert told(one, kinds=("redundant", "shadowed")) == list(pairs(one))


AT = [parse_address(text) for place in HOSTS.values() for text in place.addresses] + [Address(4, 1)]
flows = st.tuples(*[st.sampled_from(AT)] * 2, st.sampled_from((1, 6, 17)), st.sampled_from((0, 1, 2, 3)))


@settings(max_examples=150, deadline=None)
@given(st.lists(rules, max_size=7), st.lists(flows, max_size=7))
def test_a_rule_is_hit_when_one_flow_is_in_all_of_its_sets(given_rules, seen):
    one = policy(*given_rules)

    def hit(rule, flow):
        client, server, proto, port = flow
        (clients, _), (servers, _) = sides(one, rule)
        return (
            any(proto in NUMBERS[p.proto] and p.port in (0, port) for p in ports_of(rule, ""))
            and clients.has(client)
            and servers.has(server)
        )

    unused = [f"rules[{n}]" for n, r in enumerate(given_rules) if not any(hit(r, flow) for flow in seen)]
    assert [about for _, about, _ in told(one, seen, kinds=("never_hit",))] == unused


@given(st.lists(st.lists(st.sampled_from(ENDS[5:]), max_size=3), max_size=5), st.lists(st.sampled_from(AT)))
def test_a_sweep_says_of_each_address_which_sets_hold_it(sets, asked):
    places = Places(policy(), FLEET)
    ranges = [Ranges(cidr for end in ends for cidr in places.prefixes(end, "")) for ends in sets]
    found = holders({one: 1 << n for n, one in enumerate(ranges)}, asked)
    assert found.keys() == set(asked)
    for address, bits in found.items():
        assert list(numbers(bits)) == [n for n, one in enumerate(ranges) if one.has(address)]


ONE_HOST = Inventory(
    {"web": ServicePlace(1, ("a1",)), "batch": ServicePlace(2, ("a1",)), "db": ServicePlace(3, ("b1",))},
    HOSTS,
)


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        (policy(rule("web", "db"), rule("batch", "db")), []),
        (policy(rule("web", "db"), rule("batch", "db"), services=("db",)), ["redundant"]),
        (policy(rule("db", "web"), rule("db", "batch")), []),
        (policy(rule("web", "db"), rule("host:a1", "db")), ["redundant"]),
        (policy(rule("host:a1", "db"), rule("web", "db")), ["redundant"]),
        (policy(rule("web", "db"), rule("batch", "db", action="deny")), ["shadowed"]),
        (policy(rule("web", "db"), rule("batch", "db", action="deny"), services=("web", "batch")), []),
    ],
)
def test_services_on_one_host_have_rules_of_their_own(given, kinds):
    assert [kind for kind, *_ in told(given, inventory=ONE_HOST)] == kinds


def test_thousands_of_rules_and_flows_are_compared_at_once():
    """Of 4 million pairs each was once looked at: then this takes half a minute and more."""
    blocks = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(2000)]
    given = policy(*(rule("web", block, "tcp/9") for block in blocks))
    seen = [(AT[0], Address(4, (10 << 24) + (n << 8) + 1), 6, 9) for n in range(0, 2000, 2)]
    found = told(given, seen)
    assert (len(found), found[0][:2]) == (1000, ("never_hit", "rules[1]"))
