"""A service stays itself: by deep cgroups, removed ones, ones mapped late."""

import os
import socket
import threading
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf import libbpf
from aegisflux.domain.errors import OverLimit
from aegisflux.ports.datapath import Binding
from tests.bpf.adversary.tools import SLOT
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import Kernel
from tests.support.netns import cgroup_root

pytestmark = [pytest.mark.bpf, pytest.mark.netns]


def nested(depth: int) -> str:
    return "/".join(["svc", *["d"] * depth])


@pytest.mark.parametrize("depth", [5, 40])
def test_a_service_does_not_escape_by_digging_cgroups(kernel: Kernel, depth: int) -> None:
    kernel.enforce(SLOT, rules())
    app = kernel.lab.hosts["app"]
    assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup=nested(depth)) in ("EPERM", "silent")
    assert app.call(probes.udp_sendto, "10.77.0.3", 5432, cgroup=nested(depth)) in ("EPERM", "silent")


def socket_of_removed(home: str, refuge: str) -> list[str]:
    with socket.socket() as s, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:
        (Path(refuge) / "cgroup.procs").write_text("0")
        Path(home).rmdir()
        Path(home).mkdir()
        s.settimeout(0.3)
        return [
            probes.word(lambda: str(s.connect(("10.77.0.3", 5432)))),
            probes.word(lambda: str(u.sendto(b"x", ("10.77.0.3", 5432)))),
        ]


def test_a_socket_of_a_removed_cgroup_stays_governed(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules())
    app = kernel.lab.hosts["app"]
    home, refuge = app.below("svc/brief"), app.below("free")
    assert app.call(socket_of_removed, str(home), str(refuge), cgroup="svc/brief") == ["EPERM", "EPERM"]


def waiting_sender(tell: int, told: int) -> list[str]:
    """A socket that speaks before its cgroup is mapped, and after."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s, socket.socket() as t:
        t.settimeout(0.3)
        seen = [probes.word(lambda: str(s.sendto(b"x", ("10.77.0.3", 9))))]
        os.write(tell, b"!")
        os.read(told, 1)
        seen.append(probes.word(lambda: str(s.sendto(b"x", ("10.77.0.3", 8)))))
        seen.append(probes.word(lambda: str(t.connect(("10.77.0.3", 5432)))))
        return seen


@pytest.mark.parametrize("fault", [False, True])
def test_a_socket_from_before_the_mapping_is_governed(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, fault: bool
) -> None:
    """Also where the map of cgroups is full before its end is reached."""
    slot, app = SLOT + 1 + fault, kernel.lab.hosts["app"]
    kernel.enforce(slot, rules())
    late = app.below(f"late{slot}")
    (told, tell), (go, let) = os.pipe(), os.pipe()
    answer: list[list[str]] = []
    thread = threading.Thread(
        target=lambda: answer.append(app.call(waiting_sender, tell, go, cgroup=late.name))
    )
    thread.start()
    assert os.read(told, 1) == b"!"
    real = libbpf.update

    def full(fd: int, key: bytes, value: bytes) -> None:
        if key == (1).to_bytes(8, "little"):
            raise OSError(7, "full")
        real(fd, key, value)

    if fault:
        more = [*kernel._bound.values(), binding(late, slot), Binding(1, "/none", slot)]
        with monkeypatch.context() as m, pytest.raises(OverLimit):
            m.setattr(libbpf, "update", full)
            kernel.datapath.bind(more)
    kernel.bind(late, slot)
    os.write(let, b"!")
    thread.join()
    for fd in (told, tell, go, let):
        os.close(fd)
    assert answer == [["1", "EPERM", "silent"]]


def binding(path: Path, slot: int) -> Binding:
    return Binding(path.stat().st_ino, "/" + str(path.relative_to(cgroup_root())), slot)
