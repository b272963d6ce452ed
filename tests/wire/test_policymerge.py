"""What a proposal adds to a file leaves every other byte of it alone."""

# ruff: noqa: E501
import difflib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aegisflux.domain.errors import Refused
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.wire.policyfile import read
from aegisflux.wire.policymerge import merged

LEARNED = Policy(
    policy=1,
    groups={"role-1": Group(hosts=("a", "b")), "unused": Group(hosts=("c",))},
    rules=(
        Rule(
            name="web-to-role-1",
            from_="web",
            to="role-1",
            ports=("udp/53", "tcp/53"),
            why="udp/53: 7 days; x",
        ),
        Rule(name="web-to-db", from_="web", to="db", ports=("tcp/5432",)),
    ),
)
BLOCK = {
    "as we write it": "policy: 1\nrules:\n  - name: a\n    from: web\n    to: db\n    ports: [tcp/1]\n",
    "without indentation": "policy: 1\nrules:\n- name: a\n  from: web\n  to: db\n  ports: [tcp/1]\n",
    "with much of it": "policy: 1\nrules:\n        -   name: a\n            from: web\n            to: db\n            ports: [tcp/1]\n",
    "ports as a block": "policy: 1\nrules:\n- from: web\n  to: db\n  ports:\n  - tcp/1\n  - tcp/2\n",
    "rules in brackets, one a line": "policy: 1\nrules:\n  - {from: web, to: db, ports: [tcp/1]}\n",
    "a dash and a line": "policy: 1\nrules:\n  -\n    from: web\n    to: db\n    ports: [tcp/1]\n",
    "a dash and a comment": "policy: 1\nrules:\n  - # - first\n    from: web\n    to: db\n    ports: [tcp/1]\n",
    "a start": "---\npolicy: 1\nrules:\n- {from: web, to: db, ports: [tcp/1]}\n",
    "a start and an end": "--- # top\npolicy: 1\nrules:\n- {from: web, to: db, ports: [tcp/1]}\n...\n",
    "rules that are not last": "policy: 1\nrules:\n- {from: web, to: db, ports: [tcp/1]}\n\n# settings\nmode: observe\n",
    "comments everywhere": (
        "# 1\npolicy: 1 # 2\n# 3\nrules: # 4\n# 5\n  # 6\n- from: web # 7\n  # 8\n  to: db   # 9\n"
        "  ports: [tcp/1] # 10\n  # 11\n# 12\n"
    ),
    "spaces at ends": "policy: 1  \nrules:   \n  - from: web \n    to:   db  \n    ports: [ tcp/1 ]   \n   \n",
    "long lines": "policy: 1\nrules:\n- {from: [" + ", ".join(f"host:{'h' * 60}{n}" for n in range(20)) + "], to: db, ports: [tcp/1]}\n",
    "quotes of every kind": "policy: 1\n'name': \"n\"\nrules:\n- 'from': \"w\\x65b\"\n  to: 'db'\n  ports: ['tcp/1', \"tcp/2\", tcp/3]\n",
    "no rules yet": "policy: 1\nmode: observe\n",
    "no rules yet, a comment last": "policy: 1\nmode: observe # now\n# later\n",
    "groups": "policy: 1\ngroups:\n    office: {cidrs: [192.0.2.0/24]}  # 4th floor\n    lab:\n        hosts: [a]\n\nrules:\n- {from: office, to: db, ports: [tcp/1]}\n",
    "groups behind rules": "policy: 1\nrules:\n  - {from: office, to: db, ports: [tcp/1]}\ngroups:\n office:\n  cidrs:\n  - 192.0.2.0/24\n",
    "a block of text": "policy: 1\nrules:\n- from: web\n  to: db\n  ports: [tcp/1]\n  why: |\n    since\n    ever\n\ntests: []\n",
    "a block of text last": "policy: 1\nrules:\n- from: web\n  to: db\n  ports: [tcp/1]\n  why: |\n    since\n    ever\n",
    "a folded text at the very end": "policy: 1\nrules:\n- from: web\n  to: db\n  ports: [tcp/1]\n  why: >-\n    since\n    ever\n",
    "text over lines": "policy: 1\nrules:\n- from: web\n  to: db\n  ports: [tcp/1]\n  why: since\n    ever\n    and ever\n",
    "quoted text over lines": 'policy: 1\nrules:\n- from: web\n  to: db\n  ports: [tcp/1]\n  why: "since\n\n    ever"\n',
    "an anchor": "policy: 1\nrules: &all\n  # - old\n  - from: &w web\n    to: db\n    ports: &p [tcp/1]\n  - from: *w\n    to: db\n    ports: *p\n",
    "an empty value last": "policy: 1\ntests: []\nrules:\n- from: web\n  to: db\n  ports:\n    - tcp/1\n  why: ''\n",
    "empty lines": "\n\npolicy: 1\n\n\nrules:\n\n- from: web\n\n  to: db\n\n  ports: [tcp/1]\n\n\n",
    "brackets over lines": "policy: 1\nrules:\n- {from: web,\n   to: db, # the\n   ports: [\n     tcp/1 ]\n  }\n",
    "explicit keys": "policy: 1\n? rules\n: - from: web\n    to: db\n    ports: [tcp/1]\n",
    "an empty field": "policy: 1\nrules:\nname: x\n",
    "an empty field, indented": "  policy: 1\n  rules:\n  name: x\n",
    "an empty field far in": "      policy: 1\n      rules: # none yet\n\n      # its name\n      name: x\n",
    "empty groups, indented": "  policy: 1\n  groups:\n  name: x\n",
    "two empty fields, indented": " policy: 1\n groups:   \n rules:\n tests:\n",
    "empty fields with lines between": "  policy: 1\n  groups:\n\n  rules:\n\n    # deep\n  # c\n  name: x\n",
    "an empty field last": "  policy: 1\n  rules:\n# end\n",
    "an empty field, a line of blanks last": "policy: 1\nrules:\n   \n",
    "an empty field, blanks at the end": "policy: 1\nrules:\n   ",
    "an empty field, indented, blanks at the end": "  policy: 1\n  groups:\n  rules:  \n     ",
    "an empty field and the end of the document": "---\n  policy: 1\n  rules:\n...\n",
    "an empty field with a quoted key": "  policy: 1\n  'rules' :\n  name: x\n",
    "an explicit empty field": "  policy: 1\n  ? rules\n  # a: b\n  :\n  name: x\n",
    "characters of all scripts": "policy: 1\nrules:\n- {from: web, to: db, ports: [tcp/1]} # Zoë, 漢字, 🙂\n",
    "tabs in comments": "policy: 1\nrules:\n- {from: web, to: db, ports: [tcp/1]} #\ttab\n#\ttab\n",
}  # fmt: skip
FORMS = {
    "LF": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "BOM": lambda text: "\ufeff" + text,
    "BOM and CRLF": lambda text: "\ufeff" + text.replace("\n", "\r\n"),
    "no last line end": lambda text: text.removesuffix("\n"),
    "CRLF, no last line end": lambda text: text.removesuffix("\n").replace("\n", "\r\n"),
}


