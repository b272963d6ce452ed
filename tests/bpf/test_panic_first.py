"""A panic detaches before it does anything whose cost a user chooses, and its searches end."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf import elsewhere, takedown
from aegisflux.adapters.datapath.bpf.elsewhere import Budget
from aegisflux.runtime.cgroupfs import paths_of, shallow_first
from tests.bpf.test_takedown import BPFFS, governed, instance, judging, lab  # noqa: F401 - fixtures
from tests.support.elsewhere import held, mounts
from tests.support.kernel import Kernel
from tests.support.netns import Lab, cgroup_root

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
USER = "65534"

# What `agent panic` asks for as long as something of ours is attached at the cgroup of argv.
PANIC = """
import json, os, sys
from aegisflux.adapters.datapath.bpf import libbpf, objects
from aegisflux.adapters.datapath.bpf.pins import ATTACH
cgroup = os.open(sys.argv[1], os.O_RDONLY)
command, seen, busy = libbpf.command, [], False

def see(what):
    global busy
    if not busy:
        busy = True
        if any(objects.attached_to(cgroup, kind) for kind in ATTACH.values()):
            seen.append(what)
        busy = False

def asked(number, attr):
    see({31: "links", 11: "programs", 12: "maps"}.get(number, "bpf"))
    return command(number, attr)

libbpf.command = asked
from aegisflux.agent.cli import panic
LOOKS = ("open", "os.listdir", "os.scandir")
sys.addaudithook(lambda event, args: see(str(args[0])) if event in LOOKS else None)
try:
    panic(instance=sys.argv[2])
finally:
    print(json.dumps(seen))
"""

# what a user makes more of: how asking for it would look
CHOSEN_BY_USERS = {
    "processes": lambda what: what == "/proc",
    "mount namespaces and descriptors": lambda what: (
        what.startswith("/proc/") and what.split("/")[2].isdigit()
    ),
    "cgroups": lambda what: what.startswith(str(cgroup_root()) + "/"),
    "BPF maps": lambda what: what == "maps",
    "BPF programs": lambda what: what == "programs",
}


@pytest.fixture
def asked(lab: Lab, instance: str) -> list[str]:  # noqa: F811
    with Kernel(lab) as kernel:
        governed(kernel)
        argv = [sys.executable, "-c", PANIC, str(lab.cgroup), instance]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert judging(instance) == []
    return json.loads(done.stdout)


def test_nothing_that_users_make_more_of_is_asked_for_before_all_is_detached(asked: list[str]) -> None:
    assert "links" in asked, "the list of what is attached is root's"
    found = {kind: [what for what in asked if is_it(what)][:3] for kind, is_it in CHOSEN_BY_USERS.items()}
    assert found == {kind: [] for kind in CHOSEN_BY_USERS}


@contextmanager
def of_a_user() -> Iterator[int]:
    """A process of a user in a user and mount namespace of its own."""
    code = "unshare --user --map-root-user --mount sh -c 'echo ready; exec sleep 600'"
    argv = [
        "setpriv",
        f"--reuid={USER}",
        f"--regid={USER}",
        "--clear-groups",
        "--",
        "sh",
        "-c",
        f"exec {code}",
    ]
    with held(argv) as pid:
        yield pid


def test_mount_namespaces_of_users_are_not_read_and_those_of_root_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = []
    found = elsewhere._mounted
    monkeypatch.setattr(elsewhere, "_mounted", lambda *args: read.append(args[0]) or found(*args))
    with of_a_user() as user, mounts("true") as inside:
        root = inside[1].split("/")[2]
        elsewhere.everywhere(Budget())
        assert os.stat(f"/proc/{user}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino
        assert str(user) not in read
        assert root in read


@pytest.mark.parametrize("budget", [Budget(seconds=-1), Budget(size=10)])
def test_a_search_that_was_cut_says_so(monkeypatch: pytest.MonkeyPatch, budget: Budget) -> None:
    kernel = takedown.Kernel()
    monkeypatch.setattr(takedown, "Budget", lambda *_: budget)
    with mounts("true"):
        kernel._everywhere()
    assert kernel.cut() == [takedown.PINS_CUT]


def test_cgroups_near_the_top_and_of_root_come_first(tmp_path: Path) -> None:
    for name in ("a/deep/deeper", "user/own", "z"):
        (tmp_path / name).mkdir(parents=True)
    os.chown(tmp_path / "user", 65534, 65534)
    names = [Path(folder).name for _, folder in shallow_first(tmp_path, lambda: True)][1:]
    assert set(names[:2]) == {"a", "z"}
    assert names[2:4] == ["deep", "deeper"]
    assert names[4:] == ["user", "own"]
    assert len(list(shallow_first(tmp_path, iter([True] * 2 + [False] * 9).__next__))) == 1


def test_a_cgroup_is_found_by_its_number_alone(lab: Lab) -> None:  # noqa: F811
    number = lab.cgroup.stat().st_ino
    assert paths_of({number, 2**40}) == {number: str(lab.cgroup)}
    code = f"from aegisflux.runtime.cgroupfs import paths_of; print(paths_of({{{number}}}))"
    script = (
        f"umount -l {cgroup_root()}; mount -t cgroup2 none {cgroup_root()}; exec {sys.executable} -c '{code}'"
    )
    argv = ["unshare", "--mount", "--cgroup", "sh", "-ec", script]
    inner = lab.cgroup / "inner"
    inner.mkdir()
    join = f'echo $$ > {inner}/cgroup.procs; exec "$@"'
    shown = subprocess.run(
        ["sh", "-ec", join, "sh", *argv], capture_output=True, text=True, check=True
    ).stdout
    assert shown == "{}\n", "it lies outside of the namespace"


def test_folders_that_a_user_made_are_no_instances(tmp_path: Path) -> None:
    from aegisflux.agent import notes

    (tmp_path / "aegisflux" / "fake").mkdir(parents=True)
    assert notes.pinned([tmp_path]) == [(tmp_path, "fake")]
    os.chown(tmp_path / "aegisflux", 65534, 65534)
    assert notes.pinned([tmp_path]) == []
