"""Who is a service on a host: names that are bytes, directories of others, and items that cannot be bound."""

import asyncio
import os
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf.programs import CgroupNames
from aegisflux.agent.cgroups import CgroupTree
from aegisflux.domain import selectors
from aegisflux.domain.errors import OverLimit
from aegisflux.runtime.cgroupfs import own_cgroup, v2_root
from support.agents import AgentLab, body, edges

USER = 65534
NAMES = [b"\xff", b"a\xc3(", b"\x1b[2J", b"\x80\x80", b"x\x07", b"\xed\xa0\x80", "\u202e".encode(), b"\x7f"]
LONG = "cgroup:" + "x" * 255
UNREADABLE = [
    LONG, "cgroup:" + "é" * 127, "cgroup:" + "x/" * 40 + "x", "unit:" + "x" * 300, "cgroup:[z-a]",
    "cgroup:[!][a]", "nonsense", "cgroup:/", "cgroup:a//b", "cgroup:\x1b[2J", "", "unit:a/b",
    "cgroup:" + "?" * 600,
]  # fmt: skip

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories to others")


@pytest.fixture
async def lab():
    return await AgentLab().begin()


@pytest.fixture
async def tree(tmp_path):
    tree = CgroupTree(tmp_path)
    assert tree.on_change(lambda: None)
    await tree.scan()
    yield tree
    tree.close()


def content(lab, service_id=101):
    return lab.plane.content(body(1, service_id, edges=edges("10.0.0.0/8 tcp/443")))


def made(root: Path, path: str, uid: int = 0, mode: int = 0o755) -> Path:
    found = root / path
    found.mkdir(parents=True, exist_ok=True)
    found.chmod(mode)
    os.chown(found, uid, uid)
    return found


async def turns() -> None:
    """Let the loop read what inotify has."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_that_is_no_text_breaks_nothing(tree, tmp_path, name):
    """In the callback, in every scan, and in a new agent; what comes after it is seen."""
    os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    made(tmp_path, "after")
    await turns()
    assert list(await tree.scan()) == ["after"]
    assert [os.fsencode(path) for path in tree.skipped] == [name]
    await tree.rescan()
    assert list(await tree.scan()) == ["after"]
    assert [os.fsencode(path) for path in await CgroupTree(tmp_path).scan()] == [b"after"]
    os.rmdir(os.path.join(os.fsencode(tmp_path), name))
    await turns()
    assert tree.skipped == ()


@pytest.mark.parametrize("name", NAMES)
def test_telemetry_names_every_cgroup_with_what_is_no_text_escaped(tmp_path, name):
    raw = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(raw)
    (tmp_path / "web").mkdir()
    names = CgroupNames(tmp_path)
    assert names.name((tmp_path / "web").stat().st_ino) == "web"
    assert names.name(os.stat(raw).st_ino).encode().decode()


async def test_what_is_skipped_is_counted_and_told_with_an_escaped_name(lab):
    await lab.desire(lab.plane.service(content(lab)))
    lab.cgroups.skipped = ("u/\udcff", "u/\x1b[2J", "web/\udcfe")
    beat = lab.heartbeat()
    assert beat.skipped_cgroups == (r"u/\xff", r"u/\x1b[2J"), "web/... is governed by its parent"
    assert beat.loss["skipped_cgroups"] == 2


@needs_root
async def test_below_a_directory_of_others_nothing_is_named(tree, tmp_path):
    made(tmp_path, "given/user", USER)
    made(tmp_path, "given/user/web/deep", USER)
    for folder, mode in (("group", 0o775), ("all", 0o777)):
        made(tmp_path, f"{folder}/web")
        made(tmp_path, folder, mode=mode)
    made(tmp_path, "roots/web")
    await tree.rescan()
    assert sorted(await tree.scan()) == ["all", "given", "given/user", "group", "roots", "roots/web"]
    assert tree.delegated == {"given/user", "group", "all"}


@needs_root
@pytest.mark.parametrize("name", ["cgroup.procs", "cgroup.threads"])
@pytest.mark.parametrize("mode", [0o644, 0o664])
async def test_who_may_move_processes_into_it_is_asked_too(tree, tmp_path, name, mode):
    made(tmp_path, "a/web")
    (tmp_path / "a" / name).touch(mode=mode)
    (tmp_path / "a" / name).chmod(mode)
    os.chown(tmp_path / "a" / name, USER if mode == 0o644 else 0, 0)
    await tree.rescan()
    assert (sorted(await tree.scan()), tree.delegated) == (["a"], {"a"})


@needs_root
async def test_a_change_of_owner_is_heard(tree, tmp_path):
    """And so are mode and the file of members; what the user makes from then on is nobody's."""
    folder = made(tmp_path, "slice/user")
    made(tmp_path, "slice/user/web/deep")
    (folder / "cgroup.procs").touch()
    await turns()
    everything = ["slice", "slice/user", "slice/user/web", "slice/user/web/deep"]
    assert sorted(await tree.scan()) == everything
    changes = [
        (lambda: os.chown(folder, USER, USER), lambda: os.chown(folder, 0, 0)),
        (lambda: folder.chmod(0o777), lambda: folder.chmod(0o755)),
        (lambda: os.chown(folder / "cgroup.procs", USER, 0), lambda: os.chown(folder / "cgroup.procs", 0, 0)),
    ]
    for give, take in changes:
        give()
        made(tmp_path, "slice/user/later", USER)
        await turns()
        assert (sorted(await tree.scan()), tree.delegated) == (["slice", "slice/user"], {"slice/user"})
        (folder / "later").rmdir()
        take()
        await turns()
        assert (sorted(await tree.scan()), tree.delegated) == (everything, frozenset())


