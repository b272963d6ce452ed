"""Real sockets between namespaces, through the programs in the kernel, against the oracle.

A table of snapshots crossed with a table of attempts; what a program sees must follow `judge`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import ICMP, ICMPV6, TCP, UDP, Address, parse_address, parse_cidr
from aegisflux.domain.snapshot import Entry, Ruleset
from aegisflux.domain.verdict import judge
from tests.support import probes
from tests.support.kernel import Kernel, generation_of
from tests.support.netns import Lab

pytestmark = [pytest.mark.bpf, pytest.mark.netns]
SLOT = 3


def rules(
    edges: str = "",
    peers: str = "",
    ingress: str | None = None,
    deny: str = "",
    mode: str = "enforce",
    established: str = "keep",
) -> Ruleset:
    """Entries as text: `10.77.0.0/24 tcp 5432; ...`, a deny with its direction behind it."""

    def entries(text: str) -> tuple[Entry, ...]:
        return tuple(sorted(entry(*part.split()) for part in text.split(";") if part.strip()))

    def entry(cidr: str, proto: str, port: str, direction: str = "both") -> Entry:
        return Entry(parse_cidr(cidr), proto, int(port), direction)  # type: ignore[arg-type]

    return Ruleset(
        7,
        1,
        entries(edges),
        entries(peers),
        None if ingress is None else entries(ingress),
        entries(deny),
        mode,
        "open",
        established,  # type: ignore[arg-type]
    )


SNAPSHOTS = {
    "nothing": rules(),
    "nothing observed": rules(mode="observe"),
    "one host, one port": rules(edges="10.77.0.3/32 tcp 5432; fd77::3/128 udp 5432"),
    "prefix, every port": rules(edges="10.77.0.0/24 udp 0; fd77::/64 tcp 0"),
    "any protocol with a port": rules(edges="10.77.0.0/16 any 5432; fd77::/32 any 5432"),
    "everything": rules(edges="0.0.0.0/0 any 0; ::/0 any 0"),
    "everything but a deny": rules(
        edges="0.0.0.0/0 any 0; ::/0 any 0", deny="10.77.0.3/32 tcp 5432 egress; fd77::3/128 any 0 both"
    ),
    "peers": rules(peers="10.77.0.3/32 any 5432; fd77::3/128 tcp 5432", ingress=""),
    "ingress closed": rules(edges="0.0.0.0/0 any 0; ::/0 any 0", ingress=""),
    "ingress open to one": rules(ingress="10.77.0.3/32 any 6000; fd77::3/128 any 6000"),
    "ingress denied": rules(ingress="0.0.0.0/0 any 0", deny="10.77.0.0/24 udp 6000 ingress"),
}


class Attempt(NamedTuple):
    """Who begins, how, where to; `flow` is the initiation as the oracle sees it."""

    egress: bool
    probe: Callable[..., str]
    address: str
    port: int | None
    proto: int
    mapped: bool = False

    def flow(self) -> Flow:
        peer = parse_address(
            self.address if self.egress else ("fd77::3" if ":" in self.address else "10.77.0.3")
        )
        icmp = {ICMP: 8, ICMPV6: 128}.get(self.proto)
        return Flow(
            "egress" if self.egress else "ingress", self.proto, peer, self.port, 40_000, icmp_type=icmp
        )


def attempts() -> dict[str, Attempt]:
    found: dict[str, Attempt] = {}
    for name, address in (("v4", "10.77.0.3"), ("v6", "fd77::3"), ("mapped", "::ffff:10.77.0.3")):
        found[f"{name} connect"] = Attempt(True, probes.tcp, address, 5432, TCP)
        found[f"{name} sendto"] = Attempt(True, probes.udp_sendto, address, 5432, UDP)
        found[f"{name} connected UDP"] = Attempt(True, probes.udp_connected, address, 5432, UDP)
    found["v4 connect, other port"] = Attempt(True, probes.tcp, "10.77.0.3", 5433, TCP)
    found["v6 sendto, other port"] = Attempt(True, probes.udp_sendto, "fd77::3", 5433, UDP)
    found["v4 ping"] = Attempt(True, probes.ping, "10.77.0.3", None, ICMP)
    found["v6 ping"] = Attempt(True, probes.ping, "fd77::3", None, ICMPV6)
    for name, address in (("v4", "10.77.0.2"), ("v6", "fd77::2")):
        found[f"{name} connect from outside"] = Attempt(False, probes.tcp, address, 6000, TCP)
        found[f"{name} datagram from outside"] = Attempt(False, probes.udp_sendto, address, 6000, UDP)
    return found


ATTEMPTS = attempts()
OURS = Host(addresses=frozenset({Address(4, 0x0A4D0002), parse_address("fd77::2")}))


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Lab() as lab, Kernel(lab) as kernel:
        app, db = lab.host("app"), lab.host("db")
        for host, ports, cgroup in ((db, (5432, 5433), "server"), (app, (6000,), "svc")):
            kernel.served(host, cgroup, probes.echo_argv(*ports))
        kernel.bind(app.below("svc"), SLOT)
        yield kernel


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_programs_see_what_the_oracle_says(kernel: Kernel, name: str) -> None:
    snapshot = SNAPSHOTS[name]
    kernel.enforce(SLOT, snapshot)
    app, db = kernel.lab.hosts["app"], kernel.lab.hosts["db"]
    wrong = []
    for title, a in ATTEMPTS.items():
        host, cgroup = (app, "svc") if a.egress else (db, "client")
        seen = host.call(a.probe, a.address, *([a.port] if a.port else []), cgroup=cgroup)
        verdict = judge(snapshot, a.flow(), OURS)
        expected = (
            ("EPERM" if a.egress else "silent")
            if verdict.blocks
            else ("connected" if a.proto == TCP else "answered")
        )
        if seen != expected:
            wrong.append(f"{title}: expected {expected} ({verdict.reason} {verdict.rule}), saw {seen}")
    assert not wrong, "\n".join([name, *wrong])


def test_an_unmanaged_cgroup_beside_it_is_free(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules())
    assert kernel.lab.hosts["app"].call(probes.tcp, "10.77.0.3", 5432, cgroup="other") == "connected"


def test_a_service_reaches_itself_whatever_the_rules(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(ingress="", deny="0.0.0.0/0 any 0 both; ::/0 any 0 both"))
    app = kernel.lab.hosts["app"]
    for address in ("127.0.0.1", "::1", "10.77.0.2", "fd77::2"):
        assert app.call(probes.tcp, address, 6000, cgroup="svc") == "connected"
        assert app.call(probes.udp_sendto, address, 6000, cgroup="svc") == "answered"


def test_other_protocols_need_any_and_every_port(kernel: Kernel) -> None:
    app = kernel.lab.hosts["app"]
    for edges, expected in (("0.0.0.0/0 any 0", "sent"), ("0.0.0.0/0 tcp 0; 0.0.0.0/0 any 5432", "EPERM")):
        kernel.enforce(SLOT, rules(edges=edges))
        assert app.call(probes.raw, "10.77.0.3", 132, cgroup="svc") == expected


def test_a_cgroup_below_the_mapped_one_is_governed_too(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules())
    assert kernel.lab.hosts["app"].call(probes.tcp, "10.77.0.3", 5432, cgroup="svc/deep/deeper") == "EPERM"


@pytest.mark.parametrize(("established", "expected"), [("keep", "x"), ("cut", None)])
@pytest.mark.parametrize("address", ["10.77.0.3", "fd77::3"])
def test_a_live_connection_across_a_swap(
    kernel: Kernel, established: str, expected: str | None, address: str
) -> None:
    kernel.enforce(SLOT, rules(edges="0.0.0.0/0 any 0; ::/0 any 0"))
    with kernel.talk(kernel.lab.hosts["app"], "svc", address, 5432) as talk:
        assert talk.say("x") == "x"
        kernel.enforce(SLOT, rules(established=established))
        assert talk.say("x") == expected
        kernel.enforce(SLOT, rules(established=established))
        assert talk.say("x") == expected
    assert kernel.lab.hosts["app"].call(probes.tcp, address, 5432, cgroup="svc") == "EPERM"


def test_a_deny_ends_even_a_kept_connection(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges="0.0.0.0/0 any 0"))
    with kernel.talk(kernel.lab.hosts["app"], "svc", "10.77.0.3", 5432) as talk:
        assert talk.say("x") == "x"
        kernel.enforce(SLOT, rules(deny="10.77.0.0/24 tcp 5432 egress"))
        assert talk.say("x") is None


def test_a_connection_from_before_the_first_snapshot_is_kept(kernel: Kernel) -> None:
    kernel.datapath.remove(SLOT, "active")
    with kernel.talk(kernel.lab.hosts["app"], "svc", "10.77.0.3", 5432) as talk:
        assert talk.say("x") == "x"
        kernel.enforce(SLOT, rules())
        assert talk.say("x") == "x"
        kernel.enforce(SLOT, rules(established="cut"))
        assert talk.say("x") is None


@pytest.mark.parametrize(("on_expiry", "after"), [("open", "connected"), ("closed", "EPERM")])
def test_a_lease_ends_in_the_kernel(kernel: Kernel, on_expiry: str, after: str) -> None:
    kernel.enforce(SLOT, rules(edges="10.77.0.3/32 tcp 5433"), on_expiry=on_expiry, lease_s=0.5)
    app = kernel.lab.hosts["app"]
    assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"
    assert app.call(probes.tcp, "10.77.0.3", 5433, cgroup="svc") == "connected"
    kernel.wait_boot(0.5)
    assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == after
    assert app.call(probes.tcp, "10.77.0.3", 5433, cgroup="svc") == after


def test_a_denied_connect_is_explained(kernel: Kernel) -> None:
    kernel.enforce(SLOT, rules(edges="0.0.0.0/0 any 0", deny="10.77.0.0/24 tcp 5432 egress"))
    kernel.datapath.drain_denied(10_000)
    kernel.lab.hosts["app"].call(probes.tcp, "10.77.0.3", 5432, cgroup="svc")
    events = [e for e in kernel.datapath.drain_denied(100) if e.peer == Address(4, 0x0A4D0003)]
    assert events
    assert (events[0].reason, events[0].rule, events[0].peer_port) == (
        "deny",
        "deny 10.77.0.0/24 tcp/5432",
        5432,
    )
    assert (
        events[0].digest
        == generation_of(rules(edges="0.0.0.0/0 any 0", deny="10.77.0.0/24 tcp 5432 egress"), 0).digest
    )


def test_panic_frees_everything_at_once() -> None:
    with Lab() as lab, Kernel(lab) as kernel:
        app, db = lab.host("app"), lab.host("db")
        kernel.served(db, "server", probes.echo_argv(5432))
        kernel.bind(app.below("svc"), SLOT)
        kernel.enforce(SLOT, rules())
        assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "EPERM"
        kernel.datapath.panic()
        assert app.call(probes.tcp, "10.77.0.3", 5432, cgroup="svc") == "connected"
