"""Odd forms of a policy file: each is read and added to, or refused with its own line and what to write."""

# ruff: noqa: E501

import pytest

from aegisflux.domain.errors import Refused
from aegisflux.domain.policy import Group, Policy, Rule
from aegisflux.wire.policyfile import read
from aegisflux.wire.policymerge import merged

LEARNED = Policy(
    policy=1,
    groups={"role-1": Group(hosts=("a", "b"))},
    rules=(Rule(name="web-to-role-1", from_="web", to="role-1", ports=("udp/53",)),),
)
RULE = "{from: web, to: db, ports: [tcp/1]}"
FORMS = {
    "explicit keys alone": f"? policy\n: 1\n? rules\n: - {RULE}\n",
    "explicit keys, indented": f"  ? policy\n  : 1\n  ? rules\n  : - {RULE}\n",
    "explicit keys without rules": "? policy\n: 1\n? mode\n: observe\n",
    "an explicit first key": f"? policy\n: 1\nrules:\n  - {RULE}\n",
    "an explicit key in quotes": f"? 'policy'\n: 1\n? \"rules\"\n: - {RULE}\n",
    "explicit, after a mark": "\ufeff? policy\n: 1\n? mode\n: observe\n",
    "rules of nothing": "policy: 1\nrules:\n",
    "rules of nothing, at the end": "policy: 1\nrules:",
    "rules of nothing, with a comment": "policy: 1\nrules: # none yet\nmode: observe\n",
    "rules of null": "policy: 1\nrules: null # none\nmode: observe\n",
    "rules of ~": "policy: 1\nrules: ~\n",
    "groups of nothing": f"policy: 1\ngroups:\nrules:\n  - {RULE}\n",
    "all of nothing": "policy: 1\ngroups:\ntests:\nrules:\n",
    "null in brackets": "{policy: 1, rules: null}",
    "nothing in brackets": "{policy: 1, rules: , groups: ~}",
}


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_an_odd_form_is_read_and_added_to(text, ends):
    text = text.replace("\n", ends)
    old = read(text)
    found, names = merged(text, LEARNED)
    assert names == ("web-to-role-1",)
    new = read(found)
    assert new.rules == old.rules + LEARNED.rules
    assert new.groups == old.groups | LEARNED.groups
    assert merged(found, LEARNED) == (found, ())


COMMENTS = {
    "of the rules": f"policy: 1\nrules:\n  - {RULE}\n  # of the rules\n  # more\n# end\n",
    "deeper, behind an empty line": f"policy: 1\nrules:\n  - {RULE}\n\n    # of the rules\n\n  # more\n\n# end\n",
    "of a list without indentation": f"policy: 1\nrules:\n- {RULE}\n  # of the rules\n  # more\n# end\n",
    "before another field": f"policy: 1\nrules:\n  - {RULE}\n  # of the rules\n  # more\nmode: observe\n# end\n",
    "at the end of the file": f"policy: 1\nrules:\n  - {RULE}\n  # of the rules\n  # more",
}


@pytest.mark.parametrize("text", COMMENTS.values(), ids=COMMENTS.keys())
def test_comments_of_the_rules_stay_with_them(text):
    found, _ = merged(text, LEARNED)
    lines = [line.strip() for line in found.splitlines()]
    assert lines.index("# of the rules") < lines.index("# more") < lines.index("groups:")
    assert lines.index("# more") < lines.index("- name: web-to-role-1")
    assert "# end" not in lines or lines.index("groups:") < lines.index("# end")
    assert found.endswith("\n") == text.endswith("\n")


REFUSED = [
    ("policy: 1\nrules:\n\t# x\n", "line 3: expected spaces"),
    ("policy: 1\n\t\nrules: []\n", "line 2: expected spaces"),
    ("policy: 1\nrules: []\t# x\n", "line 2: expected spaces"),
    ("policy: 1\nrules:\n  - from: web\n\tto: db\n", "line 4: expected spaces"),
    (
        "policy: 1\ngroups:\n  g:\n    hosts:\n",
        "line 4: groups.g.hosts: expected an array ([] is an empty one; or",
    ),
    (
        "policy: 1\ngroups:\n  g: {labels: }\n",
        "line 3: groups.g.labels: expected an object ({} is an empty one; or",
    ),
]


@pytest.mark.parametrize(("text", "begins"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_says_what_to_write(text, begins):
    with pytest.raises(Refused) as caught:
        read(text)
    assert str(caught.value).startswith(begins)


@pytest.mark.parametrize(
    "text",
    [
        f"policy: 1\n? groups\n: ? g\n  : {{hosts: [a]}}\n? rules\n: - {RULE}\n",
        "policy: 1\n? rules\n? mode\n: observe\n",
    ],
)
def test_what_cannot_be_added_to_is_refused_with_its_own_line(text):
    with pytest.raises(Refused, match=r"line 2: expected `groups:` and `rules:` as plain blocks"):
        merged(text, LEARNED)
