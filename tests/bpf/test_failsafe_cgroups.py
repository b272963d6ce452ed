"""A failsafe rule that names a cgroup follows its path: through restarts, before it exists, with no agent."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.domain.flow import FailsafeRule, Flow
from aegisflux.domain.net import TCP, parse_address
from tests.bpf.test_removed_cgroups import eventually
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import Kernel
from tests.support.netns import Host, Lab, cgroup_root, kill_cgroup

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT, PORT, NOBODY = 4, 6000, 65_534
ROOM = 4096  # of `failsafe_cgroups`, bpf/objects.h


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.host("app")
        lab.host("db")
        yield lab


def started(app: Host, cgroup: str = "all/svc", port: int = PORT) -> None:
    """The service starts in a cgroup that is made for it."""
    process = app.start(probes.echo_argv(port), cgroup, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"


def stopped(app: Host, cgroup: str = "all/svc") -> None:
    kill_cgroup(app.cgroup / cgroup)


def reached(lab: Lab) -> str:
    return str(lab.hosts["db"].call(probes.tcp, "10.77.0.2", PORT))


def path_of(app: Host, cgroup: str) -> str:
    return str((app.cgroup / cgroup).relative_to(cgroup_root()))


def closed(kernel: Kernel, cgroup: str = "all/svc") -> Host:
    """Everything below `all` is governed and answers nobody, but for what the failsafe rule names."""
    app = kernel.lab.hosts["app"]
    kernel.bind(app.below("all"), SLOT)
    kernel.enforce(SLOT, rules(ingress=""))
    path = "/" + str((app.cgroup / cgroup).relative_to(cgroup_root()))
    kernel.datapath.failsafe([FailsafeRule("ingress", "tcp", PORT, None, path)], None)
    return app


def restart(kernel: Kernel, app: Host) -> None:
    before = (app.cgroup / "all/svc").stat().st_ino
    stopped(app)
    started(app)
    assert (app.cgroup / "all/svc").stat().st_ino != before


@pytest.mark.parametrize("cgroup", ["all/svc", "all/svc/worker", "all/svc2", "all/other", "all"])
def test_why_answers_what_the_kernel_does(lab: Lab, cgroup: str) -> None:
    """And the agent's list of what is alive says which cgroup each connection is of."""
    with Kernel(lab) as kernel:
        app = closed(kernel)
        started(app, cgroup)
        path = str((app.cgroup / cgroup).relative_to(cgroup_root()))
        flow = Flow("ingress", TCP, parse_address("10.77.0.3"), PORT, cgroup=path)
        allowed = kernel.datapath.why(SLOT, flow).action == "allow"
        assert allowed == cgroup.startswith("all/svc") - cgroup.startswith("all/svc2")
        assert (reached(lab) == "connected") == allowed
        if allowed:
            with kernel.talk(lab.hosts["db"], "client", "10.77.0.2", PORT) as session:
                assert session.say("a") == "a"
                assert path in {one.cgroup for one in kernel.datapath.live(SLOT)}


def many_restarts(kernel: Kernel, app: Host) -> None:
    for _ in range(3):
        restart(kernel, app)


def restart_without_agent(kernel: Kernel, app: Host) -> None:
    kernel.datapath.close()
    restart(kernel, app)


def restart_and_new_agent(kernel: Kernel, app: Host) -> None:
    restart_without_agent(kernel, app)
    kernel.datapath.open()


def restart_without_hook(kernel: Kernel, app: Host) -> None:
    """The hook was taken away; drift repair finds the cgroup, and puts the hook back."""
    (pin,) = Path("/sys/fs/bpf/aegisflux", f"test-{kernel.lab.name}").glob("v*/links/aegis_mkdir")
    pin.unlink()
    restart(kernel, app)
    assert "cgroups of the failsafe" in kernel.datapath.mend()


def in_a_child(kernel: Kernel, app: Host) -> None:
    stopped(app)
    started(app, "all/svc/worker")


@pytest.mark.parametrize(
    "change",
    [restart, many_restarts, restart_without_agent, restart_and_new_agent, restart_without_hook, in_a_child],
)
def test_a_service_is_reached_whatever_its_cgroups_number(
    lab: Lab, change: Callable[[Kernel, Host], None]
) -> None:
    with Kernel(lab) as kernel:
        started(lab.hosts["app"])
        app = closed(kernel)
        assert reached(lab) == "connected"
        change(kernel, app)
        assert reached(lab) == "connected"
        stopped(app)
        started(app, "all/other")
        assert reached(lab) != "connected", "the rule is about nothing else"


