"""The datapath's own life: taken over, upgraded, refused, removed; and what lived before it."""

import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.adapters.datapath.bpf.control import Control
from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath
from aegisflux.domain.errors import OverLimit, Unavailable
from aegisflux.domain.flow import FailsafeRule, Flow
from aegisflux.domain.net import TCP, parse_address
from aegisflux.ports.datapath import Binding
from aegisflux.wire import layout
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import HOUR_NS, Kernel, generation_of
from tests.support.netns import Host, Lab, cgroup_root

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT = 4


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        app, db = lab.host("app"), lab.host("db")
        for host, port in ((db, 5432), (app, 6000)):
            process = host.start(probes.echo_argv(port), "svc", stdout=subprocess.PIPE)
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
        yield lab


def governed(kernel: Kernel) -> Host:
    app = kernel.lab.hosts["app"]
    kernel.bind(app.below("svc"), SLOT)
    return app


def again(kernel: Kernel) -> BpfDatapath:
    return BpfDatapath(attach=kernel.lab.cgroup, instance=f"test-{kernel.lab.name}")


def test_enforcement_outlives_the_agent_and_is_taken_over(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        app = governed(kernel)
        kernel.enforce(SLOT, rules())
        with kernel.talk(app, "other", "10.77.0.3", 5432) as beside:
            kernel.datapath.close()
            assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"
            kernel.datapath = again(kernel)
            kernel.datapath.open()
            assert beside.say("x") == "x"
        (held,) = kernel.datapath.held()
        assert (held.slot, held.tables_digest) == (SLOT, generation_of(rules(), 0).tables_digest)
        assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"
        kernel.bind(app.below("svc"), SLOT)
        kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 5432"))
        assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "connected"


def test_what_was_noted_to_stamp_what_existed_before_is_forgotten(lab: Lab) -> None:
    """Nobody asks for listeners later, and their namespaces go."""
    with Kernel(lab) as kernel:
        assert libbpf.keys(kernel.datapath._pins.maps["listeners"], layout.LISTENER_KEY.size) == []


def test_one_instance_has_one_agent(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        with pytest.raises(Unavailable, match="another agent"):
            again(kernel).open()
        assert kernel.datapath.held() == []


def test_a_connection_that_outlives_an_upgrade_keeps_its_record(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        app = governed(kernel)
        kernel.enforce(SLOT, rules(edges="0.0.0.0/0 any 0"))
        with kernel.talk(app, "svc", "10.77.0.3", 5432) as talk:
            kernel.enforce(SLOT, rules())
            kernel.datapath.close()
            kernel.datapath = again(kernel)
            kernel.datapath.open()
            assert talk.say("x") == "x"


def test_sockets_from_before_the_datapath_are_kept_with_the_right_initiator(lab: Lab) -> None:
    app, db = lab.hosts["app"], lab.hosts["db"]
    kernel = Kernel(lab)
    with (
        kernel.talk(app, "svc", "10.77.0.3", 5432) as ours,
        kernel.talk(db, "svc", "10.77.0.2", 6000) as theirs,
    ):
        assert (ours.say("a"), theirs.say("b")) == ("a", "b")
        with kernel:
            governed(kernel)
            kernel.enforce(SLOT, rules(ingress=""))
            assert (ours.say("a"), theirs.say("b")) == ("a", "b")
            kernel.enforce(SLOT, rules(ingress="10.77.0.3/32 tcp 6000", established="cut"))
            assert (ours.say("a"), theirs.say("b")) == (None, "b")


def test_two_instances_on_one_kernel_do_not_touch_each_other(lab: Lab) -> None:
    with Lab() as other, Kernel(lab) as kernel, Kernel(other) as second:
        app = governed(kernel)
        kernel.enforce(SLOT, rules())
        second.datapath.panic()
        assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"


PANIC = """
import sys
from pathlib import Path
from aegisflux.adapters.datapath.bpf.control import Control
from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath
BpfDatapath(Path(sys.argv[1]), sys.argv[2]).panic()
"""


def test_panic_of_another_process_frees_everything(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        app = governed(kernel)
        kernel.enforce(SLOT, rules())
        instance = f"test-{lab.name}"
        subprocess.run([sys.executable, "-c", PANIC, str(lab.cgroup), instance], check=True, timeout=30)
        assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "connected"
        assert not Path("/sys/fs/bpf/aegisflux", instance).exists()


def test_a_batch_that_fails_half_way_leaves_the_old_generation(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Kernel(lab) as kernel:
        app = governed(kernel)
        kernel.enforce(SLOT, rules())
        open_before = len(os.listdir("/proc/self/fd"))

        def half(fd: int, values: bytes, size: int) -> None:
            libbpf.update(fd, bytes(4), values[:size])
            raise OSError(12, "no memory")

        with monkeypatch.context() as m, pytest.raises(Unavailable, match="no memory"):
            m.setattr(libbpf, "fill", half)
            kernel.enforce(SLOT, rules(edges="0.0.0.0/0 any 0"))
        assert len(os.listdir("/proc/self/fd")) == open_before
        assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"


def test_a_death_inside_a_flip_gives_no_number_twice(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pointer is exchanged, the call has not returned: sockets remember the new number already."""
    with Kernel(lab) as kernel:
        app = governed(kernel)
        kernel.enforce(SLOT, rules(established="cut"))
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(Control, "raise_generation", dies)
            kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 5432"))
        (before,) = kernel.datapath.held()
        with kernel.talk(app, "svc", "10.77.0.3", 5432) as talk:
            assert talk.say("x") == "x"
            kernel.datapath.close()
            kernel.datapath = again(kernel)
            kernel.datapath.open()
            kernel.enforce(SLOT, rules(established="cut"))
            (after,) = kernel.datapath.held()
            assert after.generation_id > before.generation_id
            assert talk.say("y") is None


def dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_full_map_of_cgroups_is_said_by_name(lab: Lab) -> None:
    with Kernel(lab) as kernel, pytest.raises(OverLimit, match="cgroups"):
        kernel.datapath.bind(Binding(10**12 + n, f"/none/{n}", SLOT) for n in range(17_000))


def test_a_renewal_moves_only_the_deadline(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        app = governed(kernel)
        kernel.enforce(SLOT, rules(), lease_s=0.3)
        (before,) = kernel.datapath.held()
        kernel.datapath.renew(SLOT, kernel.datapath.boot_ns() + HOUR_NS)
        (after,) = kernel.datapath.held()
        kernel.wait_boot(0.4)
        assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"
        assert before.generation_id == after.generation_id
        assert after.deadline_ns > before.deadline_ns


def test_many_generations_are_loaded_and_none_is_left(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        governed(kernel)
        kernel.enforce(SLOT, rules())
        first = len(os.listdir("/proc/self/fd"))
        numbers = set()
        for _ in range(40):
            kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 1"))
            numbers |= {h.generation_id for h in kernel.datapath.held()}
        assert len(numbers) == 40
        assert len(os.listdir("/proc/self/fd")) == first


def test_the_failsafe_list_and_its_narrowing(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        app, db = governed(kernel), lab.hosts["db"]
        kernel.enforce(SLOT, rules(ingress=""))
        assert db.call(probes.tcp, "10.77.0.2", 6000) == "silent"
        path = str(app.below("svc").relative_to(cgroup_root()))
        elsewhere = str(app.below("elsewhere").relative_to(cgroup_root()))
        for narrowed, expected in ((None, "connected"), (path, "connected"), (elsewhere, "silent")):
            kernel.datapath.failsafe([FailsafeRule("ingress", "tcp", 6000, None, narrowed)], None)
            assert db.call(probes.tcp, "10.77.0.2", 6000) == expected
        kernel.datapath.failsafe([], path)
        kernel.bind(app.below("svc"), SLOT)
        assert db.call(probes.tcp, "10.77.0.2", 6000) == "connected"


def test_why_answers_from_the_kernels_tables(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        governed(kernel)
        kernel.enforce(SLOT, rules(edges="10.77.0.0/24 tcp 5432"))
        flow = Flow("egress", TCP, parse_address("10.77.0.3"), 5432)
        verdict = kernel.datapath.why(SLOT, flow)
        assert (verdict.action, verdict.rule) == ("allow", "edges 10.77.0.0/24 tcp/5432")
        assert (
            kernel.datapath.why(SLOT, Flow("egress", TCP, parse_address("10.77.0.3"), 1)).reason == "no_match"
        )
        assert kernel.datapath.why(SLOT + 1, flow).reason == "unmanaged"


def test_what_is_broken_in_the_kernel_is_seen(lab: Lab) -> None:
    """Another tool swaps the pointer: the read-back digest differs."""
    with Kernel(lab) as kernel:
        kernel.enforce(SLOT, rules())
        (held,) = kernel.datapath.held()
        fd = libbpf.map_create(libbpf.ARRAY, "foreign", 4, 128, 8, libbpf.F_INNER_MAP)
        libbpf.update(
            kernel.datapath._pins.maps["generations"], struct.pack("<I", SLOT), struct.pack("<I", fd)
        )
        os.close(fd)
        (seen,) = kernel.datapath.held()
        assert seen.tables_digest != held.tables_digest


def test_a_namespace_that_cannot_be_entered_stops_no_flip(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It went away, or we may not: its live flows are judged at their next packet."""

    def refused(fds: Iterable[int], _call: object) -> list[OSError]:
        return [OSError(1, "setns") for _ in fds]

    with Kernel(lab) as kernel:
        app = governed(kernel)
        kernel.enforce(SLOT, rules(edges="0.0.0.0/0 any 0"))
        monkeypatch.setattr("aegisflux.adapters.datapath.bpf.datapath.inside_each", refused)
        with kernel.talk(app, "svc", "10.77.0.3", 5432) as talk:
            assert talk.say("x") == "x"
            kernel.enforce(SLOT, rules(established="cut"))
            assert kernel.datapath.cut(SLOT) == 0
            kernel.datapath.refresh_addresses()
            assert talk.say("y") is None
        assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"


def test_doctor_says_what_works(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        checks = {check.name: check for check in kernel.datapath.doctor()}
        assert all(check.ok for check in checks.values() if check.required), checks


def has_flows(kernel: Kernel, slot: int) -> bool:
    return libbpf.lookup(kernel.datapath._pins.maps["udp_flows"], struct.pack("<I", slot), 4) is not None


def test_the_udp_flows_of_a_service_go_with_it(lab: Lab) -> None:
    """Not before: a slot that judges, or that a cgroup or a literal is mapped to, keeps them."""
    with Kernel(lab) as kernel:
        governed(kernel)
        kernel.enforce(SLOT, rules())
        datapath = kernel.datapath
        assert has_flows(kernel, SLOT)
        bound = datapath.bindings()
        datapath.bind([])
        assert has_flows(kernel, SLOT), "it judges"
        datapath.bind(bound)
        datapath.remove(SLOT, "active")
        assert has_flows(kernel, SLOT), "it is mapped"
        datapath.literals({f"{lab.cgroup.name}/app/later": SLOT})
        datapath.bind([])
        assert has_flows(kernel, SLOT), "it will be mapped"
        datapath.literals({})
        datapath.bind([])
        assert not has_flows(kernel, SLOT)
        datapath.bind(bound)
        assert has_flows(kernel, SLOT), "anew"


def test_what_is_loaded_keeps_its_udp_flows_until_it_judges(lab: Lab) -> None:
    with Kernel(lab) as kernel:
        loaded = kernel.datapath.load(SLOT, "active", generation_of(rules(), HOUR_NS))
        kernel.datapath.bind([])
        assert has_flows(kernel, SLOT)
        kernel.datapath.discard(loaded)
        kernel.datapath.bind([])
        assert not has_flows(kernel, SLOT)
