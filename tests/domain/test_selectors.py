"""Which cgroup a selector means, who wins, and what is no selector at any layer."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegisflux.domain import globs
from aegisflux.domain.errors import Invalid
from aegisflux.domain.globs import matcher
from aegisflux.domain.selectors import (
    MAX_DEPTH,
    MAX_PATH,
    MAX_SELECTOR,
    below,
    owners,
    parse_selector,
    parse_stored_selector,
    root_only,
    slice_of,
    unborn_paths,
)
from aegisflux.domain.units import default_paths
from aegisflux.wire import layout

UNIT = "system.slice/nginx.service"


@pytest.mark.parametrize(
    ("text", "path", "selected"),
    [
        ("unit:nginx.service", UNIT, True),
        ("unit:nginx", UNIT, True),
        ("unit:nginx", "system.slice/nginx.socket", True),
        ("unit:nginx.socket", UNIT, False),
        ("unit:nginx", "machine.slice/machine-x.slice/nginx.service", True),
        ("unit:nginx", "system.slice/a.slice/a-b.slice/nginx.socket", True),
        ("unit:cpu.x", "system.slice/_cpu.x.service", True),
        ("unit:cpu.x", "system.slice/cpu.x.service", True),
        ("unit:app-b.slice", "app.slice/app-b.slice", True),
        ("unit:app-b.slice", "system.slice/app-b.slice", False),
        ("unit:app-b.slice", "app-b.slice", False),
        ("unit:app-b.slice", "app.slice/app-b.slice/x.service", False),
        ("unit:app.slice", "app.slice", True),
        ("unit:app.slice", "system.slice/app.slice", False),
        ("unit:_x.slice", "__x.slice", True),
        ("unit:memory-a.slice", "_memory.slice/memory-a.slice", True),
        ("unit:system-web.slice", "system.slice/system-web.slice", True),
        ("unit:system-*.slice", "system.slice/system-web.slice", True),
        ("unit:*.slice", "system.slice/system-web.slice", True),
        ("unit:*.slice", "system.slice/web.slice", False),
        ("unit:*.slice", "system.slice/x/system-web.slice", False),
        ("unit:*.slice", "system.slice/system-a-b.slice", False),
        ("unit:app-*.slice", "app.slice/app-b.slice", False),
        ("unit:*", "system.slice/docker", False),
        ("unit:init.scope", "init.scope", True),
        ("unit:init.scope", "system.slice/init.scope", False),
        ("unit:app.path.service", "system.slice/app.path.service", True),
        ("unit:nginx", UNIT + "/worker", False),
        ("unit:web@*", "system.slice/system-web.slice/web@1.service", True),
        ("unit:web@?.service", "system.slice/web@12.service", False),
        ("unit:web@[0-3].service", "system.slice/web@2.service", True),
        ("unit:web@[!0-3].service", "system.slice/web@2.service", False),
        ("unit:*.scope", "machine.slice/libpod-1.scope", True),
        ("unit:ng.nx", "system.slice/ngxnx.service", False),
        ("cgroup:web", "web", True),
        ("cgroup:/web/", "web", True),
        ("cgroup:web", "web/worker", False),
        ("cgroup:web/*", "web/worker", True),
        ("cgroup:web/*", "web/a/b", False),
        ("cgroup:web/**", "web/a/b", True),
        ("cgroup:**", "", False),
        ("cgroup:*", "/", False),
        ("cgroup:user.slice/user-7.slice", "user.slice/user-7.slice", True),
    ],
)
def test_what_a_selector_selects(text, path, selected):
    assert parse_selector(text).matches(path) is selected


@pytest.mark.parametrize(
    "path",
    [
        "nginx.service",
        "user.slice/nginx.service",
        "user.slice/user-7.slice/user@7.service/app.slice/nginx.service",
        "kubepods.slice/nginx.service",
        "system.slice/lxc.payload.c1/system.slice/nginx.service",
        "system.slice/docker/abc/nginx.service",
        "system.slice/foo.target/nginx.service",
        "system.slice/foo.timer/nginx.service",
        "system.slice/foo.service.d/nginx.service",
        "system.slice/system-a.slice/x/nginx.service",
        "system.slice/x/system-a.slice/nginx.service",
        "system.slice/x.slice-2/nginx.service",
        "machine.slice/c1/init/nginx.service",
        "machine.slice/x/nginx.service",
        "system.slice/other.service/nginx.service",
        "system.slice/other.service/deep/er/nginx.service",
        "system.slice/other.service/system.slice/nginx.service",
        "machine.slice/libpod-1.scope/nginx.service",
        "system.slice-2/nginx.service",
        "x/system.slice/nginx.service",
        "system.slice",
    ],
)
@pytest.mark.parametrize("text", ["unit:nginx", "unit:*", "unit:**", "unit:*.slice"])
def test_a_unit_is_looked_for_where_systemd_puts_units_and_nowhere_else(text, path):
    assert not parse_selector(text).matches(path)


@pytest.mark.parametrize(
    ("added", "path", "selected"),
    [
        ("kubepods.slice", "kubepods.slice/nginx.service", True),
        ("kubepods.slice", "kubepods.slice/kubepods-pod1.slice/nginx.service", True),
        ("kubepods.slice", "kubepods.slice/cri.scope/nginx.service", False),
        ("a.slice/a-b.slice", "a.slice/a-b.slice/nginx.service", True),
        ("a.slice/a-b.slice", "a.slice/nginx.service", False),
        (
            "kubepods.slice",
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/nginx.service",
            True,
        ),
        ("kubepods.slice", "kubepods.slice/kubepods-besteffort.slice/pod1/nginx.service", False),
        ("system.slice/c.scope/system.slice", "system.slice/c.scope/system.slice/nginx.service", True),
    ],
)
def test_a_host_adds_slices(added, path, selected):
    selector = parse_selector("unit:nginx", slices=("system.slice", slice_of(added)))
    assert selector.matches(path) is selected


@pytest.mark.parametrize(
    ("text", "path", "selected"),
    [
        ("unit:cri-*.scope", "kubepods.slice/kubepods-besteffort.slice/cri-1.scope", True),
        ("unit:cri-1.scope", "kubepods.slice/kubepods-besteffort.slice/cri-1.scope", True),
        ("unit:cri-1.scope", "kubepods.slice/kubepods-besteffort/cri-1.scope", False),
        ("unit:kubepods-*.slice", "kubepods.slice/kubepods-besteffort.slice", True),
        ("unit:kubepods-*.slice", "kubepods.slice/besteffort.slice", False),
        ("unit:system-*.slice", "lab/system.slice/system-a.slice", True),
        ("unit:system-a.slice", "lab/system.slice/system-a.slice", True),
        ("unit:system-a.slice", "lab/system-a.slice", False),
    ],
)
def test_scopes_and_slices_of_a_slice_that_the_host_adds(text, path, selected):
    slices = ("system.slice", "kubepods.slice", "lab/system.slice")
    assert parse_selector(text, slices=slices).matches(path) is selected


@pytest.mark.parametrize("text", ["", "/", "kubepods", "*.slice", "a//b.slice", "a b.slice", "x/../y.slice"])
def test_what_is_no_slice(text):
    with pytest.raises(Invalid, match="unit_slices"):
        slice_of(text)


@pytest.mark.parametrize(
    ("unit", "paths"),
    [
        ("nginx", ["system.slice/nginx.service", "system.slice/nginx.socket"]),
        ("nginx.socket", ["system.slice/nginx.socket"]),
        (
            "app@1",
            ["system.slice/system-app.slice/app@1.service", "system.slice/system-app.slice/app@1.socket"],
        ),
        ("app@1.scope", ["system.slice/system-app.slice/app@1.scope"]),
        ("app@a@b.scope", ["system.slice/system-app.slice/app@a@b.scope"]),
        ("my-app@1.scope", [r"system.slice/system-my\x2dapp.slice/my-app@1.scope"]),
        (r"a\x2db@1.scope", [r"system.slice/system-a\x5cx2db.slice/a\x2db@1.scope"]),
        ("a_b.c:d@1.scope", ["system.slice/system-a_b.c:d.slice/a_b.c:d@1.scope"]),
        ("e-f@dev-sda1.scope", [r"system.slice/system-e\x2df.slice/e-f@dev-sda1.scope"]),
        ("grün@1.scope", [r"system.slice/system-gr\xc3\xbcn.slice/grün@1.scope"]),
        ("app@.scope", ["system.slice/app@.scope"]),
        ("memory.scope", ["system.slice/_memory.scope"]),
        ("_x.scope", ["system.slice/__x.scope"]),
        ("app@.hidden.scope", ["system.slice/system-app.slice/app@.hidden.scope"]),
        ("app@.hidden", ["system.slice/system-app.slice/app@.hidden.service",
                         "system.slice/system-app.slice/app@.hidden.socket"]),
        ("app@..scope", ["system.slice/system-app.slice/app@..scope"]),
        ("app.v2@.scope", ["system.slice/app.v2@.scope"]),
        ("app.v2@1.scope", ["system.slice/system-app.v2.slice/app.v2@1.scope"]),
        ("app@a.slice.scope", ["system.slice/system-app.slice/app@a.slice.scope"]),
        ("app.slice", ["app.slice"]),
        ("app-b.slice", ["app.slice/app-b.slice"]),
        ("app-b-c.slice", ["app.slice/app-b.slice/app-b-c.slice"]),
        ("system-app.slice", ["system.slice/system-app.slice"]),
        ("pids-x.slice", ["_pids.slice/pids-x.slice"]),
        ("init.scope", ["init.scope"]),
        (".x.scope", ["system.slice/_.x.scope"]),
        ("cgroup.x.scope", ["system.slice/_cgroup.x.scope"]),
        ("tasks.scope", ["system.slice/tasks.scope"]),
        ("cpux.scope", ["system.slice/cpux.scope"]),
        # versions of systemd escape these in one way or the other
        ("memory.x.scope", ["system.slice/_memory.x.scope", "system.slice/memory.x.scope"]),
        ("hugetlb.scope", ["system.slice/_hugetlb.scope", "system.slice/hugetlb.scope"]),
        ("dmem.x.scope", ["system.slice/_dmem.x.scope", "system.slice/dmem.x.scope"]),
        ("app@*", []),
    ],
)  # fmt: skip
def test_where_a_unit_is_before_it_was_ever_seen(unit, paths):
    """As systemd names directories: a slice for each template, escaped (systemd-escape), `_` before names
    that the kernel uses."""
    selector = parse_stored_selector(f"unit:{unit}")
    assert list(selector.paths()) == paths
    assert all(selector.matches(path) for path in paths)


@pytest.mark.parametrize(
    "text",
    [
        "", "nginx", "label:x", "unit:", "cgroup:/", "cgroup:a//b", "cgroup:../x", "unit:a/b", "cgroup:a\n",
        "cgroup:a b", "cgroup:\x1b[2J", "cgroup:\udcff", "cgroup:a\0b", "cgroup:\u202e",
        "cgroup:[z-a]", "unit:[z-a]*", "cgroup:[b--c]", "cgroup:[!]",
        "cgroup:" + "x" * (MAX_PATH + 1), "cgroup:" + "x" * 255, "cgroup:" + "é" * 127, "cgroup:" + "日" * 85,
        "cgroup:" + "x/" * 200, "cgroup:/" + "x/" * MAX_DEPTH + "x", "unit:" + "x" * 240, "unit:" + "é" * 120,
        "unit:app.path", "unit:app.target", "unit:app.device", "unit:app.automount", "unit:app.timer",
        "unit:*.timer", "unit:app@1.target", "unit:-.slice", "unit:app@1.slice", "unit:a--b.slice",
        "unit:-a.slice", "unit:a-.slice",
        "unit:" + "é-" * 20 + "@1", "cgroup:" + "*x" * 256, "cgroup:" + "?" * MAX_SELECTOR,
    ],
)  # fmt: skip
def test_what_is_no_selector(text):
    with pytest.raises(Invalid):
        parse_selector(text)


def test_what_to_write_for_a_service_with_the_suffix_of_another_unit():
    with pytest.raises(Invalid, match=r"write unit:app\.path\.service"):
        parse_selector("unit:app.path")
    (path, _) = parse_selector("unit:app.path.service").paths()
    assert path == "system.slice/app.path.service"


@pytest.mark.parametrize(
    ("name", "directory"),
    [("tasks", "_tasks"), ("notify_on_release", "_notify_on_release"), ("release_agent", "_release_agent")],
)
def test_names_of_the_kernels_files_are_escaped(name, directory):
    assert default_paths(name) == (f"system.slice/{directory}",)


@pytest.mark.parametrize(
    "text",
    [
        "cgroup:" + "x" * MAX_PATH, "cgroup:/" + "x" * MAX_PATH + "/", "cgroup:" + "é" * 126,
        "cgroup:" + "/".join(["x"] * MAX_DEPTH), "unit:" + "x" * 232, "cgroup:" + "*" * 400,
        "cgroup:" + "*x" * 250, "cgroup:[", "cgroup:a[b", "cgroup:[]x]", "cgroup:[[]", "cgroup:[a&&b~~c||d]",
    ],
)  # fmt: skip
def test_what_is_accepted_has_room_in_the_kernel(text):
    """The key of a literal is "/", the path and a NUL, one byte shorter than what the kernel would cut."""
    for path in parse_selector(text).paths():
        assert len(b"/" + path.encode()) < layout.MAX_PATH - 1


def test_no_glob_takes_long_to_fail():
    """`**a` eighty times against a path of 250 letters would take a regular expression for ever."""
    path = "a" * 250 + "/" + "a" * 250
    began = time.process_time()
    deep = "/".join(["a"] * 2000)
    for glob in (
        "**a" * 80 + "b", "*" * 400 + "b", "*?" * 100 + "/b", "*a" * 200 + "b", "*a" * 200 + "/b",
        "**a**a**b", "**/*a" * 90 + "/b", "**?*a" * 80 + "/b", "**a*/" + "*/" * 200 + "b",
        "**" + "a/" * 200 + "b", "*[!b]" * 80 + "b", "**/a**/a**/ab", "**/*/*a*/*a*/*/b",
    ):  # fmt: skip
        for one in (path, "a" * 4000, deep, "aa/" * 1300):
            assert not parse_selector("cgroup:" + glob).matches(one)
    assert time.process_time() - began < 5


PIECES = ["a", "b", "ab", "/", "*", "**", "?", "[!a]", "[a-b]", "[!/]", "a*b", "*/", "**a", "*a"]
GLOBS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map("".join) | st.text(
    "ab/*?[!]", max_size=9
)


@settings(max_examples=1500)
@given(GLOBS, st.lists(st.text("ab/", max_size=14), max_size=8))
def test_the_automaton_and_the_regular_expression_are_one_meaning(glob, texts):
    """`_automaton` tries all places at once; `plain_runs` are in each text that matches."""
    try:
        few = matcher(glob)
    except Invalid:
        return
    every = globs._automaton(list(globs._tokens(glob)))
    for text in texts:
        assert few(text) is every(text)
        assert all(run in text for run in globs.plain_runs(glob)) or not few(text)


def literal_paths(services, seen=(), delegated=()):
    return dict(owners(unborn_paths(services, seen, delegated), services).services)


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


def test_literals_and_what_was_selected_are_known_before_they_exist():
    wanted = services(s1=["unit:nginx", "cgroup:batch/job"], s2=["unit:ng*"])
    assert literal_paths(wanted, ["machine.slice/nginx.service", "system.slice/ngx.service"]) == {
        UNIT: 1,
        "system.slice/nginx.socket": 1,
        "batch/job": 1,
        "machine.slice/nginx.service": 1,
        "system.slice/ngx.service": 2,
    }


def test_no_literal_lies_below_a_delegated_directory():
    wanted = services(s1=["cgroup:user.slice/u", "cgroup:user.slice/u/web", "cgroup:free"])
    assert literal_paths(wanted, delegated={"user.slice/u"}) == {"user.slice/u": 1, "free": 1}
    assert literal_paths(wanted, delegated={""}) == {}


DEEP = "/".join("a" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("path", ["a/\udcff", "a/\x1bb", "a/\u200bb", "a/\u3164", DEEP])
def test_what_no_selector_can_name_is_nobodys_own(path):
    found = owners([path, "a/b"], services(s1=["cgroup:a/**"]))
    assert found.services == {"a/b": 1}


def test_a_path_deeper_than_the_kernel_looks_is_said():
    found = owners([DEEP], services(s1=["cgroup:a/**"]))
    assert found.conflicts == {1: (f"{DEEP}: has more than {MAX_DEPTH} components",)}


@pytest.mark.parametrize(
    ("uid", "mode", "only"),
    [
        (0, 0o40755, True), (0, 0o40555, True), (0, 0o40700, True), (0, 0o100644, True),
        (1000, 0o40755, False), (65534, 0o40755, False), (0, 0o40775, False), (0, 0o40757, False),
        (0, 0o41777, False), (0, 0o100664, False),
    ],
)  # fmt: skip
def test_what_root_alone_writes(uid, mode, only):
    assert root_only(uid, mode) is only


@pytest.mark.parametrize(
    ("path", "folders", "inside"),
    [
        ("a/b", {"a"}, True), ("a/b/c", {"a"}, True), ("a", {"a"}, False), ("ab", {"a"}, False),
        ("a/b", {"a/b"}, False), ("a", {""}, True), ("a/b", set(), False), ("a/b/c", {"b"}, False),
    ],
)  # fmt: skip
def test_what_lies_below(path, folders, inside):
    assert below(path, folders) is inside
