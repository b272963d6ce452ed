"""Hostile and ambiguous YAML: every text is a value that means one thing, or a refusal with its line."""

# ruff: noqa: E501
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain.errors import Invalid, OverLimit, Refused
from aegisflux.wire.policyfile import read
from aegisflux.wire.yaml_text import Located, parse

REFUSED = {
    "a directive of the version": ("%YAML 1.2\n---\npolicy: 1\n", 1),
    "of an older version": ("%YAML 1.1\n---\npolicy: 1\n", 1),
    "of a version to come": ("# c\n\n%YAML 9.9\n---\npolicy: 1\n", 3),
    "of tags": ("%TAG ! tag:example.org,2000:\n---\npolicy: 1\n", 1),
    "that is reserved": ("%FOO bar\n---\npolicy: 1\n", 1),
    "behind a BOM": ("\ufeff%YAML 1.2\n---\npolicy: 1\n", 1),
    "broken": ("%\n", 1),
    "a directive below": ("policy: 1\n...\n%YAML 1.2\n---\npolicy: 1\n", 4),
    "a tag of Python": ("a: 1\nb: !!python/object/apply:os.system [id]", 2),
    "a local tag": ("a: 1\nb: !foo 1", 2),
    "an empty tag": ("a: 1\nb: ! x", 2),
    "a verbatim tag": ("a: !<tag:yaml.org,2002:str> 1", 1),
    "a tag of text": ("a: !!str 1", 1),
    "a broken integer": ("a: !!int x", 1),
    "a broken float": ("a: !!float x", 1),
    "a broken truth": ("a: !!bool x", 1),
    "a broken time": ("a: !!timestamp x", 1),
    "broken base 64": ("a: !!binary '?'", 1),
    "a set": ("!!set {a, a}", 1),
    "an ordered map": ("a: !!omap [a: 1]", 1),
    "a tag of a mapping": ("a: !!map {}", 1),
    "an alias of nothing": ("a: 1\nb: *c", 2),
    "an alias of what comes": ("a: *c\nb: &c 1", 1),
    "what holds itself": ("a: 1\nb: &b [*b]", 2),
    "what holds itself deeper": ("a: &a\n  b: {c: [*a]}", 2),
    "an alias as a key": ("a: &a b\n*a : 1", 2),
    "a merge key": ("a: &a {b: 1}\nc: {<<: *a}", 2),
    "a merge key of nothing": ("<<: 1", 1),
    "merges of a list": ("a: &a {b: 1}\nc:\n  <<: [*a, *a]", 3),
    "a list as a key": ("? [1, 2]\n: 3", 1),
    "a mapping as a key": ("{}: 1", 1),
    "null as a key": ("a: 1\n~: 2", 2),
    "a truth as a key": ("a: 1\ntrue: 2", 2),
    "a number as a key": ("a: 1\n1: 2", 2),
    "a key twice": ("a: 1\nb: 2\na: 1", 3),
    "a key twice, quoted": ('a: 1\n"a": 2', 2),
    "a key twice, escaped": ('a: 1\n"\\u0061": 2', 2),
    "a key twice in brackets": ("x:\n  y: {a: 1, a: 2}", 2),
    "a key twice in JSON": ('{"x": [{"a": 1,\n"a": 2}]}', 2),
    "two documents": ("a: 1\n---\nb: 2", 2),
    "nothing": ("", 1),
    "a comment alone": ("# nothing\n", 1),
    "NUL": ("a: 1\nb: \0", 2),
    "a bell": ("a: \x07", 1),
    "an escape": ("a: 1\n# \x1b[2J", 2),
    "DEL": ("a: \x7f", 1),
    "a control character of Latin-1": ("a: \x9b", 1),
    "half a surrogate pair": ("a: 1\nb: '\ud800'", 2),
    "no character": ("a: \ufffe", 1),
    "a BOM inside": ("a: 1\n\ufeffb: 2", 2),
    "two BOMs": ("\ufeff\ufeffa: 1", 1),
    "NEL, which ends a comment in YAML 1.1": ("a: 1 # x\x85b: 2", 1),
    "LS, which does too": ("a: 1\n# x\u2028b: 2", 2),
    "PS, which does too": ("a: 1\n# x\u2029b: 2", 2),
    "a carriage return alone": ("a: 1 # x\rb: 2", 1),
    "text that runs backwards": ("a: 1\nb: 'x\u202e y'", 2),
    "isolated text": ("a: 'x\u2066 y'", 1),
    "a tab as indentation": ("a:\n\tb: 1", 2),
    "brackets that stay open": ("a: [1,\n2", 2),
    "a quote that stays open": ("a: 'x\n", 2),
    "a colon too many": ("a: b: c", 1),
    "an escape that is none": ('a: "\\q"', 1),
    "half an escape": ('a: "\\u00"', 1),
    "too many levels in brackets": ("a: " + "[" * 100, 1),
    "very many levels": ("[" * 100_000, 1),
    "very many levels of mappings": ("{a: " * 40_000, 1),
    "levels of dashes": ("- " * 1_000, 1),
    "levels of questions": ("? " * 1_000, 1),
    "an at sign": ("a: @b", 1),
    "a grave accent": ("a: `b`", 1),
    "a percent sign": ("a: %b", 1),
}


@pytest.mark.parametrize(("text", "line"), REFUSED.values(), ids=REFUSED.keys())
def test_what_means_nothing_or_two_things_is_refused_with_its_line(text, line):
    with pytest.raises(Located) as error:
        parse(text)
    assert error.value.line == line, error.value
    assert str(error.value).startswith(f"line {line}: ")
    assert "\x1b" not in str(error.value)


