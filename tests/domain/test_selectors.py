"""Which cgroup a selector means, and who wins."""

import pytest

from aegisflux.domain.errors import Invalid
from aegisflux.domain.selectors import literal_paths, owners, parse_selector

UNIT = "system.slice/nginx.service"


@pytest.mark.parametrize(
    ("text", "path", "selected"),
    [
        ("unit:nginx.service", UNIT, True),
        ("unit:nginx", UNIT, True),
        ("unit:nginx", "system.slice/nginx.socket", True),
        ("unit:nginx.socket", UNIT, False),
        ("unit:nginx", "machine.slice/x/nginx.service", True),
        ("unit:nginx", UNIT + "/worker", False),
        ("unit:web@*", "system.slice/system-web.slice/web@1.service", True),
        ("unit:web@?.service", "system.slice/web@12.service", False),
        ("unit:web@[0-3].service", "web@2.service", True),
        ("unit:web@[!0-3].service", "web@2.service", False),
        ("unit:*.scope", "user.slice/session-1.scope", True),
        ("unit:ng.nx", "system.slice/ngxnx.service", False),
        ("cgroup:web", "web", True),
        ("cgroup:/web/", "web", True),
        ("cgroup:web", "web/worker", False),
        ("cgroup:web/*", "web/worker", True),
        ("cgroup:web/*", "web/a/b", False),
        ("cgroup:web/**", "web/a/b", True),
        ("cgroup:**", "", False),
        ("cgroup:*", "/", False),
    ],
)
def test_what_a_selector_selects(text, path, selected):
    assert parse_selector(text).matches(path) is selected


@pytest.mark.parametrize(
    "text",
    ["", "nginx", "label:x", "unit:", "cgroup:/", "cgroup:a//b", "cgroup:../x", "unit:a/b", "cgroup:a\n"],
)
def test_what_is_no_selector(text):
    with pytest.raises(Invalid):
        parse_selector(text)


def services(**texts):
    return {int(name[1:]): [parse_selector(t) for t in wanted] for name, wanted in texts.items()}


@pytest.mark.parametrize(
    ("wanted", "winner"),
    [
        (services(s1=["unit:ng*"], s2=["unit:nginx"]), 2),
        (services(s1=["unit:n*"], s2=["unit:ngin*"]), 2),
        (services(s2=["unit:n*"], s1=["unit:n*"]), 1),
        (services(s1=["cgroup:system.slice/*"], s2=["unit:ng*"]), 1),
        (services(s1=["cgroup:**", "unit:nginx"], s2=["unit:ngin?"]), 1),
    ],
)
def test_a_literal_then_the_longer_prefix_then_the_lower_id_wins(wanted, winner):
    found = owners([UNIT], wanted)
    assert found.services == {UNIT: winner}
    assert found.conflicts == {3 - winner: (f"{UNIT}: belongs to service {winner}",)}


def test_literals_are_known_before_they_exist():
    wanted = services(s1=["unit:nginx", "cgroup:batch/job"], s2=["unit:ng*"])
    assert literal_paths(wanted, ["machine.slice/nginx.service", "system.slice/ngx.service"]) == {
        UNIT: 1,
        "system.slice/nginx.socket": 1,
        "batch/job": 1,
        "machine.slice/nginx.service": 1,
    }
