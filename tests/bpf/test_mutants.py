"""Each rule of the meaning, dropped in a copy of the oracle, must differ from the kernel on some probe."""
# ruff: noqa: E501  (a mutant is one line of the oracle, however long)

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

import aegisflux.domain.verdict as oracle
from aegisflux.domain.flow import Flow, Host
from aegisflux.domain.net import ICMPV6, TCP, UDP, Address, Cidr, parse_cidr
from aegisflux.domain.snapshot import Entry, Ruleset
from aegisflux.ports.datapath import Binding
from tests.bpf.bench_kernel import SLOT, Bench, same
from tests.bpf.frames import CB_EXPIRED, frame
from tests.support.mutants import mutant
from tests.support.snapshots import random_flow, random_ruleset

pytestmark = pytest.mark.bpf
MUTANTS = {
    "the prefix is not looked at": ("if not entry.cidr.covers(flow.peer):", "if flow.peer.family != entry.cidr.family:"),
    "the protocol is not looked at": ("    if flow.proto != (TCP if entry.proto == \"tcp\" else UDP):", "    if False:"),
    "the port is not looked at": ("    return entry.port in (0, flow.port)", "    return True"),
    "port 0 is no wildcard": ("    return entry.port in (0, flow.port)", "    return entry.port == flow.port"),
    "any with a port is every protocol": ("(flow.proto in (TCP, UDP) and entry.port == flow.port)", "flow.port in (None, entry.port)"),
    "any matches every port": ("return entry.port == 0 or (flow.proto", "return True or (flow.proto"),
    "deny is forgotten": ("    if denied:", "    if False:"),
    "deny ignores its direction": ("if e.direction in (flow.direction, \"both\")", "if True"),
    "peers are not for ingress": ("best(\"allow_cidrs\", snapshot.peers, flow)", "best(\"allow_cidrs\", snapshot.peers if flow.direction == \"egress\" else (), flow)"),
    "peers are forgotten": ("best(\"allow_cidrs\", snapshot.peers, flow)", "None"),
    "edges are for ingress too": ("listed = snapshot.edges if flow.direction == \"egress\" else snapshot.ingress or ()", "listed = snapshot.edges"),
    "ingress absent is ingress empty": ("flow.direction == \"ingress\" and snapshot.ingress is None", "False"),
    "ingress empty is ingress absent": ("snapshot.ingress is None:\n        return \"allow\", \"unrestricted\"", "not snapshot.ingress:\n        return \"allow\", \"unrestricted\""),
    "observe blocks": ("self.action == \"deny\" and self.mode == \"enforce\"", "self.action == \"deny\""),
    "the lease is forgotten": ("    if host.expired:", "    if False:"),
    "on_expiry is always open": ("if snapshot.on_expiry == \"closed\"", "if False"),
    "the longest prefix is not named": ("        ((-e.cidr.plen,", "        ((e.cidr.plen,"),
    "loopback is judged": ("LOOPBACK_V4.covers(flow.peer)", "False"),
    "local flows are judged": ("        flow.local\n", "        False\n"),
    "NDP with any hop limit": ("flow.hop_limit == NDP_HOP_LIMIT", "True"),
    "NDP is judged": ("    if flow.icmp_type in NDP_TYPES:", "    if False:"),
    "MLD is judged": ("    if flow.icmp_type not in MLD_TYPES or", "    if True or"),
    "MLD with any hop limit": ("or flow.hop_limit != MLD_HOP_LIMIT", "or False"),
    "MLD to any host": ("return GROUPS.covers(flow.peer)", "return True"),
    "MLD from any host": ("return LINK_LOCAL.covers(flow.peer)  #", "return True  #"),
    "DHCP to any host": ("return flow.peer in DHCP_SERVERS", "return True"),
    "DHCP to no broadcast": ("(Address(4, 0xFFFFFFFF), Address(6, 0xFF02", "(Address(6, 0xFF02"),
    "DHCPv6 to no group": ("(Address(4, 0xFFFFFFFF), Address(6, 0xFF02 << 112 | 0x10002))", "(Address(4, 0xFFFFFFFF),)"),
    "DHCPv6 from any host": ("return flow.peer.family == 4 or LINK_LOCAL.covers(flow.peer)", "return True"),
    "DHCPv4 from the link alone": ("return flow.peer.family == 4 or LINK", "return LINK"),
    "DHCP is judged": ("(flow.peer.family, ours, theirs) not in DHCP_PORTS", "True"),
    "DHCP by ports of any family": ("(flow.peer.family, ours, theirs) not in DHCP_PORTS", "(ours, theirs) not in {(68, 67), (546, 547)}"),
    "ICMP answers are judged": ("flow.icmp_type in ICMP_ANSWERS.get(flow.proto, ())", "False"),
    "the host's list is forgotten": ("any(is_listed(rule, f) for rule in h.failsafe)", "False"),
    "::1 is judged": ("flow.peer == LOOPBACK_V6", "False"),
    "the agent is judged": ("lambda f, _: f.from_agent", "lambda f, _: False"),
    "malformed packets pass": ("    if flow.malformed:\n        return \"deny\"", "    if False:\n        return \"deny\""),
    "answers leave too": ("        and flow.direction == \"ingress\"\n        and flow.icmp_type in", "        and flow.icmp_type in"),
    "the only IPv4 answer is unreachable": ("ICMP: (0, 3, 4, 5, 11, 12, 14, 16, 18)", "ICMP: (3,)"),
    "IPv6 has no answers": ("ICMPV6: (1, 2, 3, 4, 129)", "ICMPV6: ()"),
    "NDP is solicitation": ("range(133, 138)", "(135,)"),
    "MLD is version 2": ("(130, 131, 132, 143)", "(143,)"),
    "DHCP is IPv4": ("((4, 68, 67), (6, 546, 547))", "((4, 68, 67),)"),
    "DHCP is IPv6": ("((4, 68, 67), (6, 546, 547))", "((6, 546, 547),)"),
    "DHCP has one direction": ("(flow.source_port, flow.port) if flow.direction == \"egress\" else (flow.port, flow.source_port)", "(flow.source_port, flow.port)"),
    "the host's list has no direction": ("flow.malformed or rule.direction != flow.direction:", "flow.malformed:"),
    "a longer prefix takes away": ("    found = [\n        ((-e", "    entries = [e for e in entries if e.cidr.covers(flow.peer)]\n    entries = [e for e in entries if e.cidr.plen == max(o.cidr.plen for o in entries)]\n    found = [\n        ((-e"),
    "a longer allow beats deny": ("    if denied:", "    longer = best(\"\", (*snapshot.edges, *(snapshot.ingress or ())), flow)\n    if denied and not (longer and longer[0][0] < denied[0][0]):"),
    "deny beats the failsafe": ("    if saved is not None:", "    if saved is not None and not best(\"deny\", snapshot.deny, flow):"),
    "a closed lease beats the failsafe": ("    if saved is not None:", "    if saved is not None and not (host.expired and snapshot.on_expiry == \"closed\"):"),
    "an open lease blocks": ("else (\"allow\", \"expired_open\"", "else (\"deny\", \"expired_open\""),
    "any is TCP and UDP": ("return entry.port == 0 or (flow.proto", "return (entry.port == 0 and flow.proto in (TCP, UDP)) or (flow.proto"),
    "::/0 is for IPv4 too": ("    if not entry.cidr.covers(flow.peer):", "    if entry.cidr.plen and not entry.cidr.covers(flow.peer):"),
    "every port is named before one": ("e.port == 0, e.proto", "e.port != 0, e.proto"),
    "any protocol is named before one": ("e.proto == \"any\", name", "e.proto != \"any\", name"),
    "live flows are never kept": ("flow.live and snapshot.established == \"keep\"", "False"),
}  # fmt: skip


