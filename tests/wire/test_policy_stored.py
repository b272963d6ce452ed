"""Policies that were stored before some names were refused go on as they are, and are reported."""

import pytest
from tests.wire.test_policy_errors import PLACES

from aegisflux.domain.errors import Invalid
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_lint import lint
from aegisflux.wire.policyfile import read, read_stored


def policy(rule: str, more: str = "") -> str:
    return f"policy: 1\nrules:\n  - {{{rule}}}\n{more}"


ODD = {
    "no equality": (policy("from: 'label:env!=prod', to: web, ports: [tcp/1]"), "rules[0].from"),
    "a match": (policy("from: 'label:env=~prod', to: web, ports: [tcp/1]"), "rules[0].from"),
    "twice equal": (policy("from: web, to: ['label:env==prod'], ports: [tcp/1]"), "rules[0].to[0]"),
    "unseen": (policy('from: "label:env=pr\\u200bod", to: web, ports: [tcp/1]'), "rules[0].from"),
    "a port with zeros": (policy("from: web, to: db, ports: [tcp/1, tcp/0022]"), "rules[0].ports[1]"),
    "a port in other digits": (policy("from: web, to: db, ports: [tcp/١]"), "rules[0].ports[0]"),
    "a group like a number": (
        policy("from: '443', to: web, ports: [tcp/1]", "groups:\n  '443': {hosts: [w1]}\n"),
        'groups.443',
    ),
    "a group like an address": (
        policy("from: 1.2.3.4, to: web, ports: [tcp/1]", "groups:\n  1.2.3.4: {hosts: [w1]}\n"),
        'groups["1.2.3.4"]',
    ),
    "a group like a keyword": (
        policy("from: any, to: web, ports: [tcp/1]", "groups:\n  any: {hosts: [w1]}\n"),
        "groups.any",
    ),
    "a mapped prefix": (
        policy("from: web, to: '::ffff:172.16.0.0/12', ports: [tcp/1], action: deny"), "rules[0].to",
    ),
    "a mapped prefix of a group": (
        policy("from: web, to: near, ports: [tcp/1]", "groups:\n  near: {cidrs: ['::ffff:10.0.0.0/8']}\n"),
        "groups.near.cidrs[0]",
    ),
    "a mapped prefix of a test": (
        policy(
            "from: web, to: db, ports: [tcp/1]",
            "tests:\n  - {from: web, to: '::ffff:10.0.0.0/24', port: tcp/1, expect: blocked}\n",
        ),
        "tests[0].to",
    ),
    "a test": (
        policy(
            "from: web, to: db, ports: [tcp/1]",
            "tests:\n  - {from: 'label:env!=prod', to: db, port: tcp/01, expect: blocked}\n",
        ),
        "tests[0].from",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "path"), ODD.values(), ids=ODD)
def test_it_is_refused_when_it_is_new_and_reported_when_it_is_stored(text, path):
    with pytest.raises(Invalid):
        read(text)
    stored = read_stored(text)
    assert any("line " in words and f": {path}: expected" in words for words in stored.odd), stored.odd
    assert compile_policy(stored.policy, PLACES)


def test_a_stored_policy_means_what_it_did():
    places = Inventory(
        {"web": ServicePlace(1, ("w1",))},
        {"w1": HostPlace({}, ("10.0.0.1",)), "x1": HostPlace({"env!": "prod"}, ("10.0.0.9",))},
    )
    stored = read_stored(policy("from: 'label:env!=prod', to: web, ports: [tcp/0022]")).policy
    (rule,) = compile_policy(stored, places)["web"].ingress
    assert (rule.src_cidr, rule.proto, rule.port) == ("10.0.0.9/32", "tcp", 22)


@pytest.mark.parametrize(
    "text",
    [
        policy("from: web, to: db, ports: [tcp/0]"),
        policy("from: web, to: 'svc:db', ports: [tcp/1]"),
        policy("from: web, to: db, ports: [tcp/1]", "groups:\n  fleet: {}\n"),
        policy("from: web, to: db, ports: [tcp/1]", "more: 1\n"),
        "- 1\n",
        "a",
    ],
)
def test_what_never_was_a_policy_is_none_when_it_is_stored(text):
    with pytest.raises(Invalid):
        read_stored(text)


def test_characters_that_do_not_read_as_they_look_are_taken_in_what_is_stored():
    text = policy("from: web, to: db, ports: [tcp/1]") + "# \u202e told by a host\n"
    with pytest.raises(Invalid):
        read(text)
    assert read_stored(text).odd == ()


def test_groups_that_look_like_something_else_are_reported():
    stored = read_stored(ODD["a group like a number"][0]).policy
    (found,) = (one for one in lint(stored, PLACES) if one.about == "group 443")
    assert (found.kind, found.detail) == ("ambiguous_name", "its name looks like a number")
