"""What is wrong in a policy is told with its line, its path, what was expected, what came, and what to write."""

# ruff: noqa: E501
import pytest

from aegisflux.domain.errors import Invalid, Refused
from aegisflux.domain.policy_compile import HostPlace, Inventory, ServicePlace, compile_policy
from aegisflux.domain.policy_lint import lint
from aegisflux.domain.policy_tests import outcome
from aegisflux.wire.policyfile import lines_of, read

PLACES = Inventory(
    {"web": ServicePlace(1, ("w1",)), "db": ServicePlace(2, ("d1",))},
    {"w1": HostPlace({"env": "prod"}, ("10.0.0.1",)), "d1": HostPlace({}, ("10.0.0.2",))},
)
ENDS = "a service, a group of this policy, fleet, anyone, host:NAME, label:NAME=VALUE, a CIDR such as 10.0.0.0/8, or an address"


def refusal(text):
    with pytest.raises(Refused) as caught, lines_of(text):
        policy = read(text)
        outcome(policy, PLACES, compile_policy(policy, PLACES))
    return str(caught.value)


def rule(from_="web", to="db", more=""):
    return f"policy: 1\n{more}rules:\n  - {{from: web, to: db, ports: [tcp/1]}}\n  - from: {from_}\n    to: {to}\n    ports: [tcp/1]\n"


UNNAMED = [
    (rule(to="host:nosuch"), "line 5: rules[1].to: host 'nosuch' is not enrolled"),
    (rule(from_="[web, 'host:w2']"), "line 4: rules[1].from[1]: host 'w2' is not enrolled; see aegisflux hosts list"),
    (rule(from_="'*'"), f"line 4: rules[1].from: no service, group or kind of end is named '*'; expected {ENDS}"),
    (rule(to="wbe"), "line 5: rules[1].to: no service, group or kind of end is named 'wbe'; did you mean web?"),
    (rule(more="services: [web,\n  dbb]\n"), "line 3: services[1]: no service is named 'dbb'; did you mean db?"),
    (rule(to="g", more="groups:\n  g:\n    hosts:\n    - w1\n    - zzz\n"), "line 6: groups.g.hosts[1]: host 'zzz' is not enrolled"),
    (rule() + "tests:\n  - from: web\n    to: nobody\n    port: tcp/1\n    expect: allowed\n", "line 9: tests[0].to: no service, group"),
    (rule(to="host:d1", more="services: [db]\n") + "    action: deny\n  - {from: web, to: 'host:q', ports: [tcp]}\n", "line 9: rules[2].to: host 'q'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "begins"), UNNAMED, ids=range(len(UNNAMED)))
def test_a_name_that_nobody_has_is_told_where_it_is_written(text, begins):
    assert refusal(text).startswith(begins)


FOREIGN = {
    "tag:prod": "write label:NAME=VALUE",
    "group:eng": "write eng",
    "service:web": "write web",
    "svc:web": "write web",
    "autogroup:internet": "",
    "web:443": "write web, and tcp/443 in `ports`",
    "cidr:10.0.0.0/8": "write 10.0.0.0/8",
    "ns/web": "",
    "user@example.com:x": "",
    "hosts:w1": "",
}


@pytest.mark.parametrize(("end", "advice"), FOREIGN.items(), ids=FOREIGN.keys())
@pytest.mark.parametrize("side", ["from_", "to"])
def test_what_other_tools_call_an_end_is_told_what_to_write(end, advice, side):
    said = refusal(rule(**{side: f"'{end}'"}))
    assert f"rules[1].{side.rstrip('_')}: expected {ENDS}" in said
    assert f'got "{end}"' in said
    assert advice in said


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("10.0.0.999", "address"),
        ("10.0.0.1/33", "an IPv4 or IPv6 CIDR"),
        ("fe80::zz", ENDS),
        ("2001:db8::/200", "an IPv4 or IPv6 CIDR"),
    ],
)
def test_what_looks_like_an_address_is_told_what_an_address_is(end, expected):
    assert expected in refusal(rule(to=f"'{end}'"))


OPERATORS = [
    "env!=prod",
    "env==prod",
    "env=~prod",
    "env!~prod",
    "env>=2",
    "env<2",
    "env=!prod",
    "!env",
    "env",
]


@pytest.mark.parametrize("label", OPERATORS)
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_an_operator_on_a_label_is_refused_also_beside_an_end_that_matches(label, action):
    said = refusal(rule(from_=f"['host:w1', 'label:{label}']") + f"    action: {action}\n")
    assert said.startswith("line 4: rules[1].from[1]: expected label:NAME=VALUE")
    assert f'got "label:{label}"' in said


@pytest.mark.parametrize("label", ["env=prod", "env=", "a.b/c=x=y", "v=a!", "v=1<2"])
def test_other_labels_are_read(label):
    assert read(rule(from_=f"'label:{label}'")).rules[1].from_ == f"label:{label}"


@pytest.mark.parametrize("label", ["env=1", "v=10.0.0.1", "v=0x10", "tcp/1=x", "host=x", "v=10.0.0.0/8"])
@pytest.mark.parametrize("group", [False, True])
def test_no_advice_is_given_that_cannot_be_followed(label, group):
    name, _, value = label.partition("=")
    more = f"groups:\n  g: {{labels: {{'{name}': '{value}'}}}}\n" if group else ""
    text = rule(from_="g" if group else f"'label:{label}'", more=more)
    found = [one for one in lint(read(text), PLACES) if "no host can bear this label" in one.detail]
    assert found
    assert all("a label with" in one.detail and "give hosts the label" not in one.advice for one in found)


WORDS = [
    (rule(more="mode: enforced\n"), "line 2: mode: expected one of enforce, observe (did you mean enforce?), got \"enforced\""),
    (rule(more="on_expiry: shut\n"), "line 2: on_expiry: expected one of closed, open, got \"shut\""),
    (rule() + "    action: block\n", "line 7: rules[1].action: expected one of allow, deny, got \"block\""),
    (rule() + "tests:\n  - {from: web, to: db, port: tcp/1, expect: allow}\n", "line 8: tests[0].expect: expected one of allowed, blocked (did you mean allowed?)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "begins"), WORDS, ids=range(len(WORDS)))
def test_a_word_of_a_closed_set_is_told_which_there_are(text, begins):
    assert refusal(text).startswith(begins)


def test_a_refusal_of_a_job_gets_its_line_from_its_words():
    with pytest.raises(Refused, match=r"line 5: rules\[1\].to: x"), lines_of(rule()):
        raise Refused("rules[1].to: x")
    with pytest.raises(Invalid, match=r"^line 4: "), lines_of(rule()):
        read(rule(from_="'tag:x'"))