def allowed(*edges: str, deny: str = "", **more: Any) -> Ruleset:
    """Rules in short: `10.0.0.0/8 tcp/443`; ingress is closed but for what `ingress` says."""
    given = Ruleset(
        1,
        1,
        tuple(map(entry, edges)),
        (),
        (),
        tuple(map(entry, deny.split(", "))) if deny else (),
        "enforce",
        "open",
        "keep",
    )
    return replace(given, **more)


def entry(text: str) -> Entry:
    cidr, named = text.split()
    proto, port = named.split("/")
    return Entry(parse_cidr(cidr), proto, int(port), "both")  # type: ignore[arg-type]


Probe = tuple[Ruleset, Flow, bool]
TEN, WEB = Address(4, 0x0A000001), Flow("egress", TCP, Address(4, 0x0A000001), 443, 40_000)
LOCAL_V6, ALL_NODES = Address(6, 1), Address(6, 0xFF02 << 112 | 1)
SSH = Flow("ingress", TCP, TEN, 22, 40_000)
EVERYTHING = ("0.0.0.0/0 any/0", "::/0 any/0")
RULES: tuple[Probe, ...] = (
    (allowed(*EVERYTHING), replace(WEB, malformed=True), False),
    (allowed("10.0.0.0/8 tcp/443", "10.0.0.1/32 tcp/80"), WEB, False),
    (allowed("10.0.0.1/32 tcp/443", deny="10.0.0.0/8 any/0"), WEB, False),
    (allowed(deny="0.0.0.0/0 any/0"), SSH, False),
    (allowed(on_expiry="closed"), SSH, True),
    (allowed(), WEB, True),
    (allowed("10.0.0.0/8 any/0"), Flow("egress", 132, TEN), False),
    (allowed("::/0 any/0"), WEB, False),
    (allowed(deny="10.0.0.0/8 tcp/443, 10.0.0.0/16 tcp/443"), WEB, False),
    (allowed(deny="10.0.0.0/8 tcp/443, 10.0.0.0/8 tcp/0"), WEB, False),
    (allowed(deny="10.0.0.0/8 any/443, 10.0.0.0/8 tcp/443"), WEB, False),
)
SPECIAL = (
    Flow("egress", TCP, LOCAL_V6, 80, 40_000),
    replace(WEB, from_agent=True),
    Flow("egress", 1, TEN, icmp_type=0),
    Flow("ingress", 1, TEN, icmp_type=0),
    Flow("ingress", ICMPV6, Address(6, 0xFE80 << 112 | 1), icmp_type=2),
    Flow("ingress", ICMPV6, Address(6, 0xFE80 << 112 | 1), icmp_type=134, hop_limit=255),
    *(Flow("egress", ICMPV6, ALL_NODES, icmp_type=kind, hop_limit=1) for kind in (130, 131, 132)),
    Flow("egress", UDP, Address(6, 0xFF02 << 112 | 0x10002), 547, 546),
    Flow("ingress", UDP, TEN, 68, 67),
    Flow("egress", TCP, TEN, 22, 40_000),
    Flow("egress", ICMPV6, Address(6, 0xFF02 << 112 | 1), icmp_type=135, hop_limit=255),
    Flow("egress", ICMPV6, Address(6, 0xFF02 << 112 | 1), icmp_type=135, hop_limit=254),
    Flow("egress", ICMPV6, Address(6, 0xFF02 << 112 | 22), icmp_type=143, hop_limit=1),
    Flow("egress", UDP, Address(4, 0xFFFFFFFF), 67, 68),
    Flow("egress", UDP, Address(6, 0xFF02 << 112 | 1), 67, 68),
    Flow("egress", UDP, Address(6, 0xFF02 << 112 | 0x10002), 67, 68),
    Flow("egress", UDP, TEN, 67, 68),
    Flow("egress", UDP, Address(6, 0xFE80 << 112 | 1), 547, 546),
    Flow("ingress", UDP, Address(6, 0xFE80 << 112 | 1), 546, 547),
    Flow("ingress", UDP, Address(6, 0x20010DB8 << 96), 546, 547),
    *(
        Flow(way, ICMPV6, peer, icmp_type=143, hop_limit=hops)
        for way in ("egress", "ingress")
        for peer in (Address(6, 0), Address(6, 0xFE80 << 112 | 1), Address(6, 0x20010DB8 << 96), ALL_NODES)
        for hops in (1, 2)
    ),
    Flow("ingress", 1, Address(4, 0x0A000001), icmp_type=3),
    Flow("ingress", TCP, Address(4, 0x0A000001), 22, 40_000),
    Flow("egress", TCP, Address(4, 0x7F000001), 80, 40_000),
    Flow("egress", TCP, Address(4, 0x0A000001), 80, 40_000, local=True),
)


