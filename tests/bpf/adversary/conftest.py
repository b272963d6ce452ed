"""Two hosts; the service `svc` on one of them is governed."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.bpf.adversary.tools import SLOT
from tests.support import probes
from tests.support.kernel import Kernel
from tests.support.netns import Lab


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Lab() as lab, Kernel(lab) as kernel:
        app, db = lab.host("app"), lab.host("db")
        for host, ports, cgroup in ((db, (5432, 5433), "server"), (app, (6000,), "svc")):
            kernel.served(host, cgroup, probes.echo_argv(*ports))
        for host in (app, db):
            for hub in ("10.77.0.1", "fd77::1"):
                subprocess.run(["ip", "-n", host.netns, "route", "add", "default", "via", hub], check=True)
        kernel.bind(app.below("svc"), SLOT)
        yield kernel
