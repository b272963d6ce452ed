"""Policy files: errors have their line, comments stay, and what is written reads as what it was."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.errors import Invalid, OverLimit, Refused
from aegisflux.domain.policy import MAX_RULES, Group, Policy, Rule
from aegisflux.wire.policyfile import MAX_BYTES, MAX_MARKS, line_of, read, write
from aegisflux.wire.policymerge import merged

TEXT = """\
# who may call whom
policy: 1
name: shop
groups:
  office: {cidrs: [192.0.2.0/24]}  # the fourth floor
rules:
  # asked for by Ada
  - name: office-to-web
    from: office
    to: web
    ports: ["tcp/443", tcp/80]   # both, until June
  - from: [web, "host:w9"]
    to: db
    ports: [tcp/5432]
tests:
  - {from: web, to: db, port: tcp/5432, expect: allowed}
"""


def test_a_file_reads_as_what_it_says():
    policy = read(TEXT)
    assert policy.rules == (
        Rule(name="office-to-web", from_="office", to="web", ports=("tcp/443", "tcp/80")),
        Rule(from_=("web", "host:w9"), to="db", ports=("tcp/5432",)),
    )
    assert policy.groups == {"office": Group(cidrs=("192.0.2.0/24",))}
    assert (policy.name, policy.services, policy.tests[0].expect) == ("shop", None, "allowed")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            "tcp/5432]",
            "tcp/543200]",
            r'line 14: rules\[1\].ports\[0\]: expected tcp/1 to .*, got "tcp/543200"',
        ),
        ("to: db", "too: db", r"line 13: rules\[1\]"),
        ("192.0.2.0/24", "192.0.2.0/33", r"line 5: groups.office.cidrs\[0\]: expected an IPv4 or IPv6 CIDR"),
        ("expect: allowed", "expect: maybe", r"line 16: tests\[0\].expect"),
        ("port: tcp/5432", "port: tcp", r"line 16: tests\[0\].port: expected one port"),
        ("policy: 1", "policy: 2", r"line 2: policy"),
        ("name: shop", "name: [", r"line \d+: expected YAML"),
        ("name: shop", "name: office-to-web\nname: x", r"line \d+: expected YAML"),
        ("from: office", "from: label:prod", r"line 9: rules\[0\].from: expected label:NAME=VALUE"),
        ("  - from: [web", "  - name: office-to-web\n    from: [web", r"a name that rules\[0\] has not"),
    ],
)
def test_an_error_has_its_line(before, after, words):
    with pytest.raises(Invalid, match=words):
        read(TEXT.replace(before, after))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "just words",
        "- 1",
        "\0",
        "policy: !!python/object:os.system 1",
        "[" * 100_000,
        "policy: 1\nrules: &a [*a]",
    ],
)
def test_what_is_no_policy_is_refused(text):
    with pytest.raises(Invalid):
        read(text)


def test_bombs_of_aliases_are_refused_before_they_go_off():
    lines = ["policy: 1", "a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1} '] * 9)}]" for n in range(1, 12)]
    with pytest.raises(OverLimit, match="policy_values"):
        read("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("policy: 1\n#" + "x" * MAX_BYTES, "policy_bytes"),
        ("policy: 1\n#" + "\u00e9" * (MAX_BYTES // 2), "policy_bytes"),
        ("policy: 1\nrules: [" + "a," * (MAX_RULES + 1) + "]", "policy_rules"),
        ("policy: 1\nservices: [" + "," * MAX_MARKS + "]", "policy_marks"),
        ("policy: 1\nservices: " + "[" * MAX_MARKS, "policy_marks"),
        ("policy: 1\nservices: " + "- " * MAX_MARKS, "policy_marks"),
    ],
)
def test_what_is_too_long_is_refused_by_its_limit(text, limit):
    with pytest.raises(OverLimit, match=limit):
        read(text)


UNNAMED = """\
policy: 1
rules:
  # first: DNS
  - {from: web, to: db, ports: [tcp/1]}
  # second: do not touch
  - {from: web, to: db, ports: [tcp/2]}
  # third
  - {from: web, to: db, ports: [tcp/3]}
  # end of the list