def probes() -> Iterator[Probe]:
    closed = Ruleset(1, 1, (), (), (), (), "enforce", "open", "keep")
    yield from ((closed, flow, False) for flow in SPECIAL)
    yield from RULES
    rng = random.Random(7)
    for _ in range(60):
        rules = random_ruleset(rng, 8)
        for _ in range(40):
            yield rules, random_flow(rng, rules), rng.random() < 0.05


Seen = tuple[bool, str | None, str | None]


@pytest.fixture(scope="module")
def answers() -> list[tuple[Probe, Seen]]:
    """What the kernel says to every probe."""
    found: list[tuple[Probe, Seen]] = []
    with Bench() as bench:
        used: Ruleset | None = None
        for probe in probes():
            rules, flow, expired = probe
            if rules is not used:
                bench.use(rules)
                used = rules
            found.append((probe, bench.judge(flow, extra=CB_EXPIRED if expired else 0)))
    return found


def differs(judge: Callable[..., oracle.Verdict], answers: list[tuple[Probe, Seen]]) -> bool:
    return any(not same(judge(r, f, replace(Host(), expired=e)), seen) for (r, f, e), seen in answers)


def test_the_oracle_itself_agrees(answers: list[tuple[Probe, Seen]]) -> None:
    assert not differs(oracle.judge, answers)


