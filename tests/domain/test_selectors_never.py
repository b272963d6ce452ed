"""Selectors that no cgroup can ever match are refused with what to write; stored ones go on and are told."""

# ruff: noqa: E501

import pytest

from aegisflux.domain.errors import Invalid
from aegisflux.domain.failsafe_paths import failsafe_path
from aegisflux.domain.selectors import never_matches, parse_selector, parse_stored_selector, slice_of

NEVER = {
    "cgroup:/sys/fs/cgroup/system.slice/web.service": "write cgroup:system.slice/web.service",
    "cgroup:sys/fs/cgroup/quickstart": "write cgroup:quickstart",
    "cgroup:/sys/fs/cgroup/unified/quickstart": "write cgroup:quickstart",
    "cgroup:/sys/fs/cgroup/kubepods.slice/**/web-*": "write cgroup:kubepods.slice/**/web-*",
    "cgroup:/sys/fs/cgroup/": "not of the file system",
    "cgroup:/sys/fs/cgroup/unified": "not of the file system",
    "cgroup:0::/system.slice/web.service": "write cgroup:system.slice/web.service",
    "cgroup:1:name=systemd:/system.slice/web.service": "write cgroup:system.slice/web.service",
    "cgroup:unit:web": "write unit:web",
    "cgroup:unit:web@*": "write unit:web@*",
    "cgroup:cgroup:quickstart": "write cgroup:quickstart",
    "cgroup:service:web": "write cgroup:system.slice/web.service",
    "cgroup:/etc/systemd/system/web.service": "write cgroup:system.slice/web.service",
    "cgroup:/lib/systemd/system/multi-user.target.wants/web.service": "write cgroup:system.slice/web.service",
    "cgroup:system.slice/{a,b}.service": "not a list or a negation",
    "cgroup:system.slice/a.service,system.slice/b.service": "not a list or a negation",
    "cgroup:!system.slice": "not a list or a negation",
    "unit:web@": "write unit:web@*.service for all its instances, or unit:web@1.service for one",
    "unit:web@.service": "not a template",
    "unit:web@.socket": "write unit:web@*.socket",
    "unit:*@.service": "not a template",
    "unit:@1": "the name of a unit, such as nginx or web@1",
    "unit:@": "the name of a unit",
    "unit:.service": "the name of a unit",
    "unit:{a,b}": "no { can be: write a selector for each unit",
    "unit:web-{1,2}.service": "no { can be",
    "unit:!web": "no ! can be",
    "unit:web.service,db.service": "no , can be",
    "unit:web,db": "no , can be",
    "unit:web;db": "no ; can be",
    "unit:(a|b)": "no ( can be",
    "unit:^web$": "no ^ can be",
    "unit:web+": "no + can be",
    "unit:web@%i": "no % can be",
    "unit:~web": "no ~ can be",
    "unit:'web'": "no ' can be",
    "unit:a[b": "no [ can be",
    "unit:café": "no é can be",
}  # fmt: skip
POSSIBLE = [
    "unit:web", "unit:web@1", "unit:web@*", "unit:web@*.socket", "unit:web@[0-9]", "unit:[!x]*", "unit:[a,b]",
    "unit:dev-disk-by\\x2duuid.swap", "unit:app:x_1.scope", "unit:-.mount", "unit:*", "unit:**", "unit:*.slice",
    "unit:kubepods-burstable.slice", "cgroup:quickstart", "cgroup:system.slice/web.service", "cgroup:sys/fs/x",
    "cgroup:kubepods.slice:cri-containerd:0a", "cgroup:unified/x", "cgroup:a,b", "cgroup:{x}", "cgroup:units/x",
    "cgroup:system.slice/system-web.slice/web@1.service", "cgroup:etc/systemd", "cgroup:[!a]x", "cgroup:a!b",
    "unit:getty@tty1", "unit:user@1000", "unit:a@b@c",
]  # fmt: skip


@pytest.mark.parametrize("text", NEVER)
def test_what_never_matches_is_refused_with_what_to_write(text):
    with pytest.raises(Invalid) as caught:
        parse_selector(text, "selectors[0]")
    assert NEVER[text] in str(caught.value)
    assert str(caught.value).startswith("selectors[0]: expected ")


@pytest.mark.parametrize("text", NEVER)
def test_what_is_stored_is_read_and_reported(text):
    assert str(parse_stored_selector(text)).startswith(text[:5])
    assert NEVER[text] in never_matches(text)


@pytest.mark.parametrize("text", POSSIBLE)
def test_what_may_match_is_taken(text):
    assert parse_selector(text) == parse_stored_selector(text)
    assert never_matches(text) == ""


@pytest.mark.parametrize("text", [text for text in NEVER if text.startswith("cgroup:")])
def test_a_failsafe_refuses_the_same_paths(text):
    with pytest.raises(Invalid, match="below the root of the cgroup v2 tree, "):
        failsafe_path(text.removeprefix("cgroup:"))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("kubepods.slice", "kubepods.slice"),
        ("/sys/fs/cgroup/kubepods.slice", "kubepods.slice"),
        ("/sys/fs/cgroup/unified/kubepods.slice/", "kubepods.slice"),
        ("kubepods-burstable.slice", "kubepods.slice/kubepods-burstable.slice"),
        ("/sys/fs/cgroup/kubepods-burstable.slice", "kubepods.slice/kubepods-burstable.slice"),
        ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
        ("a.slice/a-b.slice", "a.slice/a-b.slice"),
        ("lxc.payload.c1/system.slice", "lxc.payload.c1/system.slice"),
        ("system.slice/c.scope/system.slice", "system.slice/c.scope/system.slice"),
    ],
)
def test_a_slice_is_where_systemd_has_it(text, path):
    assert slice_of(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "-.slice", "a--b.slice", "a@1.slice", "kubepods", "a.slice/*.slice", "0::/kubepods.slice",
        "unit:kubepods.slice", "a.slice/b-c.slice", "a.slice/a-b-c.slice", "/sys/fs/cgroup",
    ],
)  # fmt: skip
def test_what_no_slice_can_be_is_refused(text):
    with pytest.raises(Invalid, match=r"^unit_slices: expected "):
        slice_of(text)