@needs_root
async def test_users_wake_nobody_by_what_they_do_in_their_own_directory(tmp_path):
    calls: list[bool] = []
    made(tmp_path, "user", USER)
    tree = CgroupTree(tmp_path)
    assert tree.on_change(lambda: calls.append(True))
    await tree.scan()
    try:
        for n in range(50):
            made(tmp_path, f"user/{n}/deep", USER)
        os.mkdir(os.path.join(os.fsencode(tmp_path), b"user", b"\xff"))
        await turns()
        assert not calls
        assert list(await tree.scan()) == ["user"]
        assert len(tree._now.watches) == 2, "they cost no watches either"
        assert [os.fsencode(path) for path in tree.skipped] == [b"user/\xff"]
    finally:
        tree.close()


@needs_root
async def test_a_users_cgroups_take_no_room_from_others(tmp_path, monkeypatch):
    monkeypatch.setattr("aegisflux.agent.reading.MAX_CGROUPS", 8)
    monkeypatch.setattr("aegisflux.agent.reading.MAX_DELEGATED", 4)
    for n in range(30):
        made(tmp_path, f"user/{n}/deep", USER)
    made(tmp_path, "user", USER)
    made(tmp_path, "web/worker")
    assert sorted(await CgroupTree(tmp_path).scan()) == ["user", "web", "web/worker"]


@pytest.mark.parametrize("name", ["\udcff", "a\x0bb", "a\u2028b", "a\x85b", "\x1b"])
def test_a_mount_at_any_name_hides_no_cgroups(name):
    """A user's file system may lie at any path; the kernel escapes blanks alone."""
    text = f"1 0 0:1 / /home/{name} rw - fuse.x x rw\n2 0 0:2 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert v2_root(text) == Path("/sys/fs/cgroup")
    assert own_cgroup(f"1:name=x:/{name}\n0::/a/b\n") == "a/b"


@pytest.mark.parametrize("text", UNREADABLE)
async def test_a_selector_that_is_none_costs_its_own_service_only(lab, text):
    """A manifest of an older or a hostile control plane, which its own checks let pass."""
    bad = lab.plane.service(content(lab, 102), name="bad", selectors=(text,))
    await lab.desire(bad, lab.plane.service(content(lab)))
    assert [b.path for b in lab.kernel.bindings()] == ["web"]
    reports = {r.service_id: r for r in lab.heartbeat().services}
    assert reports[101].conflicts == ()
    (line,) = reports[102].conflicts
    assert "selects nothing" in line
    assert line.isprintable()
    assert sum("selects nothing" in line for line in lab.logs) == 1