@pytest.mark.parametrize("name", [n for n in MUTANTS if "kept" not in n])
def test_a_mutant_is_caught(answers: list[tuple[Probe, Seen]], name: str) -> None:
    assert differs(mutant(oracle, *MUTANTS[name]).judge, answers)


def test_a_service_without_a_snapshot_is_unmanaged() -> None:
    with Bench() as bench:
        seen = bench.judge(WEB)
    assert same(oracle.judge(None, WEB, Host()), seen)
    assert not same(oracle.judge(allowed(), WEB, Host()), seen)


OWN = Host(frozenset({TEN}))


def test_the_mutant_that_judges_own_addresses_is_caught() -> None:
    """The kernel knows them by the device (`local`), the hooks by a map: real sockets are in test_sockets."""
    judged = mutant(oracle, "        or host.owns(flow.peer)\n", "")
    with Bench() as bench:
        bench.use(allowed())
        seen = bench.judge(replace(WEB, local=True))
    assert same(oracle.judge(allowed(), WEB, OWN), seen)
    assert not same(judged.judge(allowed(), WEB, OWN), seen)


def test_the_mutant_that_keeps_nothing_is_caught() -> None:
    """A UDP flow that began under rules that allowed it, judged under rules that do not."""
    flow = Flow("egress", UDP, Address(4, 0x0A000001), 443, 40_000)
    entry = Entry(Cidr(4, 0x0A000000, 8), "udp", 443)
    opened = Ruleset(1, 1, (entry,), (), None, (), "enforce", "open", "keep")
    closed = replace(opened, edges=())
    with Bench() as bench:
        bench.use(opened)
        bench.datapath.bind([Binding(bench.cgroup.stat().st_ino, f"/{bench.cgroup.name}", SLOT)])
        assert bench.datapath.test_run("aegis_test_egress", frame(flow, False), (SLOT, 0))[0] == 1
        bench.use(closed)
        passed, _ = bench.datapath.test_run("aegis_test_egress", frame(flow, False), (SLOT, 0))
        other, _ = bench.datapath.test_run(
            "aegis_test_egress", frame(replace(flow, source_port=40_001), False), (SLOT, 0)
        )
    live = replace(flow, live=True)
    assert (bool(passed), bool(other)) == (True, False)
    assert oracle.judge(closed, live, Host()).action == "allow"
    assert mutant(oracle, *MUTANTS["live flows are never kept"]).judge(closed, live, Host()).action == "deny"