@pytest.mark.parametrize("agent", [True, False])
def test_a_rule_may_name_a_cgroup_that_does_not_exist_yet(lab: Lab, agent: bool) -> None:
    with Kernel(lab) as kernel:
        app = closed(kernel)
        if not agent:
            kernel.datapath.close()
        started(app)
        assert reached(lab) == "connected"


def test_what_was_accepted_before_a_restart_goes_on(lab: Lab) -> None:
    """The session of whoever typed `systemctl restart ssh`."""
    with Kernel(lab) as kernel:
        started(lab.hosts["app"])
        app = closed(kernel)
        with kernel.talk(lab.hosts["db"], "client", "10.77.0.2", PORT) as session:
            assert session.say("a") == "a"
            for pid in (app.cgroup / "all/svc/cgroup.procs").read_text().split():
                (app.below("all/session") / "cgroup.procs").write_text(pid)
            (app.cgroup / "all/svc").rmdir()
            app.below("all/svc")
            assert session.say("b") == "b"
            kernel.datapath.mend()
            assert session.say("c") == "c"


@pytest.mark.parametrize("agent", [True, False])
def test_below_a_directory_of_somebody_else_nothing_is_exempt(lab: Lab, agent: bool) -> None:
    with Kernel(lab) as kernel:
        app = closed(kernel)
        os.chown(app.cgroup / "all", NOBODY, NOBODY)
        if not agent:
            kernel.datapath.close()
        started(app)
        if agent:
            kernel.datapath.mend()
        assert reached(lab) != "connected"


def send_from(port: int, peer: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.5)
        s.bind(("", port))
        return probes.word(lambda: str(s.sendto(b"hi", (peer, PORT))) and s.recv(9).decode())


def narrowed(kernel: Kernel, cgroup: str, proto: str) -> Host:
    """`all` may call nobody; the failsafe lets one cgroup call port 6000."""
    app, db = kernel.lab.hosts["app"], kernel.lab.hosts["db"]
    kernel.served(db, "server", probes.echo_argv(PORT))
    for name in ("all/ok", "all/bad", "other"):
        app.below(name)
    kernel.bind(app.below("all"), SLOT)
    path = "/" + str((app.cgroup / cgroup).relative_to(cgroup_root()))
    kernel.datapath.failsafe([FailsafeRule("egress", proto, PORT, None, path)], None)
    return app


def test_a_flow_that_a_cgroup_may_have_is_none_of_another_cgroup(lab: Lab) -> None:
    """The flow is of the service; the exemption is of the cgroup."""
    with Kernel(lab) as kernel:
        app = narrowed(kernel, "all/ok", "udp")
        kernel.enforce(SLOT, rules(deny="10.77.0.0/24 any 0 egress", ingress=""))
        assert app.call(send_from, 5555, "10.77.0.3", cgroup="all/bad") == "EPERM"
        assert app.call(send_from, 5555, "10.77.0.3", cgroup="all/ok") == "hi"
        assert app.call(send_from, 5555, "10.77.0.3", cgroup="all/bad") == "EPERM"
        assert app.call(send_from, 5555, "10.77.0.3", cgroup="all/ok") == "hi"


@pytest.mark.parametrize("established", ["keep", "cut"])
def test_a_failsafe_of_another_cgroup_keeps_no_live_connection(lab: Lab, established: str) -> None:
    with Kernel(lab) as kernel:
        app = narrowed(kernel, "other", "any")
        kernel.enforce(SLOT, rules(edges="10.77.0.3/32 any 6000"))
        with kernel.talk(app, "all/bad", "10.77.0.3", PORT) as talk:
            assert talk.say("a") == "a"
            assert app.call(send_from, 5555, "10.77.0.3", cgroup="all/bad") == "hi"
            kernel.enforce(SLOT, rules(deny="10.77.0.0/24 any 0 egress", established=established))
            assert talk.say("b") is None
            assert app.call(send_from, 5555, "10.77.0.3", cgroup="all/bad") == "EPERM"
        assert app.call(probes.tcp, "10.77.0.3", PORT, cgroup="all/bad") == "EPERM", (
            "at once, not by a time-out"
        )


