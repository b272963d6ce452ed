"""Panic believes the kernel: attachments that no folder shows are found, ended, and named where they stay."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf import libbpf, objects
from aegisflux.adapters.datapath.bpf.pins import ATTACH
from aegisflux.adapters.datapath.bpf.takedown import Kernel as Takedown
from aegisflux.agent import rescue
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.elsewhere import mounts
from tests.support.kernel import Kernel
from tests.support.netns import Host, Lab

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT = 4
BPFFS = Path("/sys/fs/bpf")
PROG_ATTACH, ALLOW_MULTI = 8, 2
ELSEWHERE = "mount -t bpf second /sys/fs/bpf"

# Opens the datapath of argv below a cgroup and goes, as an agent that died did.
LEFT = """
import sys
from pathlib import Path
from aegisflux.adapters.datapath.bpf.datapath import BpfDatapath
datapath = BpfDatapath(Path(sys.argv[1]), sys.argv[2])
datapath.open()
datapath.close()
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.host("app"), lab.host("db")
        yield lab


@pytest.fixture
def instance(lab: Lab) -> Iterator[str]:
    name = f"test-{lab.name}"
    yield name
    Takedown().marker(BPFFS, name).delete()


def panic(instance: str, kernel: Takedown | None = None) -> rescue.Outcome:
    """Of this instance, which no note and no folder of pins tells of."""
    return rescue.panic(rescue.Meant((), (), (), frozenset({instance})), "test", kernel or Takedown())


def judging(instance: str) -> list[str]:
    return [one.name for one in Takedown().attached() if one.instance == instance and one.judges]


@contextmanager
def pinned_here(kernel: Kernel) -> Iterator[None]:
    yield


@contextmanager
def held_by_a_process(kernel: Kernel) -> Iterator[None]:
    """The pins are gone, and a process holds the links."""
    (folder,) = (BPFFS / "aegisflux" / f"test-{kernel.lab.name}").glob("v*/links")
    links = [libbpf.obj_get(str(pin)) for pin in folder.iterdir()]
    for pin in list(folder.iterdir()):
        pin.unlink()
    try:
        yield
    finally:
        for link in links:
            os.close(link)


@contextmanager
def attached_without_links(kernel: Kernel) -> Iterator[None]:
    """By BPF_PROG_ATTACH, as tools of another time did."""
    target = os.open(kernel.lab.cgroup, os.O_RDONLY | os.O_DIRECTORY)
    programs = kernel.datapath._pins.programs
    try:
        with held_by_a_process(kernel):
            pass
        for name, kind in ATTACH.items():
            libbpf.bpf(PROG_ATTACH, {0: target, 1: programs[name], 2: kind, 3: ALLOW_MULTI})
        yield
    finally:
        os.close(target)


@pytest.mark.parametrize("how", [pinned_here, held_by_a_process, attached_without_links])
def test_whatever_is_attached_is_ended_and_nothing_else(
    lab: Lab, instance: str, how: Callable[[Kernel], "contextmanager[None]"]
) -> None:
    with Lab() as other, Kernel(other) as beside, Kernel(lab) as kernel:
        app = governed(kernel)
        with how(kernel):
            assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"
            done = panic(instance)
            assert (done.found, done.left, done.unwritten) == ((instance,), (), ())
            assert judging(instance) == []
            assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") != "EPERM"
            assert judging(f"test-{other.name}"), "another instance goes on"
            assert beside.datapath.held() == []


def test_pins_in_the_file_system_of_another_process_are_found(lab: Lab, instance: str) -> None:
    with mounts(ELSEWHERE) as inside:
        argv = [*inside, sys.executable, "-c", LEFT, str(lab.cgroup), instance]
        subprocess.run(argv, check=True, timeout=60)
        assert not (BPFFS / "aegisflux" / instance).exists()
        assert len(judging(instance)) == len(ATTACH)
        done = panic(instance)
        assert (done.found, done.left) == ((instance,), ())
        listed = [*inside, "ls", "/sys/fs/bpf", "/sys/fs/bpf/aegisflux"]
        shown = subprocess.run(listed, capture_output=True, text=True, check=False).stdout
        assert "aegisflux" in shown
        assert instance not in shown, "nor is a pin left"
        assert [one for one in Takedown().attached() if one.instance == instance] == []


def test_what_stays_is_named_with_its_cgroup_and_its_holders(lab: Lab, instance: str) -> None:
    class Stubborn(Takedown):
        def detach(self, attached: object) -> None:
            """A kernel that does not detach."""

        def unpin(self, attached: object) -> list[str]:
            return []

    with Kernel(lab):
        done = panic(instance, Stubborn())
        assert len(done.left) == len(ATTACH)
        for text in done.left:
            assert f"of instance {instance} at /{lab.cgroup.name}, link " in text
            assert f"process {os.getpid()} (" in text
            assert str(BPFFS / "aegisflux" / instance) in text
        assert {text.split("(")[1].split(")")[0] for text in done.left} == set(ATTACH)


def test_a_marker_is_seen_with_another_bpf_file_system_and_ends_everywhere(instance: str) -> None:
    """Written where only another mount namespace has it."""
    code = (
        "import sys; from pathlib import Path\n"
        "from aegisflux.adapters.datapath.bpf.owner import Marker\n"
        "from aegisflux.domain.panic import Panic\n"
        "Marker(sys.argv[1], Path('/sys/fs/bpf')).write(Panic(5.0, 'x'))"
    )
    with mounts(ELSEWHERE) as inside:
        subprocess.run([*inside, sys.executable, "-c", code, instance], check=True, timeout=60)
        here = Takedown().marker(BPFFS, instance)
        assert here.read() is None
        found = here.read(True)
        assert found is not None
        assert (found.at, found.ended) == (5.0, False)
        here.delete()
        found = here.read(True)
        assert found is None or found.ended


def test_programs_say_whose_they_are(lab: Lab, instance: str) -> None:
    with Kernel(lab) as kernel:
        (owner,) = {one.owner for one in Takedown().attached() if one.instance == instance}
        assert owner is not None
        assert (owner.instance, owner.bpffs) == (instance, str(BPFFS))
        assert owner.attach == lab.cgroup.stat().st_ino
        names = {objects.program(fd).name for fd in kernel.datapath._pins.programs.values()}
        assert all(name.startswith("aegis_") for name in names)


def governed(kernel: Kernel) -> Host:
    app = kernel.lab.hosts["app"]
    kernel.bind(app.below("svc"), SLOT)
    kernel.enforce(SLOT, rules())
    return app
