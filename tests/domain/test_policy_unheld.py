"""Rules that no kernel will ever hold: local denies are refused, what no governed service holds is told."""

# ruff: noqa: E501

import pytest

from aegisflux.domain.errors import Invalid
from aegisflux.domain.local_denies import warnings_of
from aegisflux.domain.policy import Group, Policy, Rule, check
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_lint import lint
from aegisflux.domain.snapshot import from_builtins
from aegisflux.wire.policyfile import read, read_stored

HOSTS = {
    "w1": HostPlace({"env": "prod"}, ("10.0.0.1", "fd00::1")),
    "w2": HostPlace({"env": "prod"}, ("10.0.0.2",)),
    "d1": HostPlace({"env": "dev"}, ("10.0.1.1",)),
    "s1": HostPlace({"env": "spare"}, ("10.0.9.1",)),
}
SERVICES = {
    "web": ServicePlace(1, ("w1", "w2")),
    "db": ServicePlace(2, ("d1",)),
    "cache": ServicePlace(3, ("d1",)),
    "word": ServicePlace(4, ("s1",), reported=("s1",)),
}
FLEET = Inventory(SERVICES, HOSTS)


def rule(from_, to, **more):
    return Rule(from_=from_, to=to, ports=("tcp/1",), **more)


def deny(from_, to):
    return rule(from_, to, action="deny")


LOCAL = [
    "127.0.0.0/8", "127.0.0.1", "127.1.2.0/24", "127.255.255.255/32", "::1", "::1/128", "0.0.0.0", "0.0.0.0/32",
    "::", "::/128", "::ffff:127.0.0.1", "::ffff:127.0.0.0/104", "self", "selves",
]  # fmt: skip
GROUPS = {
    "self": Group(cidrs=("127.0.0.0/8",)),
    "selves": Group(cidrs=("127.0.0.1", "::1")),
    "mixed": Group(cidrs=("127.0.0.1", "10.0.0.0/8")),
    "hosts": Group(cidrs=("127.0.0.1",), hosts=("d1",)),
    "labels": Group(cidrs=("127.0.0.1",), labels={"env": "dev"}),
    "empty": Group(),
}
NOT_LOCAL = [
    "126.0.0.0/7", "0.0.0.0/0", "0.0.0.0/8", "128.0.0.0/8", "::/127", "::/0", "::2", "169.254.169.254",
    "255.255.255.255", "fe80::/10", "ff00::/8", "mixed", "hosts", "labels", "empty", "web", "host:d1", "fleet",
]  # fmt: skip


@pytest.mark.parametrize("end", LOCAL)
@pytest.mark.parametrize(
    ("of", "path"),
    [
        (lambda end: deny("web", end), "rules[0].to"),
        (lambda end: deny(end, "web"), "rules[0].from"),
        (lambda end: deny("web", ("10.9.0.0/16", end)), "rules[0].to[1]"),
    ],
)
def test_a_deny_of_what_is_local_on_every_host_is_refused(end, of, path):
    with pytest.raises(Invalid, match="what a host sends to itself is always allowed") as caught:
        check(Policy(policy=1, groups=GROUPS, rules=(of(end),)))
    assert caught.value.path == path


@pytest.mark.parametrize("end", LOCAL)
def test_an_allow_of_it_is_taken(end):
    check(Policy(policy=1, groups=GROUPS, rules=(rule("web", end),)))


@pytest.mark.parametrize("end", NOT_LOCAL)
def test_a_deny_of_more_is_taken(end):
    check(Policy(policy=1, groups=GROUPS, rules=(deny("web", end),)))


@pytest.mark.parametrize(
    ("cidr", "warned"),
    [("127.0.0.0/8", True), ("127.0.0.1/32", True), ("::1/128", True), ("0.0.0.0/32", True), ("::/128", True),
     ("::ffff:127.0.0.1/128", True), ("10.0.0.0/8", False), ("0.0.0.0/0", False), ("::/0", False)],
)  # fmt: skip
def test_the_author_of_a_snapshot_is_warned_of_it(cidr, warned):
    denies = [{"cidr": at, "proto": "tcp", "port": 1, "direction": "both"} for at in ("192.0.2.1/32", cidr)]
    found = warnings_of(from_builtins({"version": 1, "service_id": 1, "ttl_seconds": 60, "deny": denies}))
    assert [
        line.endswith("holds nowhere: what a host sends to itself is always allowed; take it out")
        for line in found
    ] == [True] * warned


def test_a_stored_one_goes_on_and_is_told():
    text = "policy: 1\nrules:\n  - {from: web, to: 127.0.0.0/8, ports: [tcp/1], action: deny}\n"
    with pytest.raises(Invalid, match=r"line 3: rules\[0\]\.to: expected an end of a deny"):
        read(text)
    stored = read_stored(text)
    assert ["line 3: rules[0].to: " in words for words in stored.odd] == [True]
    assert len(compile_policy(stored.policy, FLEET)["web"].deny) == 1


