"""Own addresses of real network namespaces: what counts, how soon it is known, what is left when they go."""

import os
import select
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegisflux.adapters.datapath.bpf import libbpf, routes, shares
from aegisflux.adapters.datapath.bpf.namespaces import cookie, inside
from aegisflux.adapters.datapath.bpf.watch import Watch
from aegisflux.agent.preflight import would_cut
from aegisflux.domain.flow import Flow, Own
from aegisflux.domain.net import TCP, parse_address
from aegisflux.wire import layout
from tests.bpf.test_life import governed
from tests.bpf.test_sockets import rules
from tests.support import probes
from tests.support.kernel import Kernel, generation_of
from tests.support.netns import NETNS, Host, Lab

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT, PORT = 4, 6000

# What is done in the service's namespace, and an address that belongs to the namespace from then on.
WAYS = {
    "an address": ("addr add 10.66.1.1/24 dev eth0", "10.66.1.1"),
    "an address of IPv6": ("addr add fd66:1::1/64 dev eth0 nodad", "fd66:1::1"),
    "a load balancer's address on lo": ("addr add 10.66.2.1/32 dev lo", "10.66.2.1"),
    "the same of IPv6": ("addr add fd66:2::1/128 dev lo", "fd66:2::1"),
    "on a device of its own": ("addr add 10.66.3.1/32 dev vip0", "10.66.3.1"),
    "a local route": ("route add local 10.66.4.1 dev lo", "10.66.4.1"),
    "a local route of IPv6": ("route add local fd66:4::1 dev lo", "fd66:4::1"),
    "any address of a prefix": ("route add local 10.67.0.0/16 dev lo", "10.67.200.9"),
    "any address of a prefix of IPv6": ("route add local fd67::/48 dev lo", "fd67:0:0:7::9"),
    "any of a prefix on another device": ("route add local 10.68.0.0/24 dev eth0", "10.68.0.9"),
}
# What is no own address, although a route or another table names it.
OTHERS = {
    "a route to others": ("route add 10.69.0.0/16 via 10.77.0.1", "10.69.0.1"),
    "a blackhole": ("route add blackhole 10.70.0.0/16", "10.70.0.1"),
    "a table that some packets use": ("route add local 10.71.0.0/16 dev lo table 100", "10.71.0.1"),
    "the broadcast address": ("addr add 10.72.0.1/24 brd + dev eth0", "10.72.0.255"),
}


def ip(host: Host, command: str) -> None:
    subprocess.run(["ip", "-n", host.netns, *command.split()], check=True, capture_output=True)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """A service that may call nobody and listens on every address, in a namespace that is not the agent's."""
    with Lab() as lab, Kernel(lab) as kernel:
        app = lab.host("app")
        ip(app, "link add vip0 type bridge")
        ip(app, "link set vip0 up")
        kernel.served(app, "svc", probes.echo_argv(PORT))
        governed(kernel)
        kernel.enforce(SLOT, rules())
        yield kernel


@pytest.fixture
def app(kernel: Kernel) -> Iterator[Host]:
    """What a test adds is taken away, and known to be."""
    app = kernel.lab.hosts["app"]
    yield app
    for device in ("eth0", "lo", "vip0"):
        ip(app, f"addr flush dev {device}")
        for family in ("-4", "-6"):
            ip(app, f"{family} route flush table local dev {device} proto boot")
    ip(app, "route flush table main proto boot")
    ip(app, "route flush table all proto boot")
    ip(app, "addr add 127.0.0.1/8 dev lo")
    app.address("eth0")
    kernel.datapath.refresh_addresses()


