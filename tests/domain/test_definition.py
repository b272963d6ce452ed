"""Which change of a service waits for somebody who approves it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegisflux.domain.definition import Definition, differences, takes_from, waits
from aegisflux.domain.roles import Principal
from aegisflux.domain.selectors import may_meet, never_matches, parse_selector

WEB = Definition("web", ("unit:web",), {"role": "web"})
OTHERS = (Definition("db", ("unit:db.service", "cgroup:system.slice/pg*"), {"role": "db"}), WEB)


@pytest.mark.parametrize(
    ("role", "after", "matters", "held"),
    [
        ("operator", Definition("web", ("unit:web", "unit:x"), {"role": "web"}), True, True),
        ("approver", Definition("web", ("unit:web",), {}), True, True),
        ("operator", Definition("www", ("unit:web",), {"role": "web"}), True, True),
        ("operator", WEB, True, False),
        ("operator", Definition("web", (), {}), False, False),
        ("admin", Definition("web", (), {}), True, False),
    ],
)
def test_who_waits(role, after, matters, held):
    assert waits(WEB, after, matters=matters, author=Principal("olga", role)) is held


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (WEB, ()),
        (Definition("www", ("unit:web",), {"role": "web"}), ("name web becomes www",)),
        (Definition("web", (), {"role": "web"}), ("selector unit:web is removed",)),
        (Definition("web", ("unit:x", "unit:web"), {"role": "web"}), ("selector unit:x is added",)),
        (Definition("web", ("unit:web",), {}), ("host label role=web is removed",)),
        (
            Definition("web", ("unit:web",), {"role": "db", "a": "b"}),
            ("host label a=b is added", "host label role=web becomes role=db"),
        ),
    ],
)
def test_what_differs_in_words(after, words):
    assert differences(WEB, after) == words


SOME = st.builds(
    Definition,
    st.sampled_from("ab"),
    st.lists(st.sampled_from("xy"), max_size=3).map(tuple),
    st.dictionaries(st.sampled_from("lm"), st.sampled_from("vw")),
)


@given(one=SOME, other=SOME)
def test_what_differs_is_always_said(one, other):
    assert (differences(one, other) == ()) is (one == other)


@pytest.mark.parametrize(
    ("selector", "labels", "names"),
    [
        ("unit:web", {}, ("web",)),
        ("unit:web.service", {"role": "web"}, ("web",)),
        ("unit:web.service", {"role": "db"}, ()),
        ("unit:web*", {}, ("web",)),
        ("unit:*", {}, ("db", "web")),
        ("unit:webhook", {}, ()),
        ("unit:web@*", {}, ()),
        ("cgroup:system.slice/web.service", {}, ("web",)),
        ("cgroup:system.slice/db.service/worker", {}, ("db",)),
        ("cgroup:system.slice/pgbouncer.service", {}, ("db",)),
        ("cgroup:quickstart", {}, ()),
        ("cgroup:system.slice", {}, ("db", "web")),
        ("cgroup:kubepods.slice/**", {}, ("db", "web")),
    ],
)
def test_whose_cgroups_new_selectors_could_take(selector, labels, names):
    found = takes_from(None, Definition("new", (selector,), labels), OTHERS)
    assert found == names


def test_what_a_service_had_takes_nothing_new():
    more = Definition("web2", ("unit:web", "unit:x"), {})
    assert takes_from(Definition("web2", ("unit:web",), {}), more, OTHERS) == ()
    assert takes_from(Definition("web2", ("unit:web",), {"role": "no"}), more, OTHERS) == ("web",)


NAMES = st.sampled_from(["web", "web.service", "w*", "*", "we?", "web@1", "web@*", "app", "[ab]pp.service"])
TOPS = st.sampled_from(
    ["system.slice", "machine.slice", "system.slice/system-web.slice", "quickstart", "a/b"]
)
SELECTORS = st.one_of(
    NAMES.map("unit:{}".format),
    TOPS.map("cgroup:{}".format),
    st.tuples(TOPS, NAMES).map(lambda both: f"cgroup:{both[0]}/{both[1]}"),
    st.sampled_from(["cgroup:**/web.service", "cgroup:*/w*", "cgroup:sys*"]),
).filter(lambda text: not never_matches(text))
PATHS = st.tuples(
    TOPS, st.sampled_from(["", "/web.service", "/web", "/app.service", "/web@1.service", "/web.service/sub"])
).map("".join)


@given(one=SELECTORS, other=SELECTORS, path=PATHS, upper=PATHS)
def test_selectors_that_take_one_anothers_cgroups_may_meet(one, other, path, upper):
    first, second = parse_selector(one), parse_selector(other)
    nested = path == upper or path.startswith(upper + "/")
    if nested and first.matches(path) and second.matches(upper):
        assert may_meet(first, second)
        assert may_meet(second, first)
