"""The `cgroup` of a failsafe line is a path below the v2 root: what is none is refused and said, what is not
there yet is said, and `why` answers for the cgroup that it was asked about."""

import asyncio
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.simulated import SimulatedDatapath
from aegisflux.agent.cgroups import CgroupTree
from aegisflux.agent.cli import _why_lines
from aegisflux.agent.doctor import examine
from aegisflux.agent.failsafes import failsafe_of
from aegisflux.agent.identity import IDENTITY
from aegisflux.agent.parts import AgentSettings
from aegisflux.domain.cgroup_paths import within
from aegisflux.domain.errors import Invalid
from aegisflux.domain.failsafe_paths import failsafe_path
from aegisflux.domain.flow import FailsafeRule, Flow, Host
from aegisflux.domain.net import TCP, parse_address
from aegisflux.domain.snapshot import from_builtins, ruleset
from aegisflux.domain.verdict import judge
from support.agent_socket import asked, listening
from support.agents import AgentLab, body, edges

MOUNTS = ("/sys/fs/cgroup/unified", "/mnt/c", "/")


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("unit:ssh", "write system.slice/ssh.service"),
        ("unit:ssh.socket", "write system.slice/ssh.socket"),
        ("UNIT: ssh", "write system.slice/ssh.service"),
        ("cgroup:/kube/x", "write kube/x"),
        ("cgroup:x*", "write system.slice/ssh.service"),
        ("0::/system.slice/x.service", "write system.slice/x.service"),
        ("/sys/fs/cgroup/unified/a/b", "write a/b"),
        ("/sys/fs/cgroup/a/b", "write a/b"),
        ("mnt/c/a", "write a"),
        ("/mnt/c", "write system.slice/ssh.service"),
        ("x-*", "one line for each"),
        ("/", "leave `cgroup` out"),
    ],
)
def test_what_is_no_path_is_refused_with_what_to_write(text, write):
    with pytest.raises(Invalid, match="expected the path of a cgroup below the root") as raised:
        failsafe_path(text, MOUNTS)
    assert write in str(raised.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("x", "x"), ("/x", "x"), ("/a/b/", "a/b"), ("system.slice/ssh.service", "system.slice/ssh.service"),
        ("kubepods.slice:cri-containerd:0a", "kubepods.slice:cri-containerd:0a"), ("/mnt/cc/a", "mnt/cc/a"),
        (r"a/b\x2dc.service", r"a/b\x2dc.service"),
        ("user.slice/user@0.service", "user.slice/user@0.service"),
        ("units/x", "units/x"), ("é", "é"), ("x" * 253, "x" * 253),
    ],
)  # fmt: skip
def test_a_path_is_one_with_and_without_slashes(text, path):
    assert failsafe_path(text, MOUNTS) == path


@pytest.mark.parametrize(
    ("path", "folder", "is_within"),
    [("a", "a", True), ("/a/b", "a/", True), ("ab", "a", False), ("a", "a/b", False), ("b/a", "a", False)],
)
def test_within(path, folder, is_within):
    assert within(path, folder) is is_within


@pytest.mark.parametrize(
    ("cgroup", "verdict"),
    [(None, "deny"), ("svc", "allow"), ("/svc/child", "allow"), ("svc2", "deny"), ("other/svc", "deny")],
)
def test_the_oracle_narrows_a_rule_to_its_cgroup(cgroup, verdict):
    rules = ruleset(from_builtins(body(1, ingress=[])))
    host = Host(failsafe=(FailsafeRule("ingress", "tcp", 6000, None, "/svc"),))
    flow = Flow("ingress", TCP, parse_address("10.0.0.1"), 6000, cgroup=cgroup)
    assert judge(rules, flow, host).action == verdict


LINES = [
    {"direction": "ingress", "proto": "tcp", "port": 1, "cgroup": "unit:x"},
    {"direction": "ingress", "proto": "tcp", "port": 6000, "cgroup": "/web/sshd"},
    {"direction": "ingress", "proto": "tcp", "port": 6001, "cgroup": "later.service"},
]


@pytest.fixture
async def lab():
    good, refused, numbers = failsafe_of(LINES)
    rules = tuple(
        FailsafeRule(one["direction"], one["proto"], one["port"], None, one.get("cgroup")) for one in good
    )
    found = AgentLab(failsafe=rules, failsafe_refused=refused, failsafe_numbers=numbers)
    found.cgroups.tree["web/sshd"] = 77
    await found.begin()
    made = found.plane.content(body(1, edges=edges("10.0.0.0/8 tcp/443"), ingress=[]))
    await found.desire(found.plane.service(made))
    return found