def told(kernel: Kernel, host: Host, address: str, own: bool = True) -> bool:
    """Whether what the kernel tells within a second makes the address own in this namespace, or not own.
    Others make and remove namespaces on this machine meanwhile, of which it tells too."""
    fd, until = kernel.datapath.watch_addresses(), time.monotonic() + 1
    assert fd is not None
    wanted = parse_address(address).packed()
    raw = wanted if len(wanted) == 16 else routes.MAPPED + wanted
    key = layout.OWN_KEY.pack(layout.OWN_BITS, cookie_of(NETNS / host.netns), raw)
    while libbpf.lookup(kernel.datapath._pins.maps["own"], key, 1) != bytes([own]):
        left = until - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return False
        assert kernel.datapath.heed_addresses() == []
    return True


def called(host: Host, address: str) -> str:
    return host.call(probes.tcp, address, PORT, cgroup="svc")


def entries(kernel: Kernel) -> Counter[int]:
    """How many entries the kernel's map has of each namespace."""
    keys = libbpf.keys(kernel.datapath._pins.maps["own"], layout.OWN_KEY.size)
    return Counter(layout.OWN_KEY.unpack(key)[1] for key in keys)


def cookie_of(path: Path) -> int:
    with path.open() as file:
        return inside(file.fileno(), cookie)


@pytest.mark.parametrize("title", WAYS)
def test_what_is_added_is_own_as_soon_as_the_kernel_tells(kernel: Kernel, app: Host, title: str) -> None:
    command, address = WAYS[title]
    flow = Flow("egress", TCP, parse_address(address), PORT)
    assert called(app, address) == "EPERM"
    assert kernel.datapath.why(SLOT, flow).reason == "no_match"
    ip(app, command)
    assert told(kernel, app, address)
    assert called(app, address) == "connected"
    assert kernel.datapath.why(SLOT, flow).reason == "failsafe"
    ip(app, command.replace(" add ", " del ").replace(" nodad", ""))
    assert told(kernel, app, address, own=False)
    assert called(app, address) == "EPERM"


@pytest.mark.parametrize("title", OTHERS)
def test_what_leads_elsewhere_is_not_own(kernel: Kernel, app: Host, title: str) -> None:
    command, address = OTHERS[title]
    ip(app, command)
    kernel.datapath.refresh_addresses()
    assert called(app, address) == "EPERM"
    assert not kernel.datapath.own(SLOT).covers(parse_address(address))


def test_a_connection_to_an_own_prefix_is_neither_cut_nor_told_as_cut(kernel: Kernel, app: Host) -> None:
    ip(app, "route add local 10.67.0.0/16 dev lo")
    assert told(kernel, app, "10.67.1.2")
    denies_all = generation_of(rules(established="cut"), 0)
    with kernel.talk(app, "svc", "10.67.1.2", PORT) as talk:
        live = [flow for flow in kernel.datapath.live(SLOT) if str(flow.peer) == "10.67.1.2"]
        assert {flow.local for flow in live} == {True}
        assert would_cut(denies_all, live, Own(), ()) == []  # type: ignore[arg-type]
        kernel.enforce(SLOT, rules(established="cut"))
        kernel.datapath.cut(SLOT)
        assert talk.say("still here") == "still here"
    kernel.enforce(SLOT, rules())


def test_others_are_told_of_addresses_and_not_of_prefixes(kernel: Kernel, app: Host) -> None:
    ip(app, "route add local 10.67.0.0/16 dev lo")
    ip(app, "addr add 10.66.2.1/32 dev lo")
    kernel.datapath.refresh_addresses()
    reached = set(map(str, kernel.datapath.addresses()))
    assert {"10.77.0.2", "10.66.2.1"} <= reached
    assert not any(text.startswith(("10.67.", "127.")) for text in reached)


def test_what_is_lost_on_the_way_is_read(kernel: Kernel, app: Host) -> None:
    """The socket's buffer holds a few hundred messages: then everything is read again."""
    batch = "".join(f"addr add 10.90.{i >> 8}.{i & 255}/32 dev lo\n" for i in range(3000))
    subprocess.run(["ip", "-n", app.netns, "-batch", "-"], input=batch.encode(), check=True)
    assert told(kernel, app, "10.90.11.183")
    assert called(app, "10.90.11.183") == "connected"
    assert called(app, "10.90.11.184") == "EPERM"