def bare(rules):
    """A text that ended with the file ends with a line now."""
    return [replace(rule, why=rule.why.removesuffix("\n")) for rule in rules]


def added(before: str, after: str) -> list[str]:
    """The lines that are new; fails where another one changed. A missing last line end is no part of a
    line."""
    old, new = before.split("\n"), after.split("\n")
    found = []
    for line in difflib.ndiff([repr(one) for one in old], [repr(one) for one in new]):
        assert not line.startswith("- "), line
        found += [line[2:]] if line.startswith("+ ") else []
    return found


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("plain", BLOCK.values(), ids=BLOCK.keys())
def test_every_line_stays_byte_for_byte(plain, form):
    text = form(plain)
    found, names = merged(text, LEARNED)
    assert names == ("web-to-role-1", "web-to-db")
    if text.endswith("\n") or "\r" not in text:
        added(text, found)
    assert found.endswith("\n") == text.endswith("\n")
    assert found.startswith("\ufeff") == text.startswith("\ufeff")
    assert ("\r\n" in found) == ("\r\n" in text)
    assert "\r\n" not in text or "\n" not in found.replace("\r\n", "")
    old, new = read(text), read(found)
    assert bare(new.rules[: len(old.rules)]) == bare(old.rules)
    assert [rule.name for rule in new.rules[len(old.rules) :]] == list(names)
    assert set(new.groups) == set(old.groups) | {"role-1"}
    assert merged(found, LEARNED) == (found, ())