@pytest.fixture
async def path(lab, tmp_path):
    async with listening(lab.runner, tmp_path) as found:
        yield found


ABSENT = "failsafe 3 (later.service): no such cgroup yet"


async def test_status_and_doctor_say_what_is_wrong_and_what_is_not_there(lab, path):
    (found,) = await asked(path, do="status")
    assert found["failsafe_absent"] == [ABSENT]
    (text,) = found["failsafe_refused"]
    assert text.startswith("failsafe 1: failsafe.cgroup: expected the path of a cgroup")
    lab.cgroups.tree["later.service"] = 78
    (found,) = await asked(path, do="status")
    assert found["failsafe_absent"] == []
    assert lab.heartbeat().loss == {"failsafe.refused": 1}


async def test_doctor_asks_the_agent_that_runs(path):
    """It may have been started with other settings than the command finds."""
    checks = await asyncio.to_thread(examine, path.parent, lambda: SimulatedDatapath(lambda: 0))
    found = [(one.ok, one.required, one.detail) for one in checks if one.name == "failsafe"]
    assert [(ok, required) for ok, required, _ in found] == [(False, True), (False, False)]
    assert "unit:x" in found[0][2]
    assert found[1][2] == ABSENT


def test_doctor_reads_the_settings_where_no_agent_runs(tmp_path):
    rules = (FailsafeRule("ingress", "tcp", 1, None, "no-such-cgroup"),)
    settings = AgentSettings(failsafe=rules, failsafe_refused=("failsafe 2: bad",), failsafe_numbers=(1,))
    checks = examine(tmp_path, lambda: SimulatedDatapath(lambda: 0), settings)
    found = [one.detail for one in checks if one.name == "failsafe"]
    assert found == ["failsafe 2: bad", "failsafe 1 (no-such-cgroup): no such cgroup yet"]
    assert not (tmp_path / IDENTITY).exists()


@pytest.mark.parametrize(
    ("service", "port", "verdict", "cgroups", "otherwise"),
    [
        ("web", 6000, "blocked", ["web"], ["web/sshd"]),
        ("101", 6000, "blocked", ["web"], ["web/sshd"]),
        ("web/sshd", 6000, "allowed", ["web/sshd"], []),
        ("/web/sshd/session", 6000, "allowed", ["web/sshd/session"], []),
        ("web/other", 6000, "blocked", ["web/other"], []),
        ("web", 7000, "blocked", ["web", "web/sshd"], []),
        ("web", 22, "allowed", ["web", "web/sshd"], []),
    ],
)
async def test_why_answers_for_the_cgroup_that_was_asked_about(
    path, service, port, verdict, cgroups, otherwise
):
    question = {"do": "why", "service": service, "peer": "10.0.0.1", "port": port, "direction": "ingress"}
    (found,) = await asked(path, **question)
    assert (found["verdict"], found["cgroups"]) == (verdict, cgroups)
    assert [one["cgroup"] for one in found["otherwise"]] == otherwise


VOID = "failsafe 2 (/web/sshd): exempts nothing: it lies below a directory that others than root write"


@pytest.mark.parametrize(
    ("delegated", "service", "port", "void"),
    [
        ((), "web", 6000, []),
        (("web",), "web", 6000, [f"{VOID} (web): give that to root alone"]),
        (("web",), "web/sshd/session", 6000, [f"{VOID} (web): give that to root alone"]),
        (("",), "web/sshd", 6000, [f"{VOID} (/): give that to root alone"]),
        (("web",), "web", 7000, []),
        (("web",), "web/other", 6000, []),
        (("web/sshd",), "web/sshd", 6000, []),
    ],
)
async def test_why_says_which_failsafe_exempts_nothing_and_why(lab, path, delegated, service, port, void):
    lab.cgroups.delegated = frozenset(delegated)
    question = {"do": "why", "service": service, "peer": "10.0.0.1", "port": port, "direction": "ingress"}
    (found,) = await asked(path, **question)
    assert found.get("void", []) == void
    assert _why_lines(found)[-len(void) :] == void or not void


def test_a_tree_knows_what_exists(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "file").touch()
    tree = CgroupTree(Path(tmp_path))
    found = [tree.exists(path) for path in ("a", "a/b", "b", "file", "a\0b", "x" * 300)]
    assert found == [True, True, False, False, False, False]