def test_a_namespace_with_too_many_is_named_and_its_own_addresses_are_not_refused(
    kernel: Kernel, app: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shares.MOST, "root", 60)  # the other namespaces have less
    for i in range(60):
        ip(app, f"addr add 10.66.5.{i + 1}/32 dev lo")
    (trouble,) = [t for t in kernel.datapath.refresh_addresses() if app.netns in t or "/proc/" in t]
    assert "more than" in trouble
    assert called(app, "10.66.5.4") == "connected"
    monkeypatch.undo()
    for i in range(60):
        ip(app, f"addr del 10.66.5.{i + 1}/32 dev lo")
    assert told(kernel, app, "10.66.5.4", own=False)
    assert called(app, "10.66.5.4") == "EPERM"


def test_more_namespaces_than_are_read_are_counted(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shares.MOST_NAMESPACES, "root", 0)
    assert any("beyond the first" in text for text in kernel.datapath.refresh_addresses())
    monkeypatch.undo()
    assert not any("beyond the first" in text for text in kernel.datapath.refresh_addresses())


def test_the_map_shrinks_with_200_namespaces(kernel: Kernel) -> None:
    """Ours alone are counted: others make and remove namespaces on this machine meanwhile."""
    ours: set[int] = set()
    names = [f"{kernel.lab.name}-n{i}" for i in range(200)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
            ours.add(cookie_of(NETNS / name))
        kernel.datapath.refresh_addresses()
        assert sum(entries(kernel)[number] for number in ours) >= 2 * len(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
    kernel.datapath.refresh_addresses()
    assert not ours & entries(kernel).keys()


def test_a_namespace_is_not_held_alive_and_leaves_the_map_at_once(kernel: Kernel) -> None:
    """Its end of a veth goes with it, and so does the other end, which is in the hub."""
    brief = kernel.lab.host("brief")
    process = brief.start(["sleep", "60"], "svc")
    kernel.bind(brief.below("svc"), SLOT + 1)
    number = cookie_of(NETNS / brief.netns)
    assert entries(kernel)[number]
    process.kill()
    process.wait()
    subprocess.run(["ip", "netns", "del", brief.netns], check=True)
    until = time.monotonic() + 2
    while devices(kernel.lab.hub) & {f"p{brief.number}"}:
        assert time.monotonic() < until, "the namespace lives on"
        time.sleep(0.01)
    fd = kernel.datapath.watch_addresses()
    assert fd is not None
    while entries(kernel)[number]:
        assert select.select([fd], [], [], 1)[0], "nobody told that the namespace ended"
        kernel.datapath.heed_addresses()


def devices(host: Host) -> set[str]:
    done = subprocess.run(["ip", "-n", host.netns, "-br", "link"], check=True, capture_output=True, text=True)
    return {line.split("@")[0] for line in done.stdout.splitlines()}


def hears_itself() -> tuple[bool, bool, bool]:
    """(told of an address, of a route to others, by whom) of the caller's own namespace."""
    watch = Watch()
    subprocess.run(["ip", "route", "add", "10.69.0.0/16", "via", "10.77.0.1"], check=True)
    route = bool(select.select([watch.fd], [], [], 0.2)[0])
    subprocess.run(["ip", "addr", "add", "10.66.9.1/32", "dev", "lo"], check=True)
    address = bool(select.select([watch.fd], [], [], 1)[0])
    here = watch.drain().here
    watch.close()
    return address, route, here


def test_the_agents_own_namespace_is_heard_without_a_number(kernel: Kernel) -> None:
    assert kernel.lab.host("self").call(hears_itself) == (True, False, True)


def test_no_descriptor_of_a_namespace_stays_open(kernel: Kernel) -> None:
    kernel.datapath.refresh_addresses()
    held = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [target for target in held if target.startswith(("net:", str(NETNS)))]