EXACTLY = [
    (
        "policy: 1\nrules:\n- name: a\n  from: web\n  to: db\n  ports: [tcp/1] # one\n# end\n",
        (
            "policy: 1\nrules:\n- name: a\n  from: web\n  to: db\n  ports: [tcp/1] # one\n"
            "# udp/53: 7 days\n# x\n- name: web-to-role-1\n  from: web\n  to: role-1\n  ports: [udp/53, tcp/53]\n"
            "- name: web-to-db\n  from: web\n  to: db\n  ports: [tcp/5432]\n"
            "groups:\n  role-1:\n    hosts:\n      - a\n      - b\n# end\n"
        ),
    ),
    ("policy: 1\nrules: []  # none yet\nmode: observe\n", "policy: 1\nrules:  # none yet\n  # udp/53"),
    (
        "  policy: 1\n  groups:   null # none\n  rules: ~\n  name: x\n",
        "  policy: 1\n  groups: # none\n    role-1:\n      hosts:\n        - a\n        - b\n  rules:\n    # udp/53",
    ),
    (
        "  policy: 1\n  rules:\n  name: x\n",
        "  policy: 1\n  rules:\n    # udp/53: 7 days\n    # x\n    - name: web-to-role-1\n",
    ),
    ("policy: 1\nrules: [ # none\n]\n", 'policy: 1\nrules: [ # none\n{"name": "web-to-role-1", '),
    ("policy: 1\ngroups: {}\nrules: []\n", "policy: 1\ngroups:\n  role-1:\n    hosts:\n"),
    (
        "policy: 1\nrules: [{from: web, to: db, ports: [tcp/1]}] # one\n",
        'policy: 1\nrules: [{from: web, to: db, ports: [tcp/1]}, {"name": "web-to-role-1", ',
    ),
    (
        "policy: 1\nrules: [\n  {from: web, to: db, ports: [tcp/1]}, # one\n]\n",
        'policy: 1\nrules: [\n  {from: web, to: db, ports: [tcp/1]}, # one\n  {"name": "web-to-role-1", ',
    ),
    (
        "policy: 1\nrules: [\n  {from: web, to: db, ports: [tcp/1]} # one\n]\n",
        'policy: 1\nrules: [\n  {from: web, to: db, ports: [tcp/1]}, # one\n  {"name": "web-to-role-1", ',
    ),
    ("{policy: 1}", '{policy: 1, "groups": {"role-1": {"hosts": ["a", "b"]}}, "rules": [{"name": '),
]


@pytest.mark.parametrize(("text", "begins"), EXACTLY, ids=range(len(EXACTLY)))
def test_where_what_is_new_stands(text, begins):
    found, _ = merged(text, LEARNED)
    assert found.startswith(begins), found
    assert len(read(found).rules) == len(read(text).rules) + 2


@pytest.mark.parametrize("indent", [None, 1, 2, 4, "\t"])
@pytest.mark.parametrize("more", [{}, {"rules": []}, {"groups": {}}, {"groups": {"o": {"hosts": ["z"]}}},
                                  {"rules": [{"from": "web", "to": "db", "ports": ["tcp/1"]}]}])  # fmt: skip
def test_a_policy_in_json_stays_json(indent, more):
    text = json.dumps({"policy": 1, "name": "n", **more}, indent=indent)
    try:
        read(text)
    except Refused:
        assert indent == "\t"  # which YAML does not take
        return
    found, _ = merged(text, LEARNED)
    assert len(json.loads(found)["rules"]) == 2 + len(more.get("rules", ()))
    assert "role-1" in json.loads(found)["groups"]
    kept = text.split("\n")[:3] if indent else [text[:20]]
    assert found.startswith("\n".join(kept).rstrip("]}").rstrip())


@pytest.mark.parametrize(
    ("text", "words"),
    [("policy: 1\ntests: &a []\nrules: *a\n", "line 3: rules: expected a list of its own, got an alias")],
)
def test_where_nothing_can_be_added_it_says_so(text, words):
    with pytest.raises(Refused, match=words):
        merged(text, LEARNED)


ODD = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["\u2028", "\x85", "\ufeff", "\x7f", "- x", "a: b", "#", "'", '"']
)


@settings(max_examples=80)
@given(st.sampled_from(sorted(BLOCK)), st.sampled_from(sorted(FORMS)), ODD, ODD)
def test_whatever_hosts_are_called_the_file_means_what_was_to_be_added(name, form, host, why):
    text = FORMS[form](BLOCK[name])
    rule = Rule(name="new", from_="g", to="db", ports=("tcp/1",), why=why)
    learned = Policy(policy=1, groups={"g": Group(hosts=(host,))}, rules=(rule,))
    try:
        found, _ = merged(text, learned)
    except Refused:
        return
    assert read(found).groups["g"].hosts == (host,)
    assert read(found).rules[-1].name == "new"
