"""A name is a name and nothing else, at every place where one is given."""

# ruff: noqa: E501
import re
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.agent.enroll import host_id_of
from aegisflux.domain.errors import Invalid
from aegisflux.domain.names import check_label, check_name, literal_of, remarks
from aegisflux.domain.policy import Group, Policy, Rule, check
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_lint import lint
from aegisflux.services.orchestrator import state
from aegisflux.wire.policyfile import read

LITERALS = {
    "an address": [
        "10.0.0.1", "0.0.0.0", "255.255.255.255", "10.0.0.999", "010.0.0.1", "10.1", "10.0.1", "10.", "1.2.3", "1.2.3.4.5",
        "0x7f.1", "0x7f.0.0.1", "::", "::1", "fd00::1", "fe80::1%eth0", "[::1]", "::ffff:10.0.0.1", "1:2:3:4:5:6:7:8", "1.5",
        "2.0", "٣.٣.٣.٣", "de:ad:be:ef:00:01",
        "10.0.0.*", "10.0.*.*", "*.0.0.1", "10.0.0.x", "10.0.x.x", "fd00::*", "10.0.0.1.", "10.0.0.1_", "_10.0.0.1", "10.0.0.1/",
        "(10.0.0.1)", "１０．０．０．１", "10。0。0。1", "10.0.0.1\u200b", "10.\u20600.0.1", "127.1", "0X7F.1", "0177.0.0.1",
        "de-ad-be-ef-00-01", "aa-bb-cc-dd-ee-ff", "DEAD.beef.0001", "::1_", "FE80::1%1",
    ],
    "a range": [
        "10.0.0.1-10.0.0.9", "10.0.0.1 - 10.0.0.9", "10.0.0.1–10.0.0.9", "10.0.0.1-9", "10.0.0.0/24-10.0.9.0/24",
        "fd00::1-fd00::9", "0x10-0x20",
    ],
    "a wildcard": ["*", "**", "*?"],
    "a CIDR": ["10.0.0.0/8", "0.0.0.0/0", "10/8", "10.0.0.0/255.0.0.0", "::/0", "fd00::/8", "10.0.0.0/99", "1/2", "10.0.0.1/8", "10.0.0.0/8/", "10.0.0.*/8", "１０．０．０．０／８", "10.0.0.0∕8", "fe80::1%eth0/64"],
    "a number": ["0", "1", "80", "443", "007", "-1", "+1", "1_000", "1,000", "1e5", "1E-5", "0x1f", "0o17", "0b101", "٣", "８０", "12345678901", "2130706433", "0177", "²", "①", "+443", "443,444", "1__0", "~1", "80_", "1/2/3", "10.0.0.1,10.0.0.2", "10.0.0.1-2-3"],
    "a port": ["tcp/443", "udp/53", "any/53", "TCP/443", "tcp/", "sctp/1", ":80", "10.0.0.1:80", "[::1]:80", "80-90", "8000:8010",
        "443/tcp", "443-tcp", "tcp-443", "tcp_443", "443_udp", "tcp.443", "tcp 443", "443/any", "tcp/80-90", "80-90/tcp", "tcp-*", "icmp-8",
        "ｔｃｐ／４４３", "[::1]:443", "10.0.0.1:*", "10.0.0.1:http", "80:90", "tcp/443."],
    "a keyword of policies": [
        "fleet", "anyone", "Fleet", "ANYONE", "host", "label", "any", "tcp", "udp", "icmp", "allow", "deny", "from", "to", "ports",
        "host:web-1", "label:env=prod", "Label:x", " fleet ", "fleet.", "any.", "anyone-", "_all_", "fleet:", "fleet/", "<none>", "*any*", "cidr:10.0.0.0/8", "CIDR:x",
        "label:", "host:", "service:web", "group:web", "unit:nginx", "any:x", "tcp:443", "tcp:http", "ｆｌｅｅｔ", "ＡＮＹ", "fle\u200bet",
        "\ufefffleet", "fleet\u2060", "host：x",
    ],
    "a word that means a value in YAML": ["true", "False", "null", "yes", "NO", "on", "off", ".inf", ".nan", "inf", "NaN", "-.inf", "~", "true.", "ｎｕｌｌ"],
}  # fmt: skip
WORDS = [
    "web", "db", "web-1", "h1", "a", "b2", "web.eu", "node-10-0-0-1", "service-101", "1st", "2nd-floor", "v1.2.3", "1.2.3-rc1",
    "deadbeef", "dead", "e5", "x1f", "tcp-proxy", "fleet-manager", "anyone-else", "hosts", "labels", "truth", "nobody", "10th.floor",
    "2026-11-30", "a.b.c", "web_1", "0day", "3com", "image:v1.2", "repo/app", "Mon 08:00 and later", "192-168-1-1", "any-cast",
    "db2", "10gbe-core", "face", "dead-beef", "cafe", "a1", "db-2", "be-ef", "ad-be-ef", "aa-bb", "dead.beef.cafe", "dead:beef", "443-proxy",
    "udp-relay", "port-80", "tcp4", "ipv6-gw", "x86-64", "10-0-0-1-web", "host-10-0-0-1", "node-10.eu", "10.eu", "api_v2", "b-52", "7-eleven",
    "5xx-page", "s3", "k8s", "e2e", "to-do", "from-hq", "allow-list", "all-hands", "x.x.x", "c++", "größe", "データ", "/srv/10", "web:http",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "texts"), LITERALS.items())