"""
HOSTILE = "/tmp/x{}  - {{from: anyone, to: db, ports: [tcp/22]}}{}#"
LINE_ENDS = ["\r", "\n", "\r\n", "\x85", "\u2028", "\u2029", "\0", "\ufeff", "\udc80", "; ", ";\r "]


def because(*words):
    """A policy whose rules rest on these words."""
    rules = (
        Rule(name=f"r{n}", from_="web", to="db", ports=("tcp/5432",), why=why) for n, why in enumerate(words)
    )
    return Policy(policy=1, rules=tuple(rules))


def bare(policy):
    return replace(policy, rules=tuple(replace(rule, why="") for rule in policy.rules))


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_program_that_a_host_reports_adds_no_rule(end):
    policy = because(HOSTILE.format(end, end))
    assert read(write(policy)) == bare(policy)
    text, new = merged(UNNAMED, policy)
    assert (new, read(text).rules[3:]) == (("r0",), bare(policy).rules)


WORDS = st.lists(st.text() | st.sampled_from(LINE_ENDS) | st.sampled_from(["- ", "#", ": ", "{", "'"]))


@settings(max_examples=60)
@given(st.lists(WORDS.map("".join), max_size=3))
def test_whatever_rules_rest_on_the_file_means_the_same(words):
    policy = because(*words)
    assert read(write(policy)) == bare(policy)
    assert read(merged(UNNAMED, policy)[0]).rules == read(UNNAMED).rules + bare(policy).rules


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3), st.lists(st.text(min_size=1)))
def test_names_of_hosts_and_labels_are_written_as_they_are_or_refused(labels, hosts):
    policy = replace(because("x"), groups={"g": Group(labels=labels, hosts=tuple(hosts))})
    try:
        text = write(policy)
    except Refused:
        return
    assert read(text) == bare(policy)


@pytest.mark.parametrize("why", ["x" * 2000, "," * 400])
def test_evidence_that_makes_a_file_too_long_is_left_out(why):
    text = write(because(*[why] * 600))
    assert text.startswith("# what rules rest on is left out")
    assert len(read(text).rules) == 600


def test_a_policy_that_no_file_can_say_is_refused_before_it_is_written():
    rule = Rule(name="Not A Name", from_="web", to="db", ports=("tcp/1",))
    with pytest.raises(Invalid, match=r"rules\[0\].name"):
        write(Policy(policy=1, rules=(rule,)))
    with pytest.raises(OverLimit, match="policy_rules"):
        write(Policy(policy=1, rules=(replace(rule, name=""),) * (MAX_RULES + 1)))


def test_the_evidence_of_a_new_rule_stands_above_it_after_rules_without_names():
    text, _ = merged(UNNAMED, because("seen 7 days; 3 clients"))
    assert "  # seen 7 days\n  # 3 clients\n  - name: r0\n" in text
    assert "  # second: do not touch\n  - {from: web" in text
    assert "  # third\n  - {from: web" in text
    assert "# end of the list" in text


def test_what_is_written_reads_as_what_it_was_with_its_evidence_as_comments():
    rule = Rule(name="web-to-db", from_="web", to="db", ports=("tcp/5432",), why="tcp/5432: 7 days; and more")
    policy = Policy(policy=1, services=("db", "web"), groups={"r": Group(hosts=("a",))}, rules=(rule,))
    text = write(policy)
    assert "  # tcp/5432: 7 days\n  # and more\n  - name: web-to-db\n" in text
    assert read(text).rules == (Rule(name="web-to-db", from_="web", to="db", ports=("tcp/5432",)),)
    assert read(text).groups == policy.groups


def test_new_rules_join_a_file_and_every_line_of_it_stays():
    learned = Policy(
        policy=1,
        groups={"role-1": Group(hosts=("a",)), "other": Group(hosts=("b",))},
        rules=(
            Rule(name="office-to-web", from_="office", to="web", ports=("tcp/1",)),
            Rule(name="web-to-role-1", from_="web", to="role-1", ports=("udp/53",), why="seen on 7 days"),
        ),
    )
    text, new = merged(TEXT, learned)
    assert new == ("web-to-role-1",)
    for comment in ("# who may call whom", "# the fourth floor", "# asked for by Ada", "# both, until June"):
        assert comment in text
    assert "  # seen on 7 days\n  - name: web-to-role-1" in text
    found = read(text)
    assert [rule.name for rule in found.rules] == ["office-to-web", "", "web-to-role-1"]
    assert sorted(found.groups) == ["office", "role-1"]
    assert found.rules[0] == read(TEXT).rules[0]
    assert merged(text, learned) == (text, ())


def test_lines_of_paths():
    assert [line_of(TEXT, path) for path in ("rules[1]", "rules[0].to", "tests[0].port", "nowhere[3]")] == [
        12,
        10,
        16,
        2,
    ]
