"""The grammar of filters: what each term means, and that nothing else is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.errors import Invalid
from aegisflux.domain.search import (
    EVENT_FIELDS,
    FLOW_FIELDS,
    MAX_TERMS,
    Names,
    Search,
    not_known,
    parse_search,
    unknown,
)


def wanted(**fields):
    return Search({name: tuple(values) for name, values in fields.items()}, {})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", Search()),
        ("   ", Search()),
        ("service=web", wanted(service=["web"])),
        ("service=web host=a", wanted(service=["web"], host=["a"])),
        ("port=80,443", wanted(port=["80", "443"])),
        ("port=80 port=443", wanted(port=["80", "443"])),
        ("-port=22", Search({}, {"port": ("22",)})),
        ("port=80 -port=22,23", Search({"port": ("80",)}, {"port": ("22", "23")})),
        ("  service=web\t host=a ", wanted(service=["web"], host=["a"])),
        ('path="/opt/my app,v2"', wanted(path=["/opt/my app,v2"])),
        (r'path="a\"b\\c"', wanted(path=['a"b\\c'])),
        ("path=/a=b", wanted(path=["/a=b"])),
        ("proto=tcp,UDP,47", wanted(proto=["6", "17", "47"])),
        ("peer=10.0.0.1", wanted(peer=["10.0.0.1"])),
        ("peer=10.0.0.0/8", wanted(peer=["10.0.0.0/8"])),
        ("peer=2001:DB8::0:1", wanted(peer=["2001:db8::1"])),
        ("verdict=blocked,would-block", wanted(verdict=["blocked", "would block"])),
        ('verdict="would block"', wanted(verdict=["would block"])),
        ("direction=egress", wanted(direction=["egress"])),
        ("port=0,65535", wanted(port=["0", "65535"])),
        ("from=web to=2001:DB8::0:1", wanted(**{"from": ["web"], "to": ["2001:db8::1"]})),
        ("class=private,own", wanted(**{"class": ["private", "own"]})),
    ],
)
def test_what_a_filter_means(text, found):
    assert parse_search(text, FLOW_FIELDS) == found


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("web", "field=value"),
        ("service", "field=value"),
        ("service = web", "field=value"),
        ("Service=web", "field=value"),
        ("--service=web", "field=value"),
        ("+service=web", "field=value"),
        ("color=red", "one of the fields"),
        ("pid=1", "one of the fields"),
        ("service=", "filter.service"),
        ("service=a,,b", "filter.service"),
        ("from=10.0.0.0/8", "filter.from"),
        ("to=10.0.0.0/8", "filter.to"),
        ("class=privat", "filter.class"),
        ("port=http", "filter.port"),
        ("port=65536", "filter.port"),
        ("port=-1", "filter.port"),
        ("port=²", "filter.port"),
        ("port=٣", "filter.port"),
        ("proto=٦", "filter.proto"),
        ("port=12345678901", "filter.port"),
        ("proto=256", "filter.proto"),
        ("proto=quic", "filter.proto"),
        ("peer=web", "filter.peer"),
        ("peer=10.0.0.0/33", "filter.peer"),
        ("verdict=denied", "filter.verdict"),
        ("direction=up", "filter.direction"),
        ('path="open', "field=value"),
        ('path="a"b', "field=value"),
        (f"path={'a' * 4097}", "filter.path"),
        (f"port={','.join(['1'] * (MAX_TERMS + 1))}", f"at most {MAX_TERMS}"),
    ],
)
def test_what_is_refused_names_what_was_not_understood(text, what):
    with pytest.raises(Invalid, match=what.replace(".", r"\.")):
        parse_search(text, FLOW_FIELDS)


def test_a_filter_holds_as_many_values_as_the_limit():
    assert len(parse_search(f"port={','.join(['1'] * MAX_TERMS)}", FLOW_FIELDS).wanted["port"]) == MAX_TERMS


def test_events_have_fields_of_their_own():
    assert parse_search("pid=4294967295 kind=exec", EVENT_FIELDS) == wanted(pid=["4294967295"], kind=["exec"])


PLAIN = st.text(st.characters(categories=("L", "N"), include_characters=' "\\,=-/'), min_size=1, max_size=20)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(("service", "host", "path")), PLAIN), max_size=10))
def test_what_is_quoted_comes_back_as_it_was(terms):
    expected = Search({}, {})
    text = ""
    for minus, name, value in terms:
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        text += f' {"-" * minus}{name}="{quoted}"'
        side = expected.unwanted if minus else expected.wanted
        side[name] = (*side.get(name, ()), value)
    assert parse_search(text, FLOW_FIELDS) == expected


@given(st.text(max_size=60) | st.text('abcport=,-" \\1.:/', max_size=60))
def test_no_text_is_more_than_a_search_or_invalid(text):
    try:
        found = parse_search(text, FLOW_FIELDS)
    except Invalid:
        return
    assert set(found.wanted) | set(found.unwanted) <= set(FLOW_FIELDS)
    assert all(value for values in (*found.wanted.values(), *found.unwanted.values()) for value in values)


KNOWN = Names(frozenset({"web-1", "db-1"}), frozenset({"web"}))


@pytest.mark.parametrize("minus", ["", "-"])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("host=web-1", None),
        ("host=web-1,nosuch", ("host", "nosuch")),
        ("host=web", ("host", "web")),
        ("service=web", None),
        ("service=web-1", ("service", "web-1")),
        ("from=web,web-1,10.0.0.1", None),
        ("from=nosuch", ("from", "nosuch")),
        ("to=db-1,FE80::1", None),
        ("to=10.0.0.256", ("to", "10.0.0.256")),
        ("port=1 path=/nosuch reason=nosuch", None),
    ],
)
def test_a_name_that_nothing_has_is_found(text, minus, found):
    assert unknown(parse_search(minus + text, FLOW_FIELDS), KNOWN) == found


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("host", "web-2", 'filter.host: expected a host that is known; did you mean web-1?, got "web-2"'),
        ("host", "x", 'filter.host: expected a host that is known (db-1, web-1), got "x"'),
        ("from", "wbe", "a service that is known or a host that is known, or an address; did you mean web"),
    ],
)
def test_the_refusal_of_an_unknown_name_names_known_ones(field, value, told):
    assert told in str(not_known(f"filter.{field}", field, value, KNOWN))