def test_what_could_be_read_as_something_else(kind, texts):
    assert {text: literal_of(text) for text in texts} == dict.fromkeys(texts, kind)


def test_what_is_a_name():
    assert {text: literal_of(text) for text in WORDS} == dict.fromkeys(WORDS, "")


@given(st.ip_addresses(), st.integers(0, 32))
def test_no_address_and_no_cidr_is_a_name(address, length):
    assert literal_of(str(address)) == "an address"
    assert literal_of(str(ip_network((address, length), strict=False))) == "a CIDR"


@given(st.integers() | st.floats())
def test_no_number_is_a_name(number):
    assert literal_of(str(number))


EVERY = [text for texts in LITERALS.values() for text in texts]
NAMED = [text for text in EVERY if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", text)]


@pytest.mark.parametrize("text", NAMED)
def test_a_policy_gives_no_group_such_a_name(text):
    with pytest.raises(Invalid, match=r"groups.*: expected a name"):
        check(Policy(policy=1, groups={text: Group()}))
    with pytest.raises(Invalid, match="line 3: groups"):
        read(f'policy: 1\ngroups:\n  "{text}": {{}}\n')


@pytest.mark.parametrize("text", EVERY)
def test_no_label_is_given_such_a_name_or_value(text):
    if literal_of(text.strip()) != "a word that means a value in YAML":
        with pytest.raises(Invalid):
            state.check_labels("labels", {"env": text})
    with pytest.raises(Invalid):
        state.check_labels("labels", {text: "prod"})
    assert state.check_labels("labels", {"env": text}, {"env": text}) is None  # what is there stays
    assert remarks({}, {"host a": {text: "x"}})


@pytest.mark.parametrize("text", EVERY)
def test_nothing_is_called_so(text):
    with pytest.raises(Invalid):
        check_name("name", text)
    with pytest.raises(Invalid):
        check_label("labels", text, "prod")
    assert remarks({"service x": text}, {})


@pytest.mark.parametrize("text", WORDS)
def test_such_words_are_names_and_labels(text):
    check_name("name", text)
    check_label("labels", text, text)
    assert remarks({"service x": text}, {"host h": {text: text}}) == []


UNSEEN = [
    "\u200b", "\u200d", "\u2060", "\ufeff", "\u202e", "\u00ad", "\u3164", "\ufe0f", "\u034f", "\u2800", "\n", "\x00", "\u2028",
]  # fmt: skip


@pytest.mark.parametrize("char", UNSEEN)
def test_what_no_one_sees_is_in_no_name_and_all_checks_agree(char):
    for text in (f"web{char}", f"{char}web", f"we{char}b"):
        for labels in ({text: "x"}, {"x": text}):
            (pair,) = labels.items()
            with pytest.raises(Invalid):
                check_label("labels", *pair)
            with pytest.raises(Invalid):
                state.check_labels("labels", labels)
        with pytest.raises(Invalid):
            check_name("name", text)
        assert remarks({"service x": text}, {})


@pytest.mark.parametrize(
    ("name", "value"), [("a=b", "c"), (" a", "c"), ("a ", "c"), ("a", " c"), ("a", "c\t")]
)
def test_a_label_is_read_back_as_it_is_written(name, value):
    with pytest.raises(Invalid):
        check_label("labels", name, value)


@pytest.mark.parametrize("value", ["true", "", "prod", "eu-1", "image:v1.2", "/srv/www", "a=b"])
def test_usual_labels_are_given(value):
    state.check_labels("labels", {"env": value, "example.org/role": "x"})


@pytest.mark.parametrize(
    "name", ["1234.example.org", "0x1f", "10", "localhost1.x", "fleet.example.org", "true"]
)
def test_a_host_is_not_called_by_such_a_name(name):
    if name.startswith("localhost"):
        assert host_id_of(name) == "localhost1"
        return
    with pytest.raises(Invalid, match="host_id: expected a name"):
        host_id_of(name)


HOSTS = {
    "h1": HostPlace({"env": "prod", "role": "web"}, ("10.0.0.1",)),
    "h2": HostPlace({"env": "test", "role": "db"}, ("10.0.0.2",)),
}
FLEET = Inventory(
    {"web": ServicePlace(1, ("h1",)), "db": ServicePlace(2, ("h2",)), "idle": ServicePlace(3, ())}, HOSTS
)


NEWER = ["fleet.", "any.", "443-tcp", "tcp-443", "10.0.0.1-10.0.0.9", "10.0.0.7_", "de-ad-be-ef-00-01"]


def old(name):
    """A fleet in which a service got its name before such names were refused."""
    return Inventory(FLEET.services | {name: ServicePlace(9, ("h2",))}, HOSTS)


@pytest.mark.parametrize(
    "name", ["10.0.0.7", "fd00::7", "fleet", "anyone", "10.0.0.0/8", "10.0.0.0.1", "host:h1"]
)
def test_a_service_that_has_such_a_name_is_reported_and_no_rule_means_it(name):
    fine = Policy(policy=1, rules=(Rule(from_="web", to="db", ports=("tcp/5432",)),))
    assert compile_policy(fine, old(name))
    assert ("ambiguous_name", f"service {name}") in [(one.kind, one.about) for one in lint(fine, old(name))]
    with pytest.raises(Invalid, match=r"which is .* too; rename it"):
        compile_policy(Policy(policy=1, rules=(Rule(from_=name, to="db", ports=("tcp/1",)),)), old(name))


@pytest.mark.parametrize("name", ["443", "tcp", "all", "to", "1e5", "true", *NEWER])
def test_one_that_has_a_name_which_no_rule_can_mean_otherwise_is_reported_and_goes_on(name):
    named = Policy(policy=1, services=("web",), rules=(Rule(from_="web", to=name, ports=("tcp/1",)),))
    assert [edge.dst_cidr for edge in compile_policy(named, old(name))["web"].edges] == ["10.0.0.2/32"]
    assert ("ambiguous_name", f"service {name}") in [(one.kind, one.about) for one in lint(named, old(name))]


def nothing(*rules, **more):
    found = lint(Policy(policy=1, rules=rules, **more), FLEET)
    return [(one.about, one.detail, one.advice) for one in found if one.kind == "matches_nothing"]


def rule(from_, to, **more):
    return Rule(from_=from_, to=to, ports=("tcp/1",), **more)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (rule("label:env=prd", "db", action="deny", name="x"), ("x", "from: label:env=prd matches nothing: no host bears this label; the rule denies nothing", "correct its value; hosts bear env=prod, env=test")),
        (rule("web", "label:enx=prod", action="deny"), ("rules[0]", "to: label:enx=prod matches nothing: no host bears a label enx; the rule denies nothing", "correct its name, or give hosts the label; did you mean env?")),
        (rule("label:Env=prod", "db"), ("rules[0]", "from: label:Env=prod matches nothing: no host bears a label Env; the rule allows nothing", "correct its name, or give hosts the label; did you mean env?")),
        (rule(("web", "label:env=prd"), "db", action="deny"), ("rules[0]", "from: label:env=prd matches nothing: no host bears this label; the rule denies nothing for it", "correct its value; hosts bear env=prod, env=test")),
        (rule("idle", "db"), ("rules[0]", "from: idle matches nothing: no host runs this service; the rule allows nothing", "look at its host_labels")),
    ],
    ids=range(5),
)  # fmt: skip
def test_a_rule_of_nobody_is_reported(one, words):
    assert nothing(one) == [words]