MEANINGS = {
    "5": 5,
    "-5": -5,
    "0": 0,
    "05": "05",
    "+5": "+5",
    "1_000": "1_000",
    "0x1f": "0x1f",
    "0o17": "0o17",
    "1e5": "1e5",
    "1.0": "1.0",
    ".inf": ".inf",
    ".nan": ".nan",
    "9" * 5000: "9" * 5000,
    "٥": "٥",
    "12:30": "12:30",
    "2026-11-30": "2026-11-30",
    "2026-13-45": "2026-13-45",
    "2026-11-30T99:00:00": "2026-11-30T99:00:00",
    "yes": "yes",
    "no": "no",
    "on": "on",
    "Off": "Off",
    "y": "y",
    "true": True,
    "TRUE": True,
    "tRUE": "tRUE",
    "false": False,
    "null": None,
    "~": None,
    "": None,
    "'true'": "true",
    '"5"': "5",
    "'<<'": "<<",
    "=": "=",
    "10.0.0.0/8": "10.0.0.0/8",
    "::1": "::1",
    "1:2:3:4:5:6:7:8": "1:2:3:4:5:6:7:8",
    "&a x": "x",
    "|\n  two\n  lines\n": "two\nlines\n",
    "[1, x]": [1, "x"],
    "{b: 1, c: ~}": {"b": 1, "c": None},
}


@pytest.mark.parametrize(("text", "value"), MEANINGS.items(), ids=range(len(MEANINGS)))
def test_a_scalar_is_what_is_written(text, value):
    found = parse(f"a: {text}").value["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffpolicy: 1",
        "---\npolicy: 1\n...\n",
        "policy: 1\r\nname: x\r\n",
        "--- # c\npolicy: 1",
        '{"policy": 1}',
    ],
)
def test_usual_forms_of_a_file_are_read(text):
    assert read(text).policy == 1


def test_aliases_count_what_they_stand_for():
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1} '] * 9)}]" for n in range(1, 12))]
    with pytest.raises(OverLimit, match="policy_values"):
        parse("\n".join(lines))
    assert parse("a: &a [1]\nb: *a").value == {"a": [1], "b": [1]}


LOCATED = [
    ("groups:\n  web:\n    labels: {env: x, prod: true}", r"line 4: groups.web.labels.prod: expected a string, got true"),
    ("groups:\n  a: {}\n  web:\n    labels:\n      prod:\n", r"line 6: groups.web.labels.prod: expected a string, got null"),
    ("groups:\n  web:\n    labels:\n      a.b: 5\n", r'line 5: groups.web.labels\["a.b"\]: expected a string, got 5'),
    ("groups:\n  a: {}\n  Web: {}\n", r'line 4: groups.Web: expected a key that is .*, got "Web"'),
    ("groups:\n  a: {}\n  web: []\n", r"line 4: groups.web: expected an object, got an array of 0"),
    ("groups:\n  a: {}\n  web: {host: []}\n", r'line 4: groups.web.host: expected no such field, got "host"'),
    ("groups:\n  web:\n    hosts:\n      - a\n      - no\n      - 5\n", r"line 7: groups.web.hosts\[2\]: expected a string, got 5"),
    ("ttl_seconds: 0x3c\n", r'line 2: ttl_seconds: expected an integer, got "0x3c"'),
    ("ttl_seconds: 3600.0\n", r'line 2: ttl_seconds: expected an integer, got "3600.0"'),
    ("ttl_seconds: '3600'\n", r'line 2: ttl_seconds: expected an integer, got "3600"'),
    ("ttl_seconds: 1_000\n", r'line 2: ttl_seconds: expected an integer, got "1_000"'),
    ("ttl_seconds: true\n", r"line 2: ttl_seconds: expected an integer, got true"),
    ("name: 5\n", r"line 2: name: expected a string, got 5"),
    ("name: on\nrules: {}\n", r"line 3: rules: expected an array, got an object of 0"),
    ("rules:\n- from: a\n  to: b\n", r"line 3: rules\[0\].ports: expected a value \(the field is required\)"),
    ("rules:\n- {from: a, to: b, ports: tcp/1}\n", r'line 3: rules\[0\].ports: expected an array, got "tcp/1"'),
    ("rules:\n- from: a\n  to: b\n  ports:\n  - tcp/1\n  - 443\n", r"line 7: rules\[0\].ports\[1\]: expected a string, got 443"),
    ("tests:\n- from: a\n  to: b\n  port: tcp/1\n  expect: Allowed\n", r"line 6: tests\[0\].expect: expected .*, got .Allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), LOCATED, ids=range(len(LOCATED)))
def test_an_error_has_its_path_its_value_and_its_line(text, words):
    with pytest.raises(Invalid, match=f"^{words}"):
        read("policy: 1\n" + text)


PIECES = st.sampled_from(
    ["%", "---", "...", "!", "!!", "&a", "*a", "<<", ": ", "- ", "? ", "[", "]", "{", "}", ",", "'", '"', "|", ">",
     "#", "\n", "\r\n", "\t", " ", "a", "1", "~", "\\", "@", "`", "YAML 1.2", "TAG", "=", "\0", "\ufeff", "\x85"]
)  # fmt: skip


@settings(max_examples=400)
@given(st.lists(PIECES | st.text(max_size=3), max_size=14).map("".join))
def test_whatever_a_text_is_it_is_read_or_refused(text):
    try:
        parse(text)
    except Refused:
        return
