"""Swapping snapshots under load: no allowed flow stalls, no denied one gets through."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.bpf.test_sockets import SLOT, rules
from tests.support import probes
from tests.support.kernel import Kernel
from tests.support.netns import Lab

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SECONDS = 4.0
SWAPS_A_SECOND = 10

# Talks to an allowed port over one TCP connection, new connections and one UDP socket, and tries a denied
# port, until it is told to stop; prints the longest silence of each and how often the denied one answered.
LOAD = """
import errno, json, select, socket, sys, time
peer, allowed, denied = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def family(): return socket.AF_INET6 if ":" in peer else socket.AF_INET
live = socket.create_connection((peer, allowed), 2)
live.settimeout(5)
udp = socket.socket(family(), socket.SOCK_DGRAM); udp.connect((peer, allowed)); udp.settimeout(5)
worst = {"live": 0.0, "new": 0.0, "udp": 0.0}
through, tries, rounds = 0, 0, 0
print("ready", flush=True)
def timed(name, act):
    t = time.monotonic(); act(); worst[name] = max(worst[name], time.monotonic() - t)
def echo(s):
    s.send(b"x"); assert s.recv(9) == b"x"
def new():
    with socket.create_connection((peer, allowed), 5) as s:
        echo(s)
while not select.select([sys.stdin], [], [], 0)[0]:
    timed("live", lambda: echo(live)); timed("udp", lambda: echo(udp)); timed("new", new)
    with socket.socket(family(), socket.SOCK_STREAM) as s:
        s.setblocking(False)
        tries += 1
        try:
            s.connect((peer, denied))
        except BlockingIOError:
            through += 1
        except OSError as err:
            through += err.errno != errno.EPERM
    rounds += 1
print(json.dumps({"worst": worst, "through": through, "tries": tries, "rounds": rounds}), flush=True)
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Lab() as lab, Kernel(lab) as kernel:
        app, db = lab.host("app"), lab.host("db")
        kernel.served(db, "server", probes.echo_argv(5432, 5433))
        kernel.bind(app.below("svc"), SLOT)
        yield kernel


@pytest.mark.parametrize("peer", ["10.77.0.3", "fd77::3"])
def test_swaps_under_load_stall_nothing_and_let_nothing_through(kernel: Kernel, peer: str) -> None:
    """Two snapshots that agree on these flows and on nothing else, ten times a second."""
    one = rules(edges="10.77.0.3/32 any 5432; fd77::3/128 any 5432; 192.0.2.0/24 tcp 1")
    other = rules(
        edges="10.77.0.0/24 any 5432; fd77::/64 any 5432",
        deny="198.51.100.0/24 any 0 both",
        established="cut",
    )
    kernel.enforce(SLOT, one)
    load = kernel.served(
        kernel.lab.hosts["app"], "svc", [sys.executable, "-S", "-c", LOAD, peer, "5432", "5433"]
    )
    swaps, began = 0, time.monotonic()
    while time.monotonic() - began < SECONDS:
        kernel.enforce(SLOT, (one, other)[swaps % 2])
        swaps += 1
        time.sleep(max(0.0, began + swaps / SWAPS_A_SECOND - time.monotonic()))
    seen = finished(load)
    assert swaps >= SECONDS * SWAPS_A_SECOND * 0.7
    assert seen["through"] == 0, seen
    assert seen["tries"] == seen["rounds"] > 100
    assert max(seen["worst"].values()) < 1.0, seen


def test_enforcement_outlives_the_agent(kernel: Kernel) -> None:
    """What is pinned judges on when the process that loaded it lets go, and another takes it over."""
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 5432"))
    app = kernel.lab.hosts["app"]
    before = [held.generation_id for held in kernel.datapath.held()]
    kernel.datapath.close()
    assert app.call(probes.tcp, "10.77.0.3", 5433, cgroup="svc") == "EPERM"
    assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "connected"
    kernel.datapath.open()
    assert [held.generation_id for held in kernel.datapath.held()] == before
    assert app.call(probes.tcp, "10.77.0.3", 5433, cgroup="svc") == "EPERM"


def finished(load: "subprocess.Popen[bytes]") -> dict[str, object] | object:
    out, _ = load.communicate(b"stop\n", timeout=15)
    return json.loads(out)