def test_groups_tests_and_services_of_nobody_are_reported():
    groups = {
        "g": Group(labels={"env": "prod", "role": "db"}),
        "e": Group(),
        "l": Group(labels={"env": "prd"}),
    }
    found = nothing(
        rule("g", "db", action="deny"),
        rule("e", "db"),
        rule("l", "db"),
        groups=groups,
        services=("web", "db", "idle"),
    )
    assert [about for about, *_ in found] == ["rules[0]", "rules[1]", "rules[2]", "services: idle"]
    assert "no host bears all labels of the group" in found[0][1]
    assert "the group is empty" in found[1][1]
    assert "(label env=prd of the group)" in found[2][1]


@pytest.mark.parametrize(
    "end", ["label:env=prod", "host:h1", "web", "fleet", "anyone", "192.0.2.0/24", "192.0.2.1"]
)
def test_what_matches_something_is_not_reported(end):
    assert nothing(rule(end, "db"), rule("web", end)) == []


def test_a_label_whose_value_has_a_slash_is_a_label():
    place = HostPlace({"path": "/srv/10.0.0.0/8"}, ("10.0.0.9",))
    fleet = Inventory(FLEET.services | {"nas": ServicePlace(8, ("h9",))}, HOSTS | {"h9": place})
    made = compile_policy(Policy(policy=1, rules=(rule("label:path=/srv/10.0.0.0/8", "db"),)), fleet)
    assert [entry.src_cidr for entry in made["db"].ingress] == ["10.0.0.9/32"]
