"""Hours of ordinary life in small: a version every half second under load, and nothing grows or slips.

AEGISFLUX_SOAK_SECONDS says how long (nightly: an hour).
"""

import os
import time
from pathlib import Path

import pytest
from demo.talking import REFUSED
from tests.support.site import SERVICE, UNIT, Site, say, until

pytestmark = [pytest.mark.engines, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]
SECONDS = float(os.environ.get("AEGISFLUX_SOAK_SECONDS", "12"))
HOSTS = ("alpha", "beta")
ALWAYS, NEVER = 7000, 7001
EVERY = 0.5
WARM_UP = 0.25
MORE_FILES = 12
MORE_MEMORY_KB = 24 * 1024


@pytest.mark.nightly
def test_soak(site):
    for host in HOSTS:
        for name, port in (("always", ALWAYS), ("never", NEVER)):
            site.machine(host).talking.ask(
                do="load", name=name, proto="tcp", address=site.address("peer"), port=port, every=0.02
            )
    began, warm, version = time.monotonic(), None, site.next_version() - 1
    while (passed := time.monotonic() - began) < SECONDS:
        version += 1
        assert site.post(version, edges(site, version)).status == 200
        if warm is None and passed > SECONDS * WARM_UP:
            warm = sizes(site)
        time.sleep(EVERY)
    for host in HOSTS:
        until(lambda host=host: site.in_force(host, version), 20, site.machine(host).tail_of_log)
    assert warm is not None
    compare(warm, sizes(site))
    for host in HOSTS:
        counts = site.machine(host).talking.ask(do="counts")
        assert set(counts["always"]) == {"connected"}, (host, counts)
        assert set(counts["never"]) <= set(REFUSED), (host, counts)
    say(f"{version} versions of service {SERVICE} in {SECONDS:g} s")


@pytest.fixture(scope="module")
def site():
    with Site(HOSTS) as found:
        found.machine("peer").serve("peer", ALWAYS, NEVER)
        for host in HOSTS:
            found.machine(host).talking = found.machine(host).program(UNIT)
        assert found.post(1, edges(found, 1)).status == 200
        for host in HOSTS:
            until(lambda host=host: found.in_force(host, 1), 20, found.machine(host).tail_of_log)
        yield found


def edges(site, version):
    """The same permission among others that change, in sizes that change."""
    many = [
        {"dst_cidr": f"198.51.{version % 256}.{i}/32", "proto": "tcp", "port": 443}
        for i in range(version % 200)
    ]
    return [site.allow("peer", "tcp", ALWAYS), *many]


def sizes(site):
    """(open files, resident kB) of each agent and of the orchestrator."""
    processes = {f"agent {host}": site.machine(host).agent.pid for host in HOSTS}
    processes["orchestrator"] = site.pids("orchestrator")[0]
    return {name: (len(os.listdir(f"/proc/{pid}/fd")), resident_kb(pid)) for name, pid in processes.items()}


def resident_kb(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def compare(warm, now):
    for name, (files, memory) in now.items():
        assert files <= warm[name][0] + MORE_FILES, (name, warm, now)
        assert memory <= warm[name][1] + MORE_MEMORY_KB, (name, warm, now)