def told(*rules, **more):
    found = lint(Policy(policy=1, rules=rules, **more), FLEET)
    return [(one.about, one.detail, one.advice) for one in found if one.kind == "matches_nothing"]


NO_SERVICE = "no governed service is at either end; the rule allows nothing"
UNHELD = {
    "nothing is governed": (rule("web", "db"), {"services": ()}, NO_SERVICE, "name one, or add it to `services`"),
    "another is governed": (rule("web", "db"), {"services": ("word",)}, NO_SERVICE, "add it to `services`"),
    "labels": (rule("label:env=spare", "label:env=dev"), {"services": ("web",)}, NO_SERVICE, "`services`"),
    "labels, none named": (rule("label:env=prod", "label:env=dev"), {}, NO_SERVICE, "make one of those hosts"),
    "CIDRs": (rule("10.5.0.0/24", "192.0.2.0/24"), {}, NO_SERVICE, "make one of those hosts"),
    "hosts": (rule("host:w1", "host:s1"), {}, NO_SERVICE, "make one of those hosts"),
    "anyone": (rule("anyone", "anyone"), {}, NO_SERVICE, "make one of those hosts"),
    "families": (
        rule("10.0.0.0/24", "2001:db8::/32"), {"services": ("web",)},
        "its ends have no family of addresses in common; the rule allows nothing", "of the same family",
    ),
    "families of a deny": (
        deny("10.0.0.0/24", "2001:db8::/32"), {"services": ("web",)},
        "its ends have no family of addresses in common; the rule denies nothing", "of the same family",
    ),
    "one host": (
        deny("db", "cache"), {},
        "both ends are one host, and what a host sends to itself is always allowed; the rule denies nothing",
        "take it out",
    ),
    "the host itself": (deny("db", "host:d1"), {}, "both ends are one host, ", "take it out"),
    "its own address": (deny("10.0.1.1", "db"), {}, "both ends are one host, ", "take it out"),
    "its own service": (deny("db", "db"), {}, "both ends are one host, ", "take it out"),
    "by report": (deny("word", "word"), {}, "both ends are one host, ", "take it out"),
}  # fmt: skip


@pytest.mark.parametrize(("one", "more", "detail", "advice"), UNHELD.values(), ids=UNHELD)
def test_a_rule_that_no_governed_service_holds_is_told(one, more, detail, advice):
    (found,) = told(one, **more)
    assert found[0] == "rules[0]"
    assert found[1].startswith(detail)
    assert advice in found[2]


@pytest.mark.parametrize(
    "one",
    [
        rule("web", "db"), rule("web", "192.0.2.0/24"), rule("anyone", "db"), rule("db", "cache"),
        rule("label:env=dev", "web"), rule("web", "2001:db8::/32"), rule("word", "db"), rule("web", "127.0.0.1"),
        deny("web", "web"), deny("web", "db"), deny("db", "host:w1"), deny("web", "host:w1"),
        deny("db", ("host:d1", "host:w1")), deny("db", "10.0.1.0/24"), deny("db", "fleet"), deny("word", "db"),
    ],
)  # fmt: skip
def test_a_rule_that_one_holds_is_not_told(one):
    assert told(one, services=tuple(SERVICES)) == []


@pytest.mark.parametrize(
    ("hosts", "words", "advice"),
    [(("w1",), "w1 runs it by report alone", "that host its labels"),
     (("w1", "w2"), "w1, w2 run it by report alone", "those hosts its labels")],
)  # fmt: skip
def test_one_host_and_many_are_told_in_their_number(hosts, words, advice):
    places = Inventory(SERVICES | {"web": ServicePlace(1, hosts, reported=hosts)}, HOSTS)
    (found,) = (
        one for one in lint(Policy(policy=1, rules=(rule("web", "db"),)), places) if one.kind == "unlabelled"
    )
    assert found.detail.startswith(words)
    assert advice in found.advice


def test_a_rule_that_waits_for_its_service_is_not_told_again():
    """`segment export` writes what was seen of hosts outside of services; the group of such a rule says so."""
    groups = {"others": Group(hosts=("s1",), unregistered=True), "peers": Group(cidrs=("10.9.0.1",))}
    for rules, told in (((rule("others", "peers"),), []), ((rule("peers", "10.8.0.0/16"),), ["rules[0]"])):
        policy = Policy(policy=1, name="p", services=("web",), groups=groups, rules=rules)
        found = [one.about for one in lint(policy, FLEET) if one.kind == "matches_nothing"]
        assert found == told