async def test_a_stored_selector_that_never_matches_is_said_and_the_others_bind(lab):
    wanted = ("cgroup:/sys/fs/cgroup/web", "unit:web@", "cgroup:web")
    await lab.desire(lab.plane.service(content(lab), selectors=wanted))
    assert [b.path for b in lab.kernel.bindings()] == ["web"]
    (report,) = lab.heartbeat().services
    assert [line.partition(": ")[0] for line in report.conflicts] == list(wanted[:2])
    assert "(write cgroup:web)" in report.conflicts[0]
    assert all("new services may not have it" in line for line in report.conflicts)


@pytest.mark.parametrize("refused", ["cgroup", "literal"])
async def test_what_the_kernel_refuses_is_said_by_its_service_and_the_rest_is_bound(
    lab, monkeypatch, refused
):
    full = {"db": "over the limit"} if refused == "cgroup" else {"db/later": "over the limit"}
    bind, literals = lab.kernel.bind, lab.kernel.literals

    def some(bindings):
        bind([b for b in bindings if b.path not in full])
        if refused == "cgroup" and full:
            raise OverLimit("cgroups", 1, 2, "db")

    def listed(paths):
        literals({p: s for p, s in paths.items() if p not in full})
        if refused == "literal" and full:
            raise OverLimit("literals", 1, 2, "db/later")

    monkeypatch.setattr(lab.kernel, "bind", some)
    monkeypatch.setattr(lab.kernel, "literals", listed)
    monkeypatch.setattr(lab.kernel, "refusals", lambda: full)
    wanted = ("cgroup:db", "cgroup:db/later")
    await lab.desire(
        lab.plane.service(content(lab, 102), name="db", selectors=wanted), lab.plane.service(content(lab))
    )
    assert "web" in [b.path for b in lab.kernel.bindings()]
    assert ("db" in [b.path for b in lab.kernel.bindings()]) is (refused == "literal")
    reports = {r.service_id: r for r in lab.heartbeat().services}
    assert reports[102].conflicts == (f"{next(iter(full))}: not bound: over the limit",)
    assert reports[101].conflicts == ()
    full.clear()
    await lab.runner.bind()
    reports = {r.service_id: r for r in lab.heartbeat().services}
    assert reports[102].conflicts == (), "tried again, and there was room"


async def test_a_directory_that_was_given_away_loses_what_was_bound_below_it(lab):
    """Also what the kernel was to bind there; and a cgroup that is gone from there binds no more."""
    lab.cgroups.tree = {"web": 11, "web/a": 12, "web/b": 13}
    await lab.desire(lab.plane.service(content(lab), selectors=("cgroup:web/*", "cgroup:web/later")))
    assert [b.path for b in lab.kernel.bindings()] == ["web/a", "web/b"]
    lab.cgroups.tree, lab.cgroups.delegated = {"web": 11}, frozenset({"web"})
    await lab.runner.bind()
    assert lab.kernel.bindings() == []
    lab.kernel.created(14, "web/later")
    assert lab.kernel.bindings() == []


async def test_a_directory_that_changes_hands_is_told_to_the_datapath_also_where_nothing_is_bound_below(
    lab, monkeypatch
):
    """The cgroups of failsafe rules are the datapath's; it asks again whose they are when it binds."""
    await lab.desire(lab.plane.service(content(lab)))
    bound = []
    bind = lab.kernel.bind
    monkeypatch.setattr(lab.kernel, "bind", lambda listed: (bound.append(1), bind(listed)))
    await lab.runner.bind()
    assert not bound
    for delegated in (frozenset({"other"}), frozenset()):
        lab.cgroups.delegated = delegated
        await lab.runner.bind()
        await lab.runner.bind()
        assert bound.pop()
        assert not bound


async def test_the_host_says_where_units_are():
    lab = await AgentLab(unit_slices=("kubepods.slice",)).begin()
    lab.cgroups.tree = {"kubepods.slice/a.service": 1, "other.slice/a.service": 2, "user.slice/a.service": 3}
    await lab.desire(lab.plane.service(content(lab), selectors=("unit:a",)))
    assert [b.path for b in lab.kernel.bindings()] == ["kubepods.slice/a.service"]


def test_the_deepest_path_that_is_bound_is_one_that_the_kernel_finds():
    header = (Path(__file__).parents[2] / "bpf" / "aegis_maps.h").read_text()
    assert f"#define MAX_DEPTH {selectors.MAX_DEPTH + 1}\n" in header
    assert f"#define MAX_PATH {selectors.MAX_PATH + 3}\n" in header