def test_a_live_connection_of_the_cgroup_itself_is_kept(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        app = narrowed(kernel, "all/ok", "any")
        kernel.enforce(SLOT, rules(edges="10.77.0.3/32 any 6000"))
        with kernel.talk(app, "all/ok", "10.77.0.3", PORT) as talk:
            assert talk.say("a") == "a"
            kernel.enforce(SLOT, rules(deny="10.77.0.0/24 any 0 egress", established="cut"))
            assert talk.say("b") == "b"


def followed(kernel: Kernel) -> set[int]:
    """Numbers of the cgroups that the kernel holds for failsafe rules."""
    (pin,) = Path("/sys/fs/bpf/aegisflux", f"test-{kernel.lab.name}").glob("v*/maps/failsafe_cgroups")
    fd = libbpf.obj_get(str(pin))
    try:
        return {int.from_bytes(key, "little") for key in libbpf.keys(fd, 8)}
    finally:
        os.close(fd)


def test_restarts_without_an_agent_fill_nothing_and_cut_off_nobody(lab: Lab) -> None:
    """More than the kernel has room for; what was accepted before the first of them stays exempt."""
    with Kernel(lab) as kernel:
        started(lab.hosts["app"])
        app = closed(kernel)
        home, db = app.cgroup / "all/svc", lab.hosts["db"]
        with kernel.talk(db, "client", "10.77.0.2", PORT) as session:
            assert session.say("a") == "a"
            first = home.stat().st_ino
            for pid in (home / "cgroup.procs").read_text().split():
                (app.below("all/session") / "cgroup.procs").write_text(pid)
            home.rmdir()
            kernel.datapath.close()
            for _ in range(ROOM // 256 + 1):
                for _ in range(256):
                    home.mkdir()
                    home.rmdir()
                assert eventually(lambda: followed(kernel) == {first}), "the kernel lets go in its own time"
            assert session.say("b") == "b"
            kill_cgroup(app.cgroup / "all/session")
        assert eventually(lambda: not followed(kernel)), "the last socket is gone"
        started(app)
        assert reached(lab) == "connected"
        kernel.datapath.open()
        assert "cgroups of the failsafe" not in kernel.datapath.mend()
        assert reached(lab) == "connected"


def given(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


def groups(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


@pytest.mark.parametrize(
    ("above", "file", "give", "when"),
    [
        ("all/deep", "", given, "heard at once"),
        ("all/deep", "", given, "found by drift repair"),
        ("all/deep", "", groups, "heard at once"),
        ("all/deep", "cgroup.procs", given, "before the rule"),
        ("all/deep", "cgroup.procs", given, "heard at once"),
        ("all/deep", "cgroup.threads", given, "before the rule"),
        ("all/deep", "cgroup.threads", groups, "found by drift repair"),
        ("all", "", given, "heard at once"),
        ("all", "cgroup.procs", groups, "before the rule"),
        ("all", "cgroup.procs", given, "found by drift repair"),
        ("all", "cgroup.threads", given, "heard at once"),
    ],
)
def test_who_may_move_processes_there_is_not_exempt_by_it(
    lab: Lab, above: str, file: str, give: Callable[[Path], None], when: str
) -> None:
    """Whoever writes a directory above, or its list of members, moves into the exempt cgroup (ADR 0028)."""
    with Kernel(lab) as kernel:
        svc = "all/deep/svc"
        folder = lab.hosts["app"].below(svc).parents[1 if above == "all" else 0] / file
        mode = folder.stat().st_mode
        if when == "before the rule":
            give(folder)
            app = closed(kernel, svc)
            started(app, svc)
        else:
            app = closed(kernel, svc)
            started(app, svc)
            assert reached(lab) == "connected"
            give(folder)
            if when == "heard at once":
                kernel.datapath.bind(kernel.datapath.bindings())
            else:
                assert "cgroups of the failsafe" in kernel.datapath.mend()
        assert reached(lab) != "connected"
        flow = Flow("ingress", TCP, parse_address("10.77.0.3"), PORT, cgroup=path_of(app, svc))
        assert kernel.datapath.why(SLOT, flow).action == "deny"
        assert kernel.datapath.mend() == []
        stopped(app, svc)
        started(app, svc)
        assert reached(lab) != "connected", "nor is one that root makes there later"
        os.chown(folder, 0, 0)
        folder.chmod(mode)
        assert "cgroups of the failsafe" in kernel.datapath.mend()
        assert reached(lab) == "connected", "who gives it back vouches for it"
        assert kernel.datapath.why(SLOT, flow).action == "allow"


def test_what_was_accepted_stays_exempt_while_the_directory_above_is_gone(lab: Lab) -> None:
    """A directory that does not exist gives no name."""
    with Kernel(lab) as kernel:
        app = lab.hosts["app"]
        started(app, "all/deep/svc")
        closed(kernel, "all/deep/svc")
        with kernel.talk(lab.hosts["db"], "client", "10.77.0.2", PORT) as session:
            assert session.say("a") == "a"
            for pid in (app.cgroup / "all/deep/svc/cgroup.procs").read_text().split():
                (app.below("all/session") / "cgroup.procs").write_text(pid)
            (app.cgroup / "all/deep/svc").rmdir()
            (app.cgroup / "all/deep").rmdir()
            assert kernel.datapath.mend() == []
            assert session.say("b") == "b"
